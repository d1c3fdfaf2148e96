"""A time limit on an answer from the network, which does not count the time in which this process read nothing.

Twisted runs the calls whose time has come before it reads from sockets again. After a long turn (hundreds of upgrades at once, a
machine that stood still) a plain `Deferred.addTimeout` would give up answers that have arrived long ago.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")


def add_time_limit(
    waiting: Deferred[T], seconds: float, clock: IReactorTime, expired: Callable[[Any, float], Any]
) -> Deferred[T]:
    """As `Deferred.addTimeout`; once the time is over the reactor reads once more before `waiting` is cancelled."""
    return waiting.addTimeout(seconds, _Lenient(clock), expired)  # type: ignore[arg-type]


class _Lenient:
    """A clock of which `addTimeout` uses this one method."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def callLater(self, delay: float, function: Callable[[], Any]) -> _LenientCall:
        """Call `function` in the turn of the reactor after the one in which `delay` is over."""
        return _LenientCall(self._clock, delay, function)


class _LenientCall:
    """What `addTimeout` uses of IDelayedCall."""

    def __init__(self, clock: IReactorTime, delay: float, function: Callable[[], Any]) -> None:
        self._clock = clock
        self._function = function
        self._call: IDelayedCall = clock.callLater(delay, self._once_more)

    def _once_more(self) -> None:
        self._call = self._clock.callLater(0, self._function)

    def active(self) -> bool:
        """Whether the function is still to be called."""
        return bool(self._call.active())

    def cancel(self) -> None:
        """Do not call the function."""
        self._call.cancel()
