"""One upgraded WebSocket connection: a reader, an outbox and a life, and the handler that it is for.

    peer  -> relay   text (or binary, taken as text): one frame of section 3 each; with a Noise link, records
    relay -> peer    the same, pings, pongs, and at the end one Close frame

`connection.close(reason)` is the one way to close. The connection decides nothing about frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import LINK_SUBPROTOCOL
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.codec import CodecFactory
from viewport_relay.wire.ending import Ending
from viewport_relay.wire.fastpath import FastReader
from viewport_relay.wire.interfaces import Handler, LinkCipher, StreamTransport
from viewport_relay.wire.life import Core, LifeInputs, begin
from viewport_relay.wire.linkoutbox import LinkOutbox
from viewport_relay.wire.linkreader import LinkReader
from viewport_relay.wire.outbox import Outbox
from viewport_relay.wire.pausing import Shared
from viewport_relay.wire.reader import Reader
from viewport_relay.wire.turn import Turn
from viewport_relay.wire.turnqueue import TurnQueue

_LOST: Final = Ending(None, "connection lost")


@define(eq=False)
class ConnectionInfo:
    """Facts about a connection's peer for logs and `/state`."""

    connection_id: str
    ip: str
    version: str | None = None  # the User-Agent, cut
    subprotocol: str | None = None
    noise: str = "none"  # the link's pattern, once it is up

    @property
    def link(self) -> bool:
        """Whether the peer chose the Noise link."""
        return self.subprotocol == LINK_SUBPROTOCOL


class Connection:
    """An upgraded connection. Made by `ConnectionFactory.open`, whose caller sets `handler`."""

    __slots__ = ("__weakref__", "_core", "_factory", "_gone", "_life", "_when_lost", "handler", "info", "outbox", "reader")  # fmt: skip

    def __init__(self, factory: ConnectionFactory, transport: StreamTransport, info: ConnectionInfo) -> None:
        self._factory = factory
        self.info = info
        self.handler: Handler | None = None
        outbox = LinkOutbox if info.link else Outbox
        self.outbox: Outbox = outbox(factory.turn, transport, self._may_wait)
        self.reader: Reader = factory.reader(self, transport)
        self._when_lost: list[Callable[[], None]] = []
        self._gone = False
        self._core = Core(factory.clock, factory.turn, transport, self.outbox, self)
        self._life: LifeInputs = begin(self._core)

    @property
    def ending(self) -> Ending | None:
        """Why the connection has ended; None: it is open."""
        return self._core.ending

    @property
    def is_lost(self) -> bool:
        """Whether the TCP connection is gone."""
        return self._core.machine is None

    def start(self, early: bytes) -> None:
        """Handle what came before the 101, then read on."""
        if early:
            self.dataReceived(early)
        self.reader.begin()

    def link_up(self, cipher: LinkCipher, refuse: Callable[[Refusal], None]) -> None:
        """Send messages as a Noise link's records from now on, and read them without the codec where that is possible.

        What `cipher` raises goes to `refuse`, which closes. `reader.unwrap` opens what comes through the codec.
        """
        assert isinstance(self.outbox, LinkOutbox)
        self.outbox.link_up(cipher, refuse)
        self.reader.link_up(cipher, refuse)

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the TCP connection is lost."""
        self._when_lost.append(callback)

    # -- the end -----------------------------------------------------------------------------------------------

    def close(
        self,
        reason: Reason,
        detail: str = "",
        *,
        reply: str | None = None,
        logged_as: Reason | None = None,
        delay: float = 0.0,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Close the connection: what is queued goes first, then `reply`, then the Close frame, after `delay` seconds.

        The connection leaves routing at once, and its further input is discarded. The first reason stands.
        """
        if self._core.ending is not None:
            return
        if reply is not None and not (
            self.outbox.blocked and self.outbox.pending >= self._factory.max_pending
        ):
            self.outbox.send(reply.encode())
        ending = Ending(reason, detail=detail, logged_as=logged_as, details=details or {})
        if delay:
            self._life.close_later(ending, delay)
        else:
            self._life.close(ending)

    def cut(self, reason: Reason) -> None:
        """Drop the connection without a Close frame, which its peer would not read."""
        self._life.cut(Ending(reason))

    def _may_wait(self, pending: int) -> bool:
        if pending < self._factory.max_pending:
            return True
        self._factory.counters.ws_slow_client_terminated += 1
        self.close(Reason.BUFFER_OVERFLOW, f"{pending} bytes are queued")
        return False

    # -- life.Owner --------------------------------------------------------------------------------------------

    def ended(self, ending: Ending) -> None:
        self.outbox.shut()
        handler = self.handler
        if handler is not None:
            handler.closed(ending)
        self.reader.stop()

    def close_sent(self) -> None:
        self.reader.close_sent()

    def lost(self) -> None:
        self._factory.connections.discard(self)
        callbacks, self._when_lost = self._when_lost, []
        for callback in callbacks:
            callback()
        self.handler = None
        self.reader.forget()

    # -- interfaces.Closing: what the reader tells -----------------------------------------------------------------

    def peer_closed(self, code: int | None, answer: bytes) -> None:
        self._life.peer_closed(Ending(None, "closed by peer", code), answer)

    def close_answered(self) -> None:
        self._life.close_answered()

    def failed(self, reason: Reason, detail: str) -> None:
        if reason is Reason.FRAME_TOO_LARGE and self._core.ending is None:
            self._factory.counters.ws_frame_too_large += 1
        self.close(reason, detail)

    # -- IProtocol: what the transport tells -----------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self.reader.feed(data)

    def peer_gone(self) -> None:
        """TLS is over (close_notify, or an error). What was received before is handled first."""
        if not self._gone:
            self._gone = True
            self.reader.when_handled(self._peer_gone)

    def _peer_gone(self) -> None:
        self._life.peer_gone(_LOST)

    def connectionLost(self, reason: Failure) -> None:
        self._life.connection_lost(_LOST)


class ConnectionFactory:
    """Makes the connections of a relay, and keeps the set of those that are open."""

    def __init__(
        self,
        clock: IReactorTime,
        turn: Turn,
        counters: Counters,
        *,
        frame_max_bytes: int,
        max_pending: int,
        fast_path: bool = True,
    ) -> None:
        """`frame_max_bytes` is the longest message, `max_pending` what may be queued to a client."""
        self.clock = clock
        self.turn = turn
        self.counters = counters
        self.max_pending = max_pending
        self.connections: set[Connection] = set()
        self._fast_path = fast_path
        self._shared = Shared(
            clock.seconds, TurnQueue(clock), CodecFactory(clock, frame_max_bytes), turn, frame_max_bytes,
            counters.forward_latency.observe,
        )  # fmt: skip

    def reader(self, connection: Connection, transport: StreamTransport) -> Reader:
        """The reader of a connection whose outbox is made."""
        fast = LinkReader if connection.info.link else FastReader
        reader = fast if self._fast_path else Reader
        return reader(self._shared, transport, connection, connection.outbox.pong)

    def open(self, transport: Any, response: bytes, info: ConnectionInfo) -> Connection:
        """Take a transport over after the upgrade was admitted: send the 101 and be open (RFC 6455 section 4.2.2).

        The transport has no producer and is paused; `Connection.start` resumes it.
        """
        connection = Connection(self, transport, info)
        if isinstance(transport, ProtocolWrapper):  # TLS, PROXY protocol
            transport.wrappedProtocol = connection  # type: ignore[assignment]  # has what is used of one
        else:
            transport.protocol = connection
        connection.outbox.hold(response)
        self.connections.add(connection)
        return connection
