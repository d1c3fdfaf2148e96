"""Folding: entries that repeat are counted instead of written.

The first few refusals of one source are written as they are. What follows within the minute is counted, and one summary
tells how many there were, the first and the last time. Sources are told apart in three steps, so that made-up workspace
ids or addresses gain an attacker nothing: first (reason, address, workspace, role), then (reason, address), then the reason
alone. This module writes nothing: the event log asks, and gets summaries back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, TypeVar

import msgspec

from viewport_relay.observe.entry import LogEntry, timestamp
from viewport_relay.reasons import Level, Reason

W = TypeVar("W", bound="FoldWindow")

#: Length of a window, seconds, and entries of a window that are written as they are, at each of the three steps.
WINDOW: Final = 60.0
WRITTEN: Final = (5, 100, 600)

#: Most sources that one step tells apart.
MOST_SOURCES: Final = 4096


class Source(msgspec.Struct, frozen=True):
    """What an entry is about, as far as known. `message` tells entries without a reason apart."""

    event: str
    reason: str | None
    ip: str | None = None
    workspace_id: str | None = None
    role: str | None = None
    message: str | None = None

    @classmethod
    def of(cls, entry: LogEntry) -> Source:
        """The source of an entry, told apart as far as possible."""
        details, role = entry.details, entry.details.get("role")
        ip, workspace = details.get("ip"), details.get("workspaceId")
        return cls(
            entry.event,
            None if entry.reason is None else entry.reason.code,
            ip if isinstance(ip, str) else None,
            workspace if isinstance(workspace, str) else None,
            None if role is None else str(getattr(role, "value", role)),
            None if entry.message is None or entry.reason is not None else entry.message[:200],
        )


class FoldWindow(msgspec.Struct):
    """WINDOW seconds in which entries are counted. `opened` is in seconds since the epoch."""

    opened: float


class Fold(FoldWindow):
    """One window of one source. Times are seconds since the epoch; `count` is what was not written.

    `detail` is what the last counted entry said was wrong.
    """

    source: Source
    level: Level
    written: int = 1
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    detail: str | None = None

    def summary(self, at: float) -> LogEntry:
        """The entry that stands for what was counted."""
        source = self.source
        reason = None if source.reason is None else Reason[source.reason]
        what = reason.text if reason is not None else source.message or source.event
        details: dict[str, Any] = {
            "of": source.event,
            "count": self.count,
            "first": timestamp(self.first),
            "last": timestamp(self.last),
            "ip": source.ip,
            "workspaceId": source.workspace_id,
            "role": source.role,
            "detail": self.detail,
        }
        text = f"{what}: {self.count} more, not written one by one"
        return LogEntry(at, self.level, "folded", reason, text, None, details)


def over(table: dict[Any, W], at: float, everything: bool) -> list[W]:
    """Remove the windows that are over (or all of them), the oldest first. A wall clock that was set back ends them too."""
    ended = takewhile(lambda key: everything or not 0 <= at - table[key].opened < WINDOW, table)
    return [table.pop(key) for key in list(ended)]


class Folding:
    """Decides for each entry whether it is written or counted."""

    def __init__(self) -> None:
        # in each table the oldest window is first: dicts keep the order of insertion
        self._tables: tuple[dict[Source, Fold], ...] = ({}, {}, {})
        # No window is over between these: nearly every question is answered by them.
        self._asked = -math.inf
        self._next_end = math.inf

    def counts(self, entry: LogEntry) -> bool:
        """True when the entry was counted and must not be written."""
        source, at = Source.of(entry), entry.at
        steps = source, Source(source.event, source.reason, source.ip), Source(source.event, source.reason)
        charged: list[Fold] = []
        for table, key, allowed in zip(self._tables, steps, WRITTEN, strict=True):
            fold = table.get(key)
            if fold is None:
                if len(table) < MOST_SOURCES:
                    table[key] = Fold(at, key, entry.level)
                    self._next_end = min(self._next_end, at + WINDOW)
            elif fold.written >= allowed:
                detail = entry.details.get("detail")
                fold.first = fold.first or at
                fold.last, fold.detail = at, detail if isinstance(detail, str) else None
                fold.count += 1
                return True
            else:
                charged.append(fold)
        for fold in charged:
            fold.written += 1
        return False

    def ended(self, at: float, *, everything: bool = False) -> Sequence[Fold]:
        """Close the windows that are over (or all of them) and give those that counted something."""
        if not everything and self._asked <= at < self._next_end:
            self._asked = at
            return ()
        self._asked = at
        ended = [fold for table in self._tables for fold in over(table, at, everything) if fold.count]
        oldest = [next(iter(table.values())).opened for table in self._tables if table]
        self._next_end = min(oldest, default=math.inf) + WINDOW
        return ended

    def open(self) -> Iterator[Fold]:
        """What was counted so far in windows that still run."""
        for table in self._tables:
            yield from (fold for fold in table.values() if fold.count)
