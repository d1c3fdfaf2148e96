"""Counts of the last minutes."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Seconds that "lately" covers, and the width of one slot of counts.
SPAN: Final = 300.0
_SLOT: Final = 10.0


class Recent:
    """Counts within the last SPAN seconds, in slots of 10 s."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque(maxlen=int(SPAN / _SLOT) + 1)

    def add(self, at: float) -> None:
        slot = int(at / _SLOT)
        if not self._slots or self._slots[-1][0] < slot:
            self._slots.append([slot, 0])
        self._slots[-1][1] += 1

    def shift(self, seconds: float) -> None:
        """Move all times: the wall clock was set."""
        for entry in self._slots:
            entry[0] += round(seconds / _SLOT)

    def total(self, at: float) -> int:
        """Counts of the last SPAN seconds before `at` (seconds since the epoch)."""
        oldest = int((at - SPAN) / _SLOT)
        return sum(count for slot, count in self._slots if slot > oldest)
