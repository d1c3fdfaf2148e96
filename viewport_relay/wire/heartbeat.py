"""Pings, and the end of peers that show no life: one sweep for all connections, no timer for each.

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
from viewport_relay.wire.websocket import Connection

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
        self._ping_interval = config.ping_interval_ms / 1000
        self._pong_timeout = config.pong_timeout_ms / 1000
        self._idle_timeout = config.idle_timeout_ms / 1000
        shortest = min(self._ping_interval, self._pong_timeout, self._idle_timeout)
        self._round = min(_LONGEST, max(_SHORTEST, shortest / 10))
        self._clock = clock
        self._connections = connections
        self._counters = counters
        self._left: list[Connection] = []
        self._slice = 1
        self._next_tick = 0.0
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

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
        """What peers sent while we stood still is not read yet: that time counts against nobody."""
        for connection in self._connections():
            connection.last_seen = min(now, connection.last_seen + seconds)
            connection.pinged_at = min(now, connection.pinged_at + seconds)
            if connection.unanswered_since is not None:
                connection.unanswered_since = min(now, connection.unanswered_since + seconds)

    def check(self, connection: Connection, now: float) -> None:
        """Ping the connection, or drop it (wire contract, section 4). Whom we do not read, no clock runs against."""
        if connection.ending is not None or connection.paused or connection.state != connection.STATE_OPEN:
            return
        unanswered = connection.unanswered_since
        if unanswered is not None and connection.last_seen > unanswered:
            connection.unanswered_since = unanswered = None
        if unanswered is not None and now - unanswered >= self._pong_timeout:
            self._counters.ws_stale_terminated += 1
            connection.cut(Reason.PONG_TIMEOUT)
        elif now - connection.last_seen >= self._idle_timeout:
            self._counters.ws_idle_terminated += 1
            connection.cut(Reason.IDLE_TIMEOUT)
        elif now - connection.pinged_at >= self._ping_interval:
            connection.ping(now)
