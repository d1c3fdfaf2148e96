"""The streams that the log's lines go to, usually standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from viewport_relay.observe.entry import LogEntry, dump
from viewport_relay.observe.events import EVENTS


class TextStream(Protocol):
    """The part of a text stream that the log uses."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class LineStream:
    """Writes lines to a stream, and counts those that the stream did not take (full disk, closed pipe).

    `as_json` makes the JSON object of an entry.
    """

    def __init__(self, stream: TextStream, as_json: Callable[[LogEntry], dict[str, Any]]) -> None:
        self._stream = stream
        self._as_json = as_json
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
        event, message = "log_lines_lost", "the log could not be written for a while"
        gap = LogEntry(at, EVENTS[event].level, event, None, message, None, {"count": self._lost})
        return dump(self._as_json(gap))


class TextLines:
    """A stream that turns the log's JSON lines into words and writes them to another stream (RELAY_LOG_FORMAT=text).

    `in_words` makes one line of an entry; it must show control characters as codes.
    """

    def __init__(self, stream: TextStream, in_words: Callable[[dict[str, Any]], str]) -> None:
        self._stream = stream
        self._in_words = in_words

    def write(self, text: str, /) -> None:
        """Write whole lines."""
        self._stream.write("".join(self._in_words(json.loads(line)) + "\n" for line in text.splitlines()))

    def flush(self) -> None:
        """Flush the stream behind."""
        self._stream.flush()
