"""The end of all connections when the relay stops: in waves, so that the peers do not all come back at the same time.

    what is queued -> close 1001 "relay shutting down" -> the peer's answer | the deadline

A daemon and its clients go in the same wave, so that neither waits long for the other on the next relay.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from math import ceil
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from viewport_relay.reasons import Reason
from viewport_relay.wire.connection import Connection

#: Seconds between two waves, and the least number of connections in one: few peers need no spreading.
WAVE_SECONDS: Final = 0.1
LEAST_PER_WAVE: Final = 20

#: Seconds that connections have to be gone after they were cut.
CUT_SECONDS: Final = 1.0

#: The part of the time in which waves begin; the rest is for the last one's answers.
SPREAD: Final = 0.8


def per_wave(connections: int, seconds: float) -> int:
    """The number of connections to close at once, so that the last wave begins within the spread of `seconds`."""
    waves = max(1, int(seconds * SPREAD / WAVE_SECONDS + 1e-9))
    return max(LEAST_PER_WAVE, ceil(connections / waves))


class Drain:
    """Ends `connections`, a live set: connections that are lost meanwhile are gone from it."""

    def __init__(
        self,
        clock: IReactorTime,
        connections: AbstractSet[Connection],
        seconds: float,
        target_of: Callable[[Connection], tuple[str, str]],
    ) -> None:
        """`target_of` names the workspace and target of a connection."""
        self._target_of = target_of
        self._clock = clock
        self._connections = connections
        #: at most this long; a reload may change it
        self.seconds = seconds
        self._left: list[Connection] = []
        self._size = 0
        self._waiting = 0
        self._timers: list[IDelayedCall] = []
        self._done: Deferred[None] | None = None

    def start(self) -> Deferred[None]:
        """Begin the drain; fires when the last connection is gone. Connections left after `seconds` are cut."""
        # Sorted backwards, since waves are taken from the end.
        self._left = sorted(self._connections, key=self._key, reverse=True)
        if not self._left:
            return succeed(None)
        self._waiting = len(self._left)
        self._size = per_wave(len(self._left), self.seconds)
        done: Deferred[None] = Deferred()
        self._done = done
        for connection in self._left:
            connection.when_lost(self._one_gone)
        self._timers.append(self._clock.callLater(self.seconds, self.cut))
        self._wave()
        return done

    def _wave(self) -> None:
        ended = 0
        while self._left and ended < self._size:
            connection = self._left.pop()
            if not connection.is_lost:
                connection.close(Reason.RELAY_SHUTTING_DOWN)
                ended += 1
        if self._left:
            self._timers.append(self._clock.callLater(WAVE_SECONDS, self._wave))

    def _one_gone(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._finish()

    def cut(self) -> None:
        """Cut the connections that are left."""
        self._left.clear()
        for connection in tuple(self._connections):
            connection.cut(Reason.RELAY_SHUTTING_DOWN)
        if self._done is not None:
            self._timers.append(self._clock.callLater(CUT_SECONDS, self._finish))

    def _finish(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers.clear()
        done, self._done = self._done, None
        if done is not None:
            done.callback(None)

    def _key(self, connection: Connection) -> tuple[tuple[str, str], str]:
        return self._target_of(connection), connection.info.connection_id
