"""One log entry as a JSON object and as a line: members, redaction, size, encoding."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from viewport_relay.observe.redaction import Json, Redactor
from viewport_relay.reasons import Level, Reason

#: Longest line, characters, its end not counted: container engines split lines of more than 16 KiB, end included.
MAX_LINE = 16_383

#: Levels in the order of their severity.
RANK: Final[Mapping[Level, int]] = {"info": 0, "warn": 1, "error": 2}

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False, check_circular=False)
_FAST_ENCODER = msgspec.json.Encoder()


class LogEntry(NamedTuple):
    """One entry before redaction. `at` is in seconds since the epoch; details that are None are left out of the JSON."""

    at: float
    level: Level
    event: str
    reason: Reason | None
    message: str | None
    connection_id: str | None
    details: Mapping[str, Any]

    def as_json(self, redactor: Redactor, relay_id: str | None) -> dict[str, Any]:
        """The JSON object of the entry, redacted. Members that are None are left out."""
        made: dict[str, Any] = {"ts": timestamp(self.at), "level": self.level, "event": self.event}
        if self.reason is not None:
            made["reason"] = self.reason.code
        if self.message is not None:
            made["message"] = redactor.message(self.message)
        if self.connection_id is not None:
            made["connectionId"] = redactor.identifier(self.connection_id)
        if relay_id is not None:
            made["relayId"] = relay_id
        detail = redactor.detail
        made["details"] = {
            key: detail(key, value) for key, value in self.details.items() if value is not None
        }
        return made


def bounded_line(made: dict[str, Any]) -> str:
    """Encode an entry. When the line is longer than MAX_LINE, details are dropped or replaced by their size."""
    line = dump(made)
    if len(line) > MAX_LINE:
        details = made["details"]
        bare = dump({**made, "details": {}})
        made["details"] = _shortened(details, MAX_LINE - len(bare))
        line = dump(made)
    return line


def dump(value: Mapping[str, Any] | Json) -> str:
    """Encode a JSON value in ASCII.

    Terminal escapes, C1 controls and lone surrogates are escaped: they must reach no terminal and break no stream.
    """
    try:
        line = _FAST_ENCODER.encode(value)
    except UnicodeEncodeError:  # a lone surrogate
        return _ENCODER.encode(value)
    # Nearly all entries are ASCII without escapes.
    return line.decode("ascii") if line.isascii() and b"\x7f" not in line else _ENCODER.encode(value)


def timestamp(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with milliseconds and Z."""
    millis = round(at * 1000)
    return f"{_second(millis // 1000)}.{millis % 1000:03d}Z"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _shortened(details: Mapping[str, Json], room: int) -> dict[str, Json]:
    """The details, in their order, that fit into `room` characters. Of those that do not, the size is told while there is room."""
    kept: dict[str, Json] = {}
    for key, value in details.items():
        size = len(dump(value))
        for shown, length in ((value, size), (note := f"left out: {size} characters", len(note) + 2)):
            needed = len(dump(key)) + 1 + length + 1
            if needed <= room:
                kept[key] = shown
                room -= needed
                break
    return kept
