"""Rate windows of one minute, by key.

A window begins with a key's first event and allows exactly as many events as the limit; a limit of 0 is off. Times are
seconds of any one clock. No I/O, no timers: tables drop old windows while they are used.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final
from weakref import WeakValueDictionary

WINDOW_SECONDS: Final = 60.0
#: Most keys that one table keeps; windows that connections hold come on top.
KEYS_MAX: Final = 65_536

_SECOND_CHANCES: Final = 8


class Window:
    """The current minute of one key. Connections of the same key share the window and charge it without a look-up."""

    __slots__ = ("__weakref__", "count", "filed", "over", "start")

    def __init__(self) -> None:
        self.start = -math.inf
        self.count = 0
        self.over = 0  # events that were not charged, since `start`
        self.filed = -math.inf  # `start` when the table last looked

    def hit(self, now: float, limit: int) -> bool:
        """Charge one event; False when it is over the limit (and then not charged)."""
        if limit <= 0:
            return True
        if not 0.0 <= now - self.start < WINDOW_SECONDS:  # also when the clock was set back
            self.start = now
            self.count = self.over = 0
        if self.count >= limit:
            self.over += 1
            return False
        self.count += 1
        return True

    def hits(self, events: int, now: float, limit: int) -> int:
        """Charge several events; how many were within the limit (the others are not charged)."""
        if limit <= 0:
            return events
        self._renew(now)
        taken = min(events, max(0, limit - self.count))
        self.count += taken
        self.over += events - taken
        return taken

    def spend(self, now: float, amount: int, limit: int) -> bool:
        """Charge an event of this size; False when the window's sum would be over the limit (and then not charged)."""
        self._renew(now)
        if self.count + amount > limit:
            self.over += 1
            return False
        self.count += amount
        return True

    def _renew(self, now: float) -> None:
        if self.is_over(now):
            self.start = now
            self.count = self.over = 0

    def retry_after_ms(self, now: float) -> int:
        """Milliseconds until the window ends, at least 1."""
        left = self.start + WINDOW_SECONDS - now
        return max(1, math.ceil(left * 1000)) if left > 0 else 1

    def is_over(self, now: float) -> bool:
        """Whether the next event begins a new window."""
        return not 0.0 <= now - self.start < WINDOW_SECONDS


class WindowTable:
    """Windows by key, at most `max_keys` beside those that connections hold: ended ones go first, then the oldest."""

    def __init__(self, max_keys: int = KEYS_MAX) -> None:
        self._max_keys = max_keys
        self._kept: dict[Hashable, Window] = {}  # roughly in order of their start
        # Windows that were dropped from `_kept` while a connection held them.
        self._held: WeakValueDictionary[Hashable, Window] = WeakValueDictionary()

    def __len__(self) -> int:
        """Number of keys that are kept."""
        return len(self._kept)

    def find(self, key: Hashable) -> Window | None:
        """The window of this key, if the table keeps one."""
        return self._kept.get(key)

    def window(self, key: Hashable, now: float) -> Window:
        """The window of this key: the same object as long as a connection holds it or the table keeps it."""
        window = self._kept.get(key)
        if window is None:
            window = self._held.get(key) or Window()
            self._make_room(now)
            window.filed = max(window.start, now)  # it is about to be used
            self._kept[key] = window
        return window

    def _make_room(self, now: float) -> None:
        chances = _SECOND_CHANCES
        while self._kept:
            key = next(iter(self._kept))
            window = self._kept[key]
            over = window.is_over(now)
            if chances and not over and window.start > window.filed:
                # The window has begun anew since it was filed: it is younger than its place in the order.
                chances -= 1
                window.filed = window.start
                self._kept[key] = self._kept.pop(key)
            elif len(self._kept) >= self._max_keys or (over and now - window.filed >= WINDOW_SECONDS):
                self._held[key] = self._kept.pop(key)
            else:
                return
