"""Folding: entries that repeat are counted instead of written.

The first few refusals of one source are written as they are. What follows within the minute is counted, and one summary
tells how many there were, the first and the last time. Sources are told apart in three steps, so that made-up workspace
ids or addresses gain an attacker nothing: first (reason, address, workspace, role), then (reason, address), then the reason
alone. This module writes nothing: the event log asks, and gets summaries back. The latest folded entries are kept by
connection id: a refused peer's user knows that id.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, TypeVar

import msgspec

from viewport_relay.observe.entry import LogEntry, dump, timestamp
from viewport_relay.reasons import Level, Reason

W = TypeVar("W", bound="FoldWindow")

#: Length of a window, seconds, and entries of a window that are written as they are, at each of the three steps.
WINDOW: Final = 60.0
WRITTEN: Final = (5, 100, 600)

#: Most sources that one step tells apart.
MOST_SOURCES: Final = 4096

#: Most entries that are kept; the oldest is dropped first. In the parent process these are mostly entries of its workers.
MOST_KEPT: Final = 4096

#: Most entries that one report of a worker process hands over.
MOST_REPORTED: Final = 64


class Source(msgspec.Struct, frozen=True):
    """The source of an entry: event, reason and peer, as far as known. `message` tells entries without a reason apart."""

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
    """WINDOW seconds in which entries are counted instead of written. Times are seconds since the epoch."""

    opened: float
    count: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, at: float) -> None:
        """Count an entry."""
        self.count += 1
        self.first = self.first or at
        self.last = at

    def shift(self, seconds: float) -> None:
        """Move all times: the wall clock was set."""
        self.opened += seconds
        if self.count:
            self.first += seconds
            self.last += seconds

    def counted(self) -> dict[str, Any]:
        """The details of a summary that every window has."""
        return {"count": self.count, "first": timestamp(self.first), "last": timestamp(self.last)}


class Fold(FoldWindow, kw_only=True):
    """One window of one source. `detail` is what the last counted entry said was wrong."""

    source: Source
    level: Level
    written: int = 1
    detail: str | None = None

    @property
    def of(self) -> str:
        """The event of the counted entries."""
        return self.source.event

    def summary(self, at: float) -> LogEntry:
        """The entry that stands for what was counted."""
        source = self.source
        reason = None if source.reason is None else Reason[source.reason]
        what = reason.text if reason is not None else source.message or source.event
        details: dict[str, Any] = {
            "of": source.event,
            **self.counted(),
            "ip": source.ip,
            "workspaceId": source.workspace_id,
            "role": source.role,
            "detail": self.detail,
        }
        text = f"{what}: {self.count} more, not written one by one"
        return LogEntry(at, self.level, "folded", reason, text, None, details)


def over(table: dict[Any, W], at: float, *, everything: bool) -> list[W]:
    """Remove the windows that are over (or all of them), the oldest first. A wall clock that was set back ends them too."""
    ended = takewhile(lambda key: everything or not 0 <= at - table[key].opened < WINDOW, table)
    return [table.pop(key) for key in list(ended)]


class Folding:
    """Decides for each entry whether it is written or counted."""

    def __init__(self) -> None:
        # in each table the oldest window is first: dicts keep the order of insertion
        self._tables: tuple[dict[Source, Fold], ...] = ({}, {}, {})

    def counts(self, entry: LogEntry) -> bool:
        """True when the entry was counted and must not be written."""
        source, at = Source.of(entry), entry.at
        steps = source, Source(source.event, source.reason, source.ip), Source(source.event, source.reason)
        charged: list[Fold] = []
        for table, key, allowed in zip(self._tables, steps, WRITTEN, strict=True):
            fold = table.get(key)
            if fold is None:
                if len(table) < MOST_SOURCES:
                    table[key] = Fold(at, source=key, level=entry.level)
            elif fold.written >= allowed:
                detail = entry.details.get("detail")
                fold.detail = detail if isinstance(detail, str) else None
                fold.add(at)
                return True
            else:
                charged.append(fold)
        for fold in charged:
            fold.written += 1
        return False

    def shift(self, seconds: float) -> None:
        """Move all times: the wall clock was set."""
        for table in self._tables:
            for fold in table.values():
                fold.shift(seconds)

    def ended(self, at: float, *, everything: bool = False) -> Sequence[Fold]:
        """Close the windows that are over (or all of them) and give those that counted something."""
        return [
            fold for table in self._tables for fold in over(table, at, everything=everything) if fold.count
        ]

    def open(self) -> Iterator[Fold]:
        """The windows that still run and have counted something."""
        for table in self._tables:
            yield from (fold for fold in table.values() if fold.count)


class FoldedEntries:
    """The latest folded entries by connection id. `as_json` makes an entry's JSON object when it is asked for, which is rare."""

    def __init__(self, as_json: Callable[[LogEntry], dict[str, Any]]) -> None:
        self._as_json = as_json
        #: connection id -> entry of this process, or JSON text of a worker's
        self._kept: dict[str, LogEntry | str] = {}
        self._unreported: deque[tuple[str, LogEntry]] = deque(maxlen=MOST_REPORTED)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, entry: LogEntry) -> None:
        """Keep an entry of this process, if it is about a connection."""
        if entry.connection_id is not None:
            self._put(entry.connection_id, entry)
            self._unreported.append((entry.connection_id, entry))

    def get(self, connection_id: str) -> dict[str, Any] | None:
        """The entry of a connection as a JSON object, or None."""
        found = self._kept.get(connection_id)
        if found is None:
            return None
        return dict(json.loads(found)) if isinstance(found, str) else self._as_json(found)

    def report(self) -> list[tuple[str, str]]:
        """The latest entries of this process since the last call: connection id, and the entry's JSON text."""
        entries = list(self._unreported)
        self._unreported.clear()
        return [(connection_id, dump(self._as_json(entry))) for connection_id, entry in entries]

    def take_over(self, reported: Iterable[tuple[str, str]]) -> None:
        """Keep what a worker process has reported."""
        for connection_id, line in reported:
            self._put(connection_id, line)

    def _put(self, connection_id: str, entry: LogEntry | str) -> None:
        if connection_id not in self._kept and len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[connection_id] = entry
