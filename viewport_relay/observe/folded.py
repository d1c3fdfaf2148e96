"""Folded entries by connection id: a refused peer's user knows that id, though its entry was counted and not written."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from viewport_relay.observe.entry import LogEntry, dump

#: Most entries that are kept, of this process and of its workers each; the oldest is dropped first.
MOST_KEPT = 4096

#: Most entries that one report of a worker process hands over.
MOST_REPORTED = 64


class FoldedEntries:
    """The latest folded entries. `as_json` makes the JSON object of one, which most are never asked for."""

    def __init__(self, as_json: Callable[[LogEntry], dict[str, Any]]) -> None:
        self._as_json = as_json
        self._own: dict[str, LogEntry] = {}
        self._unreported: deque[str] = deque(maxlen=MOST_REPORTED)
        self._of_workers: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._own) + len(self._of_workers)

    def keep(self, entry: LogEntry) -> None:
        """Keep an entry of this process, if it is about a connection."""
        if entry.connection_id is not None:
            _put(self._own, entry.connection_id, entry)
            self._unreported.append(entry.connection_id)

    def get(self, connection_id: str) -> dict[str, Any] | None:
        """The entry of a connection as a JSON object, or None."""
        entry = self._own.get(connection_id)
        if entry is not None:
            return self._as_json(entry)
        line = self._of_workers.get(connection_id)
        return None if line is None else dict(json.loads(line))

    def report(self) -> list[tuple[str, str]]:
        """The latest entries of this process since the last call: connection id, and the entry's JSON text."""
        names = list(self._unreported)
        self._unreported.clear()
        return [(name, dump(self._as_json(self._own[name]))) for name in names if name in self._own]

    def take_over(self, reported: Iterable[tuple[str, str]]) -> None:
        """Keep what a worker process has reported."""
        for connection_id, line in reported:
            _put(self._of_workers, connection_id, line)


def _put(kept: dict[str, Any], key: str, value: object) -> None:
    if key not in kept and len(kept) >= MOST_KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
