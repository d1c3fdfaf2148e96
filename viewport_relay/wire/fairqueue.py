"""A fair queue for the input of peers that are not admitted yet: TLS handshakes, request heads and plain HTTP answers.

There is one queue for each process. One piece of it is one piece of the reactor's work of low priority (`Turn.later`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from viewport_relay.wire.turn import turn_of

_Work = Callable[[], None]


class FairQueue:
    """Runs pieces of work in turn by key.

    Work that comes when nothing waits, and nothing was run in this turn, is run at once. The caller bounds the number of
    pieces that wait, a request of about 0.1 ms of CPU or a TLS handshake of 0.4 ms each. Exceptions are the caller's.
    """

    def __init__(self, clock: IReactorTime) -> None:
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
        self._comes = bool(self._waiting)
        if not self._waiting:
            return
        self._turn.later(self._serve)
        key = next(iter(self._waiting))
        works = self._waiting.pop(key)
        work = works.popleft()
        if works:
            self._waiting[key] = works  # behind every other key
        self._run(key, work)
