"""Folded entries by connection id: a refused peer's user knows that id, though its entry was counted and not written."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from viewport_relay.observe.entry import dump
from viewport_relay.reasons import Level, Reason

#: Most entries that are kept, of this process and of its workers each; the oldest is dropped first.
MOST_KEPT = 4096

#: Most entries that one report of a worker process hands over.
MOST_REPORTED = 64


class Folded(NamedTuple):
    """An entry that was counted instead of written."""

    at: float
    level: Level
    event: str
    reason: Reason | None
    message: str | None
    connection_id: str
    details: dict[str, Any]


class FoldedEntries:
    """The latest folded entries. `as_entry` makes the JSON object of one, which most are never asked for."""

    def __init__(self, as_entry: Callable[[Folded], dict[str, Any]]) -> None:
        self._as_entry = as_entry
        self._own: dict[str, Folded] = {}
        self._unreported: deque[str] = deque(maxlen=MOST_REPORTED)
        self._of_workers: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._own) + len(self._of_workers)

    def keep(self, folded: Folded) -> None:
        """Keep an entry of this process."""
        _put(self._own, folded.connection_id, folded)
        self._unreported.append(folded.connection_id)

    def get(self, connection_id: str) -> dict[str, Any] | None:
        """The entry of a connection as a JSON object, or None."""
        folded = self._own.get(connection_id)
        if folded is not None:
            return self._as_entry(folded)
        line = self._of_workers.get(connection_id)
        return None if line is None else dict(json.loads(line))

    def report(self) -> list[tuple[str, str]]:
        """The latest entries of this process since the last call: connection id, and the entry's JSON text."""
        names = list(self._unreported)
        self._unreported.clear()
        return [(name, dump(self._as_entry(self._own[name]))) for name in names if name in self._own]

    def take_over(self, reported: Iterable[tuple[str, str]]) -> None:
        """Keep what a worker process has reported."""
        for connection_id, line in reported:
            _put(self._of_workers, connection_id, line)


def _put(kept: dict[str, Any], key: str, value: object) -> None:
    if key not in kept and len(kept) >= MOST_KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
