"""A fair queue for work that must not crowd out the frame path: one piece at a time, at a bounded rate, by address."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between two pieces of work while some is queued. One plain request takes about 0.3 ms of CPU.
INTERVAL: Final = 0.002


class FairQueue:
    """Serves waiters one at a time, at most one each `interval` seconds, in turn by key.

    A waiter that comes when nothing is queued and nothing was served within the interval is served at once. The
    caller bounds the number of waiters. Cancelling a waiter's Deferred takes the waiter out.
    """

    def __init__(self, clock: IReactorTime, interval: float = INTERVAL) -> None:
        self._clock = clock
        self._interval = interval
        self._waiting: dict[str, deque[Deferred[None]]] = {}  # the key that is served next is the first
        self._served = -math.inf
        self._timer: IDelayedCall | None = None

    def turn(self, key: str) -> Deferred[None]:
        """Fires when it is this waiter's turn."""
        now = self._clock.seconds()
        if self._timer is None and not 0.0 <= now - self._served < self._interval:
            self._served = now
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiting.setdefault(key, deque()).append(waiter)
        if self._timer is None:
            self._timer = self._clock.callLater(self._interval, self._serve)
        return waiter

    def stop(self) -> None:
        """Cancel every waiter."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        for queue in waiting.values():
            for waiter in queue:
                waiter.cancel()

    def _serve(self) -> None:
        self._timer = None
        waiter = self._next()
        if waiter is not None:
            self._served = self._clock.seconds()
            self._timer = self._clock.callLater(self._interval, self._serve)
            waiter.callback(None)

    def _next(self) -> Deferred[None] | None:
        """Take out the next waiter that was not cancelled."""
        while self._waiting:
            key = next(iter(self._waiting))
            queue = self._waiting.pop(key)
            waiter = queue.popleft()
            if queue:
                self._waiting[key] = queue  # behind every other key
            if not waiter.called:
                return waiter
        return None
