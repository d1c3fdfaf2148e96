"""The handler of one routed connection, and the receiver that routing knows it by (`Peer.outlet`)."""

from __future__ import annotations

from collections.abc import Callable

from viewport_relay.noise.exchange import ExchangeWatch
from viewport_relay.routing.model import Peer
from viewport_relay.routing.views import PeerView
from viewport_relay.wire.connection import Connection
from viewport_relay.wire.ending import Ending


class Session:
    """The session of one connection. `peer` is None before it has joined and after it has left."""

    __slots__ = ("_exchange", "_leave", "announced", "connection", "key_used", "outbox", "peer")

    def __init__(
        self, connection: Connection, leave: Callable[[Session, Ending], None], key_used: str | None
    ) -> None:
        """`leave` takes the session out of routing. `key_used`: name of the relay's key that the link used, if any."""
        self.connection = connection
        self.outbox = connection.outbox  # used by every frame
        self.peer: Peer | None = None
        self.announced = False  # whether the join was logged
        self.key_used = key_used
        self._leave = leave
        self._exchange: ExchangeWatch | None = None

    def closed(self, ending: Ending) -> None:
        """Leave routing: the connection has ended."""
        self._leave(self, ending)

    @property
    def exchange(self) -> ExchangeWatch:
        """The client's end-to-end key exchanges, as far as the relay sees them."""
        if self._exchange is None:
            self._exchange = ExchangeWatch()
        return self._exchange

    @property
    def backlog(self) -> int:
        """Bytes queued in the outbox, without those in the transport."""
        return self.outbox.queued

    def view(self, peer: Peer, wall_offset: float) -> PeerView:
        """The connection of `peer` as operators see it. `wall_offset` turns monotonic seconds into seconds since the epoch."""
        info = self.connection.info
        return PeerView(
            connection_id=peer.connection_id,
            role=peer.role.value,
            client_id=peer.grant.client_id,
            ip=peer.ip,
            since=peer.since + wall_offset,
            queued_bytes=self.outbox.pending,
            noise=info.noise,
            subprotocol=info.subprotocol,
            version=info.version,
            paused=self.connection.reader.paused,
            end_to_end=None if self._exchange is None else self._exchange.summary,
        )


def session_of(peer: Peer) -> Session:
    """The session of a peer."""
    session = peer.outlet
    assert isinstance(session, Session)
    return session
