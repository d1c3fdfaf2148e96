"""The kinds of Twisted services that the relay adds: periodic calls, and a stop that waits, within a time limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.application.internet import TimerService
from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")


def every(
    parent: IServiceCollection, clock: IReactorTime, seconds: float, call: Callable[[], object]
) -> TimerService:
    """Call every `seconds` while the parent runs, the first time at its start."""
    timer = TimerService(seconds, call)
    timer.clock = clock
    timer.setServiceParent(parent)
    return timer


def with_deadline(
    clock: IReactorTime, seconds: float, ending: Deferred[T], late: Callable[[], object]
) -> Deferred[T]:
    """Call `late` if `ending` does not fire within `seconds`. Returns `ending`, which is still waited for."""
    timer = clock.callLater(seconds, late)

    def ended(result: T) -> T:
        if timer.active():
            timer.cancel()
        return result

    return ending.addBoth(ended)


class WaitingService(MultiService):
    """A service whose stop is a coroutine. It runs once, however often the service is stopped."""

    _stopping: Deferred[None] | None = None

    async def end(self) -> None:
        """Stop the children, and wait for them within a time limit."""
        await MultiService.stopService(self)

    def startService(self) -> None:
        self._stopping = None
        MultiService.startService(self)

    def stopService(self) -> Deferred[None]:
        """Fires when nothing of the service is left."""
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self.end())
        waiting: Deferred[None] = Deferred()
        self._stopping.chainDeferred(waiting)
        return waiting
