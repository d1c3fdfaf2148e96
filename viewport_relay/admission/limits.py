"""Limits by key: events per minute, and counts of open connections. No I/O, no timers; times are seconds of any one clock."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final, TypeVar

from attrs import frozen

from viewport_relay.config import BY_ATTRIBUTE
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.windows import WindowTable

#: Retry-After of a refusal for a limit on connections, seconds.
FULL_RETRY_AFTER: Final = 5

K = TypeVar("K", bound=Hashable)


def total_limit(number: int) -> str:
    """The limit on all connections in words. Where few files may be open, `number` is less than the setting."""
    setting = BY_ATTRIBUTE["max_total_connections"]
    return f"{setting.name} (default {setting.shown_default}) or the limit on open files allows {number}"


@frozen
class UpgradeLimits:
    """Limits of upgrades and connections; 0 is no limit.

    `attempts` of an address per minute, `total` and `per_ip` connections, `clients` of one target.
    """

    attempts: int = 0
    total: int = 0
    per_ip: int = 0
    clients: int = 0


class WindowCounter:
    """Events by key against one limit per minute."""

    def __init__(self, limit: int) -> None:
        #: events of a key per minute; a reload may change it
        self.limit = limit
        self._table = WindowTable()

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
        """The number of the key's events over the limit since its window began."""
        window = self._table.find(key)
        return 0 if window is None or window.is_over(now) else window.over

    def tried(self, key: Hashable, now: float) -> tuple[int, int]:
        """The number of the key's events since its window began, over the limit or not, and the whole seconds since then."""
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

    def __init__(self, limits: UpgradeLimits) -> None:
        #: may be replaced; connections that are over new limits stay
        self.limits = limits
        self.total = 0
        self._per_ip: dict[str, int] = {}
        self._clients: dict[tuple[str, str | None], int] = {}

    def take(self, ip: str) -> Ticket:
        """Take a place for one upgrade of this address, given as `addresses.counted_as` writes it.

        Raises Refusal TOO_MANY_CONNECTIONS or TOO_MANY_CONNECTIONS_PER_IP.
        """
        limits = self.limits
        if 0 < limits.total <= self.total:
            detail = f"{self.total} connections, {total_limit(limits.total)}"
            raise Refusal(Reason.TOO_MANY_CONNECTIONS, detail, FULL_RETRY_AFTER)
        of_ip = self._per_ip.get(ip, 0)
        if 0 < limits.per_ip <= of_ip:
            limit = BY_ATTRIBUTE["max_connections_per_ip"].in_words(limits.per_ip)
            detail = f"{of_ip} connections, {limit}"
            raise Refusal(Reason.TOO_MANY_CONNECTIONS_PER_IP, detail, FULL_RETRY_AFTER)
        self.total += 1
        self._per_ip[ip] = of_ip + 1
        return Ticket(self, ip)

    def leave(self, ip: str) -> None:
        """Called by tickets."""
        self.total -= 1
        _decrease(self._per_ip, ip)

    def enter_target(self, target: tuple[str, str | None]) -> None:
        """Called by tickets."""
        clients = self._clients.get(target, 0)
        if 0 < self.limits.clients <= clients:
            limit = BY_ATTRIBUTE["max_clients_per_workspace"].in_words(self.limits.clients)
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
