"""A fair queue for the input of peers that are not admitted yet: bounded work in each turn of the reactor, in turn by address.

TLS handshakes, request heads and plain HTTP answers go through one queue for each process. So a burst of them delays the
frames of admitted peers by `reactor.TALK_LOOK_SECONDS`, or `LOOK_SECONDS`, and one piece of work at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from viewport_relay.wire.turn import turn_of

#: Seconds of queued work in one turn of the reactor; the piece that passes this bound is the last. A request takes about
#: 0.1 ms of CPU, a TLS handshake 0.4 ms.
SHARE_SECONDS: Final = 0.002

_Work = Callable[[], None]


class FairQueue:
    """Runs pieces of work in turn by key, for `SHARE_SECONDS` in each turn of the reactor.

    Work that comes when nothing waits, and nothing was run in this turn, is run at once. The caller bounds the number of
    pieces that wait. Exceptions are the caller's.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._turn = turn_of(clock)
        self._waiting: dict[str, deque[_Work]] = {}  # the key that is served next is the first
        self._running: str | None = None
        self._comes = False  # whether `_serve` will be called

    def run(self, key: str, work: _Work) -> None:
        """Run `work` now or in a later turn."""
        if not self._comes:
            self._comes = True
            self._turn.later(self._serve)
            self._run(key, work)
        else:
            self._waiting.setdefault(key, deque()).append(work)

    def turn(self, key: str) -> Deferred[None]:
        """Fires when it is this waiter's turn: at once within work of the same key. A cancelled waiter takes no turn."""
        if self._running == key:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self.run(key, partial(waiter.callback, None))  # no-op for a waiter that was cancelled
        return waiter

    def stop(self) -> None:
        """Drop all work that waits."""
        self._waiting.clear()

    def _run(self, key: str, work: _Work) -> None:
        self._running = key
        try:
            work()
        finally:
            self._running = None

    def _serve(self) -> None:
        until = self._clock.seconds() + SHARE_SECONDS
        try:
            while self._waiting:
                key = next(iter(self._waiting))
                works = self._waiting.pop(key)
                work = works.popleft()
                if works:
                    self._waiting[key] = works  # behind every other key
                self._run(key, work)
                self._turn.look()
                if self._clock.seconds() >= until:
                    break
        finally:
            self._comes = bool(self._waiting)
            if self._waiting:
                self._turn.later(self._serve)
