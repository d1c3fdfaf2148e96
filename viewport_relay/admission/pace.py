"""The pace of token checks: a bounded number in each turn of the reactor.

When a relay is lost its peers come to another one within a second, and hundreds of upgrades are readable at once. Verified in
one turn, their signatures would keep the relay from everything else for a second or more: from frames, from the answers of
the platform and of Redis, whose time limits run meanwhile.

The pace also makes batches: with many upgrades at a time, up to `PER_TURN` tokens are verified and asked about one
after the other, while that code is in the processor's caches.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Verifications of one turn: about 5 ms, and more per second than one relay can admit.
PER_TURN: Final = 16


class Pace:
    """Lets at most `PER_TURN` callers go on in each turn of the reactor, in the order in which they came.

    Where few come at a time, one of `PER_TURN` waits for the next turn, and the others cost no timer.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._left = PER_TURN
        self._waiting: deque[Deferred[None]] = deque()
        self._next: IDelayedCall | None = None

    async def turn(self) -> None:
        """Return when the caller may go on: at once if it can. Cancelling gives up the place."""
        if self._left:
            self._left -= 1
            return
        if self._next is None:
            self._next = self._clock.callLater(0, self._next_turn)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        await waiting

    def stop(self) -> None:
        """Cancel the waiting callers."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._waiting:
            self._waiting.popleft().cancel()

    def _next_turn(self) -> None:
        self._next = None
        self._left = PER_TURN
        while self._waiting and self._left:
            waiting = self._waiting.popleft()
            if not waiting.called:  # else it was cancelled
                self._left -= 1
                waiting.callback(None)
        if self._waiting:
            self._next = self._clock.callLater(0, self._next_turn)
