"""The queue of requests to the platform: some are in flight, the others wait in order.

When a relay is lost its peers come to another one within a second, and each brings a token that is new there. Asked about
all at once, a platform answers none of them in time, and all of them come again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.httpcall import TimedOut

T = TypeVar("T")

#: Requests in flight at most. A platform that takes 50 ms for each answers 1,280 a second, more than one relay can admit.
IN_FLIGHT_MAX: Final = 64

_HINT: Final = (
    "the platform does not answer the requests before this one: look at its load and the network to it"
)


class PlatformQueue:
    """Runs requests, `IN_FLIGHT_MAX` at a time. `limit` is the seconds that each may take once it is sent.

    A request waits for as long as the platform answers those before it. When one of them times out, those that have
    waited for `limit` time out with it: no request waits for more than twice `limit`.
    """

    def __init__(self, clock: IReactorTime, limit: float) -> None:
        self._clock = clock
        self._limit = limit
        self._in_flight = 0
        self._waiting: dict[Deferred[None], float] = {}  # since when, the longest first

    async def run(self, request: Callable[[], Awaitable[T]]) -> T:
        """The result of `request`, called when it is its turn. Raises what that raises, and TimedOut.

        Cancelling it gives up the place in the queue, or the request.
        """
        if self._in_flight < IN_FLIGHT_MAX:
            self._in_flight += 1
        else:
            await self._turn()
        try:
            return await request()
        except TimedOut:
            self._give_up()
            raise
        finally:
            self._done()

    async def _turn(self) -> None:
        """Wait for the place of a request that has ended."""
        turn: Deferred[None] = Deferred()
        self._waiting[turn] = self._clock.seconds()
        try:
            await turn
        except CancelledError:
            if self._waiting.pop(turn, None) is not None:  # the caller's own cancellation
                raise
            raise TimedOut("time out in the queue of requests", hint=_HINT) from None

    def _done(self) -> None:
        """Give the place to the request that has waited longest."""
        for turn in self._waiting:
            del self._waiting[turn]
            turn.callback(None)
            return
        self._in_flight -= 1

    def _give_up(self) -> None:
        """Time out the requests that have waited for `limit`."""
        now = self._clock.seconds()
        for turn, since in tuple(self._waiting.items()):
            if now - since < self._limit:
                break
            del self._waiting[turn]
            turn.cancel()
