"""Pings, and the time-out of peers that do not answer: one sweep for all connections, no timer for each.

Connections are looked at in slices, so that a sweep of thousands never holds the reactor up for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason
from viewport_relay.wire.connection import Connection

#: Slices of one round over all connections.
SLICES: Final = 8

#: Longest and shortest round, seconds.
_LONGEST, _SHORTEST = 2.0, 0.05

#: A tick that is later than this, seconds: the whole process stood still (a suspended machine, a stopped container).
STOOD_STILL: Final = 1.0


class Heartbeat:
    """Looks at every connection once a round. Times of `config` are milliseconds, of the clock seconds."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        connections: Callable[[], Iterable[Connection]],
        counters: Counters,
    ) -> None:
        self._clock = clock
        self._connections = connections
        self._counters = counters
        self._left: list[Connection] = []
        self._slice = 1
        self._next_tick = 0.0
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Apply the times of `config`, also while the sweep runs."""
        self._ping_interval = config.ping_interval_ms / 1000
        self._pong_timeout = config.pong_timeout_ms / 1000
        self._idle_timeout = config.idle_timeout_ms / 1000
        shortest = min(self._ping_interval, self._pong_timeout, self._idle_timeout)
        self._round = min(_LONGEST, max(_SHORTEST, shortest / 10))
        if self._loop.running:
            self.stop()
            self.start()

    def start(self) -> None:
        self._next_tick = self._clock.seconds() + self._round / SLICES
        self._loop.start(self._round / SLICES, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def _tick(self) -> None:
        if not self._left:
            self._left = list(self._connections())
            self._slice = -(-len(self._left) // SLICES) or 1
        now = self._clock.seconds()
        late, self._next_tick = now - self._next_tick, now + self._round / SLICES
        if late > STOOD_STILL:
            self._forgive(late, now)
        due, self._left = self._left[: self._slice], self._left[self._slice :]
        for connection in due:
            self.check(connection, now)

    def _forgive(self, seconds: float, now: float) -> None:
        """Extend every time limit by the `seconds` for which the process stood still: what peers sent meanwhile is not read yet."""
        for connection in self._connections():
            reader = connection.reader
            reader.last_seen = min(now, reader.last_seen + seconds)
            reader.pinged_at = min(now, reader.pinged_at + seconds)
            if reader.unanswered_since is not None:
                reader.unanswered_since = min(now, reader.unanswered_since + seconds)

    def check(self, connection: Connection, now: float) -> None:
        """Ping the connection, or drop it (wire protocol, section 8). No time limit runs while it is not read."""
        reader = connection.reader
        if connection.ending is not None or reader.paused:
            return
        unanswered = reader.unanswered_since
        if unanswered is not None and reader.last_seen > unanswered:
            reader.unanswered_since = unanswered = None
        if unanswered is not None and now - unanswered >= self._pong_timeout:
            self._counters.ws_stale_terminated += 1
            connection.cut(Reason.PONG_TIMEOUT)
        elif now - reader.last_seen >= self._idle_timeout:
            self._counters.ws_idle_terminated += 1
            connection.cut(Reason.IDLE_TIMEOUT)
        elif now - reader.pinged_at >= self._ping_interval:
            ping(connection, now)


def ping(connection: Connection, now: float) -> None:
    """Send a Ping frame (RFC 6455 section 5.5.2), unless the last one still waits to be sent."""
    reader, outbox = connection.reader, connection.outbox
    reader.pinged_at = now
    if reader.unanswered_since is None:
        reader.unanswered_since = now
    elif outbox.blocked:
        return
    outbox.ping()
