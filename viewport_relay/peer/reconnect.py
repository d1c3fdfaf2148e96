"""Keep a peer connected: connect, and after a loss connect again with a fresh token and a growing pause.

Pauses double from a first one up to a cap and are jittered, so that peers that lost the same relay do not
come back in step; a connection that stayed up for a while starts the count anew. Some ends are final: trying
again with the same grant could only be refused again.

What it does not do: the connection itself (`connection`), repeating frames that were lost with it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.error import ConnectError, ConnectionLost, DNSLookupError
from twisted.internet.task import deferLater

from viewport_relay.peer.connection import LINK_TIMEOUT, Connection, connect
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.upgrade import Closed, ClosedEarly, Destination, UpgradeRefused

# 1000: we or the relay are done. 1002, 1007: our own fault, it would repeat. 4401, 4403: the grant is no
# good (but see INVALID_TOKEN). 4008 is the relay's policy close; only these of its reasons are passing.
FINAL_CLOSE_CODES = frozenset({1000, 1002, 1007, 4401, 4403})
# Also the end of an open connection whose token has expired: a new token is tried once before it counts as final.
INVALID_TOKEN = 4401
PASSING_POLICY_REASONS = frozenset(
    {"buffer overflow", "daemon already connected", "Noise handshake failed: timeout", LINK_TIMEOUT}
)
PASSING_POLICY_ENDING = "rate limit exceeded"
PASSING_STATUS = frozenset({429, 502, 503, 504})

TokenProvider = Callable[[], Awaitable[str | None]]


class TokenUnavailable(Exception):
    """A token provider raises this when it has no token now but may have one later."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Pauses between attempts, all in seconds.

    `first` doubles up to `cap`, each shortened by up to `jitter` (a part, 0-1). A connection that stayed up
    for `stable` seconds resets the count.
    """

    first: float = 0.5
    cap: float = 30.0
    jitter: float = 0.5
    stable: float = 30.0

    def pause(self, failures: int, draw: float) -> float:
        """The pause after `failures` >= 1 failures in a row; `draw` is a random number in [0, 1)."""
        full = min(self.cap, self.first * 2.0 ** min(failures - 1, 64))
        return full * (1.0 - self.jitter * draw)


def may_return(closed: Closed) -> bool:
    """Whether connecting again with a fresh token can help after this close."""
    if closed.code == 4008:
        return closed.reason in PASSING_POLICY_REASONS or closed.reason.endswith(PASSING_POLICY_ENDING)
    return closed.code not in FINAL_CLOSE_CODES


class PersistentConnection:
    """A connection that comes back.

    `on_open` is called for each new connection before any of its frames reach `on_frame`. `ended` fires with
    the last close, or fails with the UpgradeRefused, ClosedEarly or other error that made another attempt
    pointless.
    """

    def __init__(
        self,
        reactor: Any,
        destination: Destination,
        token: TokenProvider,
        on_frame: Callable[[str], None],
        *,
        on_open: Callable[[Connection], None] | None = None,
        on_loss: Callable[[Closed], None] | None = None,
        back_off: BackOff | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._destination = destination
        self._token = token
        self._on_frame = on_frame
        self._on_open = on_open
        self._on_loss = on_loss
        self._back_off = back_off or BackOff()
        self._draw = draw
        self._connection: Connection | None = None
        self._waiting: list[Deferred[Connection]] = []
        self._stopping = False
        self._loop: Deferred[Closed] | None = None
        self.ended: Deferred[Closed] = Deferred()
        self.connections = 0

    def start(self) -> None:
        """Begin to connect; call once."""
        self._loop = ensureDeferred(self._run())
        self._loop.addBoth(self._finish)

    def _finish(self, result: Any) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.errback(PeerError(Code.NOT_CONNECTED, "the connection will not come back"))
        self.ended.callback(result)

    async def opened(self) -> Connection:
        """The open connection, at once or when there is one.

        Raises PeerError NOT_CONNECTED if there never will be one.
        """
        if self._connection is not None:
            return self._connection
        if self.ended.called:
            raise PeerError(Code.NOT_CONNECTED, "the connection will not come back")
        waiter: Deferred[Connection] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return await waiter

    def send(self, text: str) -> None:
        """Send on the open connection (PeerError NOT_CONNECTED between two of them)."""
        if self._connection is None:
            raise PeerError(Code.NOT_CONNECTED, "not connected now")
        self._connection.send(text)

    def stop(self) -> None:
        """Close for good; `ended` fires when the connection is gone."""
        self._stopping = True
        if self._connection is not None:
            self._connection.close()
        elif self._loop is not None:
            self._loop.cancel()

    async def _run(self) -> Closed:
        failures = 0
        renewed = False  # whether this attempt's token was fetched because the one before was no longer good
        while True:
            connected_at = self._reactor.seconds()
            try:
                closed = await self._one()
            except CancelledError:
                if not self._stopping:
                    raise
                return Closed(1000, "stopped")
            # Checked whatever the attempt said: a cancelled name look-up comes as a failed one.
            if self._stopping:
                return closed or Closed(1000, "stopped")
            lasted = self._reactor.seconds() - connected_at
            stable = closed is not None and lasted >= self._back_off.stable
            expired = closed is not None and closed.code == INVALID_TOKEN
            if closed is not None and not may_return(closed) and (renewed or not expired):
                return closed
            renewed = expired and not stable
            failures = 1 if stable else failures + 1
            try:
                pause = self._back_off.pause(failures, self._draw())
                await deferLater(self._reactor, pause, lambda: None)
            except CancelledError:
                return Closed(1000, "stopped")

    async def _one(self) -> Closed | None:
        """One attempt: how its connection closed, or None when there was none but the next may succeed."""
        try:
            token = await self._token()
            connection = await connect(self._reactor, self._destination, token, self._on_frame)
        except UpgradeRefused as refused:
            if refused.status not in PASSING_STATUS:
                raise
            return None
        except ClosedEarly as early:
            if not may_return(early.closed):
                raise
            return None
        except (ConnectError, ConnectionLost, DNSLookupError, TokenUnavailable):
            return None
        self.connections += 1
        self._connection = connection
        if self._on_open is not None:
            self._on_open(connection)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(connection)
        try:
            closed = await connection.closed
        finally:
            self._connection = None
        if self._on_loss is not None:
            self._on_loss(closed)
        return closed
