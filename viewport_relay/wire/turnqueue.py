"""Input that waits for a later turn of the reactor, so that all connections together work a bounded time in each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime

from viewport_relay.wire.turn import turn_of

#: Seconds of work at waiting input in one turn of the reactor, for all connections together.
TURN_SECONDS: Final = 0.004

#: Seconds for which one connection works at its waiting input while others wait, within `TURN_SECONDS`.
SHARE_SECONDS: Final = 0.001

#: Seconds between two reads of a connection whose input is thrown away.
TICK_SECONDS: Final = 0.02


class TurnQueue:
    """Serves the connections that wait one after the other, for `TURN_SECONDS` in each turn of the reactor.

    A connection that wants more comes back to the end of the queue. Exceptions are the reactor's to log.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._turn = turn_of(clock)
        self._waiting: deque[Callable[[], None]] = deque()
        self._ticking: list[Callable[[], None]] = []
        self._turn_comes = False
        self._working = False

    @property
    def busy(self) -> bool:
        """Whether others are to be served before input that can wait. False for the one that is being served."""
        return self._turn_comes and not self._working

    @property
    def share(self) -> float:
        """Seconds that a connection may work at its input now."""
        return SHARE_SECONDS if self._turn_comes or self._working else TURN_SECONDS

    def add(self, work: Callable[[], None]) -> None:
        """Do the work in a later turn."""
        self._waiting.append(work)
        self.end_turn()

    def end_turn(self) -> None:
        """Be busy until the next turn: an input of this one was costly."""
        if not self._turn_comes:
            self._turn_comes = True
            self._clock.callLater(0, self._serve)

    def add_later(self, work: Callable[[], None]) -> None:
        """Do the work within `TICK_SECONDS`, together with all that was added meanwhile."""
        self._ticking.append(work)
        if len(self._ticking) == 1:
            self._clock.callLater(TICK_SECONDS, self._tick)

    def _serve(self) -> None:
        self._turn_comes = False
        self._working = True
        seconds, waiting = self._clock.seconds, self._waiting
        until = seconds() + TURN_SECONDS
        try:
            for _ in range(len(waiting)):  # those that come back meanwhile have their next turn
                waiting.popleft()()
                if seconds() >= until:
                    break
                self._look()
        finally:
            self._working = False
            if waiting:
                self.end_turn()

    def _look(self) -> None:
        """Serve the sockets that became ready meanwhile. Their input that takes long waits."""
        self._working = False
        if self._waiting:
            self.end_turn()
        self._turn.look()
        self._working = True

    def _tick(self) -> None:
        ticking, self._ticking = self._ticking, []
        for work in ticking:
            self.add(work)
