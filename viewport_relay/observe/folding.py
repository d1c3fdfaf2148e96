"""Folding: entries that repeat are counted instead of written.

The first few refusals of one source are written as they are. What follows within the minute is counted, and one summary
tells how many there were, the first and the last time. Sources are told apart in three steps, so that made-up workspace
ids or addresses gain an attacker nothing: first (reason, address, workspace, role), then (reason, address), then the reason
alone. This module writes nothing: the event log asks, and gets summaries back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from attrs import define, frozen

from viewport_relay.reasons import Level, Reason


@frozen
class Source:
    """What an entry is about, as far as known. `message` tells entries without a reason apart."""

    event: str
    reason: Reason | None
    ip: str | None = None
    workspace_id: str | None = None
    role: str | None = None
    message: str | None = None

    @property
    def code(self) -> str | None:
        return None if self.reason is None else self.reason.code


@define(eq=False)
class Fold:
    """One window of one source. Times are seconds since the epoch; `count` is what was not written.

    `detail` is what the last counted entry said was wrong.
    """

    source: Source
    level: Level
    opened: float
    written: int = 1
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    detail: str | None = None


@frozen
class Allowance:
    """How many entries per window are written as they are, at each step."""

    source: int = 5
    address: int = 100
    reason: int = 600
    window: float = 60.0
    rows: int = 4096  # most sources that one step tells apart


class Folding:
    """Decides for each entry whether it is written or counted."""

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowed = allowance or Allowance()
        # in each table the oldest window is first: dicts keep the order of insertion
        self._tables: tuple[dict[Source, Fold], ...] = ({}, {}, {})
        # No window is over between these: nearly every question is answered by them.
        self._asked = -math.inf
        self._next_end = math.inf

    def counts(self, source: Source, level: Level, at: float, detail: str | None = None) -> bool:
        """True when the entry was counted and must not be written."""
        steps = (
            (source, self._allowed.source),
            (Source(source.event, source.reason, source.ip), self._allowed.address),
            (Source(source.event, source.reason), self._allowed.reason),
        )
        charged: list[Fold] = []
        for table, (key, allowed) in zip(self._tables, steps, strict=True):
            fold = table.get(key)
            if fold is None:
                if len(table) < self._allowed.rows:
                    table[key] = Fold(key, level, at)
                    self._next_end = min(self._next_end, at + self._allowed.window)
                continue
            if fold.written >= allowed:
                fold.first = fold.first or at
                fold.last, fold.detail = at, detail
                fold.count += 1
                return True
            charged.append(fold)
        for fold in charged:
            fold.written += 1
        return False

    def ended(self, at: float, *, everything: bool = False) -> Sequence[Fold]:
        """Close the windows that are over (or all of them) and give those that counted something.

        A wall clock that was set back ends them too.
        """
        if not everything and self._asked <= at < self._next_end:
            self._asked = at
            return ()
        self._asked = at
        ended = []
        for table in self._tables:
            for key in list(_over(table, at, self._allowed.window, everything)):
                fold = table.pop(key)
                if fold.count:
                    ended.append(fold)
        oldest = [next(iter(table.values())).opened for table in self._tables if table]
        self._next_end = min(oldest, default=math.inf) + self._allowed.window
        return ended

    def open(self) -> Iterator[Fold]:
        """What was counted so far in windows that still run."""
        for table in self._tables:
            yield from (fold for fold in table.values() if fold.count)


def _over(table: dict[Source, Fold], at: float, window: float, everything: bool) -> Iterator[Source]:
    for key, fold in table.items():
        if not everything and 0 <= at - fold.opened < window:
            return
        yield key
