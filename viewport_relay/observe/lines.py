"""The stream of the log's lines: what it cannot take is counted, what it cannot take now waits, and the relay never does.

line -> waits for those before it, 1 MiB at most -> the stream
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TextIO

from attrs import Factory, define, field

from viewport_relay.observe.entry import LogEntry, dump
from viewport_relay.observe.events import EVENTS

#: Characters of lines that wait for a stream at most, a first line apart. What comes then is lost.
MOST_WAITING: Final = 1_048_576
#: Seconds between two attempts at exit.
_PAUSE: Final = 0.02


class TextStream(Protocol):
    """The part of a text stream that the log uses."""

    def write(self, text: str, /) -> object:
        """Take the text, or raise BlockingIOError: the same text is then given again, before any other."""

    def flush(self) -> object: ...


class DescriptorStream:
    """Standard output as a `TextStream` that never waits for the reader of a pipe or socket.

    The descriptor stays in its blocking mode, which it shares with other processes, a shell for example. Where poll says that
    it is writable, PIPE_BUF bytes can be written without waiting (pipe(7)). A terminal may have less room.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._sent = 0  # bytes of the present text
        self._torn = False  # the end of a line could not be written
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, text: str, /) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        if self._torn:
            data = b"\n" + data
        while self._sent < len(data):
            if not self._poll.poll(0):
                raise BlockingIOError
            try:
                self._sent += os.write(self._descriptor, data[self._sent : self._sent + select.PIPE_BUF])
            except BlockingIOError:
                raise
            except OSError:
                self._torn, self._sent = self._torn or self._sent > 0, 0
                raise
        self._torn, self._sent = False, 0

    def flush(self) -> None:
        """A no-op: nothing is kept."""


def unblocked(stream: TextIO) -> TextStream:
    """The stream without waiting for its reader; the stream itself if it has no descriptor."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    stream.flush()
    return DescriptorStream(descriptor, stream.encoding)


@define(eq=False)
class LineStream:
    """Writes lines to a stream, and counts those that the stream did not take (full disk, closed pipe, an idle reader).

    `as_json` makes the JSON object of an entry. `form` makes the line that is written of the line of JSON; control characters
    must stay codes.
    """

    _stream: TextStream
    _as_json: Callable[[LogEntry], dict[str, Any]]
    _form: Callable[[str], str]
    #: texts that wait, and the lines lost before each, of which the text tells
    _waiting: deque[tuple[str, int]] = field(default=Factory(deque), init=False)
    _size: int = field(default=0, init=False)
    _lost: int = field(default=0, init=False)
    #: lines that could not be written since the start
    failures: int = field(default=0, init=False)

    def write(self, at: float, line: str) -> None:
        """Write the line of an entry. The first one after lost lines is preceded by `log_lines_lost`. Never raises OSError."""
        if self._waiting:
            self.go_on()
        text = f"{self._form(line)}\n"
        if self._lost:
            text = f"{self._form(self._gap(at))}\n{text}"
        if self._waiting and self._size + len(text) > MOST_WAITING:
            self._lost += 1
            self.failures += 1
            return
        self._waiting.append((text, self._lost))
        self._size += len(text)
        self._lost = 0
        self.go_on()

    def go_on(self) -> None:
        """Write what waits, as far as the stream takes it now."""
        while self._waiting:
            text, told = self._waiting[0]
            try:
                self._stream.write(text)
                self._stream.flush()
            except BlockingIOError:
                return
            except (OSError, ValueError):  # ValueError: the stream was closed
                self._lost += told + 1
                self.failures += 1
            self._waiting.popleft()
            self._size -= len(text)

    def finish(self, limit: float) -> None:
        """Write what waits, within `limit` seconds. For the end of the process: this blocks."""
        deadline = time.monotonic() + limit
        self.go_on()
        while self._waiting and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            self.go_on()

    def _gap(self, at: float) -> str:
        event, message = "log_lines_lost", "the log could not be written for a while"
        gap = LogEntry(at, EVENTS[event].level, event, None, message, None, {"count": self._lost})
        return dump(self._as_json(gap))
