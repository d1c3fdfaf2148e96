"""The bounded memory of the event log.

One kind of entry (event and reason) may fill it only while nobody else wants the room: when it is full, a
kind that holds more than half of it gives way first, else the oldest entry goes. So a flood of one refusal
from a thousand addresses does not push out the one line that explains it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter

import msgspec

from viewport_relay.reasons import Level


class Record(msgspec.Struct, frozen=True, gc=False):
    """One entry as it was written. `at` is in seconds since the epoch; `line` is its JSON text.

    `folded` is the number of entries that a summary stands for (0: it is no summary), `of` their event.
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
    """At most `size` records, oldest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kinds: dict[tuple[str, str | None], deque[Record]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        return iter(list(merge(*self._kinds.values(), key=attrgetter("seq"))))

    def append(self, record: Record) -> None:
        kind = (record.event, record.reason)
        if self._count >= self.size:
            self._evict()
        records = self._kinds.get(kind)
        if records is None:
            records = self._kinds[kind] = deque()
        records.append(record)
        self._count += 1

    def _evict(self) -> None:
        half, oldest = self.size // 2, -1
        for kind, records in self._kinds.items():
            if len(records) > half:
                victim = kind
                break
            if oldest < 0 or records[0].seq < oldest:
                victim, oldest = kind, records[0].seq
        records = self._kinds[victim]
        records.popleft()
        if not records:
            del self._kinds[victim]
        self._count -= 1
