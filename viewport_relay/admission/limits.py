"""Rate windows of one minute, and counts of open connections.

A window begins with a key's first event and allows exactly as many events as the limit; a limit of 0 is off. Times are
seconds of any one clock. No I/O, no timers: tables drop old windows while they are used.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from viewport_relay.config import BY_ATTRIBUTE
from viewport_relay.reasons import Reason, Refusal

WINDOW_SECONDS: Final = 60.0
#: Most keys that one table keeps; windows that connections hold come on top.
KEYS_MAX: Final = 65_536
#: Retry-After of a refusal for want of room, seconds.
FULL_RETRY_AFTER: Final = 5

_SECOND_CHANCES: Final = 8

K = TypeVar("K", bound=Hashable)


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
        # Finds a window that a connection holds after it was dropped from `_kept`.
        self._alive: WeakValueDictionary[Hashable, Window] = WeakValueDictionary()

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
            window = self._alive.get(key)
            if window is None:
                window = self._alive[key] = Window()
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
                del self._kept[key]
            else:
                return


class WindowCounter:
    """Events by key against one limit per minute."""

    def __init__(self, limit: int, max_keys: int = KEYS_MAX) -> None:
        #: events of a key per minute; a reload may change it
        self.limit = limit
        self._table = WindowTable(max_keys)

    def __len__(self) -> int:
        """Number of keys that are kept."""
        return len(self._table)

    def hit(self, key: Hashable, now: float) -> int:
        """0 when the event is within the limit, else whole seconds (at least 1) until the window ends."""
        if self.limit <= 0:
            return 0
        window = self._table.window(key, now)
        if window.hit(now, self.limit):
            return 0
        return max(1, math.ceil(window.retry_after_ms(now) / 1000))

    def refused(self, key: Hashable, now: float) -> int:
        """How many events of the key were over the limit since its window began."""
        window = self._table.find(key)
        return 0 if window is None or window.is_over(now) else window.over

    def tried(self, key: Hashable, now: float) -> tuple[int, int]:
        """How many events of the key there were since its window began, over the limit or not, and in how many whole seconds."""
        window = self._table.window(key, now)
        return window.count + window.over, max(1, math.ceil(now - window.start))


class Ticket:
    """The place of one connection in the counts, from the start of its upgrade to its end."""

    __slots__ = ("_counts", "_ip", "_target", "_valid")

    def __init__(self, counts: ConnectionCounts, ip: str) -> None:
        self._counts = counts
        self._ip = ip
        self._target: tuple[str, str | None] | None = None
        self._valid = True

    def count_client(self, workspace_id: str, runtime_target_id: str | None) -> None:
        """Count the connection as a client of this target. Raises Refusal TOO_MANY_CLIENTS and then changes nothing.

        A second call with another target (the claims may name one that the query did not) moves the place there.
        """
        target = (workspace_id, runtime_target_id)
        if not self._valid or target == self._target:
            return
        self._counts.enter_target(target)
        if self._target is not None:
            self._counts.leave_target(self._target)
        self._target = target

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        if not self._valid:
            return
        self._valid = False
        if self._target is not None:
            self._counts.leave_target(self._target)
            self._target = None
        self._counts.leave(self._ip)


class ConnectionCounts:
    """Open connections and pending upgrades: in total, per address, and clients per (workspace, target). 0 is no limit."""

    def __init__(self, max_total: int, max_per_ip: int, max_clients: int) -> None:
        self.set_limits(max_total, max_per_ip, max_clients)
        self.total = 0
        self._per_ip: dict[str, int] = {}
        self._clients: dict[tuple[str, str | None], int] = {}

    def set_limits(self, max_total: int, max_per_ip: int, max_clients: int) -> None:
        """Set new limits; connections that are over them stay."""
        self._max_total = max_total
        self._max_per_ip = max_per_ip
        self._max_clients = max_clients

    def take(self, ip: str) -> Ticket:
        """Take a place for one upgrade of this address, given as `addresses.counted_as` writes it.

        Raises Refusal TOO_MANY_CONNECTIONS or TOO_MANY_CONNECTIONS_PER_IP.
        """
        if 0 < self._max_total <= self.total:
            detail = f"{self.total} connections, RELAY_MAX_TOTAL_CONNECTIONS or the limit on open files allows {self._max_total}"
            raise Refusal(Reason.TOO_MANY_CONNECTIONS, detail, FULL_RETRY_AFTER)
        of_ip = self._per_ip.get(ip, 0)
        if 0 < self._max_per_ip <= of_ip:
            limit = BY_ATTRIBUTE["max_connections_per_ip"].in_words(self._max_per_ip)
            detail = f"{of_ip} connections, {limit}"
            raise Refusal(Reason.TOO_MANY_CONNECTIONS_PER_IP, detail, FULL_RETRY_AFTER)
        self.total += 1
        self._per_ip[ip] = of_ip + 1
        return Ticket(self, ip)

    def of_address(self, ip: str) -> int:
        """Connections of one address."""
        return self._per_ip.get(ip, 0)

    def clients_of(self, workspace_id: str, runtime_target_id: str | None) -> int:
        """Clients of one target."""
        return self._clients.get((workspace_id, runtime_target_id), 0)

    def leave(self, ip: str) -> None:
        """Called by tickets."""
        self.total -= 1
        _decrease(self._per_ip, ip)

    def enter_target(self, target: tuple[str, str | None]) -> None:
        """Called by tickets."""
        clients = self._clients.get(target, 0)
        if 0 < self._max_clients <= clients:
            limit = BY_ATTRIBUTE["max_clients_per_workspace"].in_words(self._max_clients)
            detail = f"{clients} clients, {limit}"
            raise Refusal(Reason.TOO_MANY_CLIENTS, detail, FULL_RETRY_AFTER)
        self._clients[target] = clients + 1

    def leave_target(self, target: tuple[str, str | None]) -> None:
        """Called by tickets."""
        _decrease(self._clients, target)


def _decrease(counts: dict[K, int], key: K) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
