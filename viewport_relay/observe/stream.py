"""The stream that the log's lines go to, usually standard output."""

from __future__ import annotations

from typing import Any, Protocol

from viewport_relay.observe.entry import dump, timestamp
from viewport_relay.observe.events import EVENTS


class TextStream(Protocol):
    """The part of a text stream that the log uses."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class LineStream:
    """Writes lines to a stream, and counts those that the stream did not take (full disk, closed pipe)."""

    def __init__(self, stream: TextStream, relay_id: str | None) -> None:
        self._stream = stream
        self._relay_id = relay_id
        self._lost = 0
        #: lines that could not be written since the start
        self.failures = 0

    def write(self, at: float, line: str) -> None:
        """Write one line. The first one after lost lines is preceded by a `log_lines_lost` entry. Never raises OSError."""
        text = f"{line}\n" if not self._lost else f"{self._gap(at)}\n{line}\n"
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._lost += 1
            self.failures += 1
        else:
            self._lost = 0

    def _gap(self, at: float) -> str:
        gap: dict[str, Any] = {
            "ts": timestamp(at),
            "level": EVENTS["log_lines_lost"].level,
            "event": "log_lines_lost",
        }
        gap["message"] = "the log could not be written for a while"
        if self._relay_id is not None:
            gap["relayId"] = self._relay_id
        gap["details"] = {"count": self._lost}
        return dump(gap)
