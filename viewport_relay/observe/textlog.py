"""The log for a terminal: a line of words for each JSON line (RELAY_LOG_FORMAT=text)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from viewport_relay.observe.stream import TextStream


class TextLines:
    """A stream that turns the log's JSON lines into words and writes them to another stream.

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
