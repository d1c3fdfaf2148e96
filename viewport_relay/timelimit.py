"""Time limits that are cheap to set and to cancel, and that expire only after the reactor has read from its sockets.

Twisted runs the calls whose time has come before it reads from sockets again. After a long turn (hundreds of upgrades
at once, a machine that stood still) a plain `callLater` would expire before answers are read that have arrived
already. And each upgrade sets several limits of which none is reached: entries in the reactor's heap would cost more
than what they guard.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime


class TimeLimits:
    """A clock for calls that are nearly always cancelled. The reactor has one delayed call for each delay, however many wait.

    Once the time of a call is over, the reactor reads from its sockets once more before it makes the call.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        #: whether the reactor's delayed call is kept for up to its delay when no call waits, and serves the next limit
        self.idle = True
        self._queues: dict[float, _Queue] = {}

    def callLater(self, delay: float, function: Callable[..., object], *args: object) -> TimeLimit:
        """Call `function(*args)` after `delay` seconds. The result has the usual methods of IDelayedCall."""
        return TimeLimit(self, delay, function, args)

    def stop(self) -> None:
        """From now on cancel each delayed call of the reactor as soon as no call waits for its time."""
        self.idle = False
        for queue in self._queues.values():
            queue.rest()

    def queue(self, delay: float) -> _Queue:
        """The calls of this delay."""
        queue = self._queues.get(delay)
        if queue is None:
            queue = self._queues[delay] = _Queue(self, delay)
        return queue


class TimeLimit:
    """One call of `TimeLimits`."""

    __slots__ = ("_args", "_call", "_function", "_limits", "_queue", "at")

    def __init__(
        self, limits: TimeLimits, delay: float, function: Callable[..., object], args: tuple[object, ...]
    ) -> None:
        self._limits = limits
        self._function = function
        self._args = args
        self._call: IDelayedCall | None = None  # once the time is over
        self._queue: _Queue | None = None
        self.at = 0.0  # when the time is over, in the clock's seconds
        self._wait(delay)

    def _wait(self, delay: float) -> None:
        if delay <= 0:
            self.over()
        else:
            self._queue = self._limits.queue(delay)
            self._queue.add(self)

    def over(self) -> None:
        """The time is over: make the call when the reactor has read once more."""
        self._queue = None
        self._call = self._limits.clock.callLater(0, self._function, *self._args)

    def active(self) -> bool:
        """Whether the function is still to be called."""
        return self._queue is not None or (self._call is not None and bool(self._call.active()))

    def cancel(self) -> None:
        """Do not call the function. Raises AlreadyCalled and AlreadyCancelled as IDelayedCall does."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.remove(self)
        elif self._call is not None:
            self._call.cancel()
        else:
            raise AlreadyCancelled

    def reset(self, delay: float) -> None:
        """Call the function `delay` seconds from now."""
        if not self.active():
            raise AlreadyCalled
        self.cancel()
        self._wait(delay)


class _Queue:
    """The calls of one delay, in the order in which their times come."""

    __slots__ = ("_delay", "_limits", "_timer", "_waiting")

    def __init__(self, limits: TimeLimits, delay: float) -> None:
        self._limits = limits
        self._delay = delay
        self._waiting: dict[TimeLimit, None] = {}
        self._timer: IDelayedCall | None = None

    def add(self, limit: TimeLimit) -> None:
        clock = self._limits.clock
        limit.at = clock.seconds() + self._delay
        self._waiting[limit] = None
        if self._timer is None:
            self._timer = clock.callLater(self._delay, self._look)

    def remove(self, limit: TimeLimit) -> None:
        del self._waiting[limit]
        if not self._limits.idle:
            self.rest()

    def rest(self) -> None:
        """Cancel the delayed call of the reactor if no call waits."""
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        clock = self._limits.clock
        now = clock.seconds()
        while self._waiting:
            first = next(iter(self._waiting))
            if first.at > now:
                self._timer = clock.callLater(first.at - now, self._look)
                return
            del self._waiting[first]
            first.over()
