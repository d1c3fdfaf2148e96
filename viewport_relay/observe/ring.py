"""The ring: the latest records of the event log, in bounded memory.

Each level has a reserved share. A full ring evicts from the level that exceeds its reserve most, there from the largest
kind (event and reason), and of that kind the oldest record. A flood of joins therefore leaves warnings and errors alone,
and a flood of one refusal leaves the records of all other kinds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter
from typing import Final, TypeAlias

import msgspec

from viewport_relay.reasons import Level

_Kind: TypeAlias = tuple[str, str | None]

#: Share of the ring that is reserved for each level. All levels share the rest.
RESERVED: Final[dict[Level, float]] = {"error": 0.25, "warn": 0.25, "info": 0.25}


class Record(msgspec.Struct, frozen=True, gc=False):
    """One entry as written. `at` is in seconds since the epoch; `line` is the JSON text.

    `folded` is the number of entries that a summary stands for (0: the record is no summary), `of` is their event.
    """

    seq: int
    at: float
    level: Level
    event: str
    reason: str | None
    workspace_id: str | None
    connection_id: str | None
    line: str
    folded: int = 0
    of: str = ""


class Ring:
    """A ring of at most `size` records. Iterating gives the oldest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        #: level -> kind -> records, the oldest first
        self._records: dict[Level, dict[_Kind, deque[Record]]] = {level: {} for level in RESERVED}
        #: level -> number of records beyond its reserve
        self._excess = {level: -int(size * share) for level, share in RESERVED.items()}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        kinds = [records for kinds in self._records.values() for records in kinds.values()]
        return iter(list(merge(*kinds, key=attrgetter("seq"))))

    def append(self, record: Record) -> None:
        if self._count >= self.size:
            self._evict()
        kinds = self._records[record.level]
        kinds.setdefault((record.event, record.reason), deque()).append(record)
        self._excess[record.level] += 1
        self._count += 1

    def _evict(self) -> None:
        """Drop the oldest record of the largest kind; among equal kinds, of the one whose oldest record is oldest."""
        level = max(self._excess, key=self._excess.__getitem__)
        kinds = self._records[level]
        kind, records = max(kinds.items(), key=lambda item: (len(item[1]), -item[1][0].seq))
        records.popleft()
        if not records:
            del kinds[kind]
        self._excess[level] -= 1
        self._count -= 1
