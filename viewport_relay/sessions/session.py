"""The handler of one routed connection, and the receiver that routing knows it by (`Peer.outlet`)."""

from __future__ import annotations

from typing import Protocol

from viewport_relay.noise.exchange import ExchangeWatch
from viewport_relay.routing.model import Peer
from viewport_relay.wire.connection import Connection
from viewport_relay.wire.ending import Ending


class LeaveListener(Protocol):
    """Takes a session out of routing when its connection has ended."""

    def leave(self, session: Session, ending: Ending) -> None: ...


class Session:
    """The session of one connection. `peer` is None before it has joined and after it has left."""

    __slots__ = ("_exchange", "_sessions", "announced", "connection", "key_used", "outbox", "peer")

    def __init__(self, connection: Connection, sessions: LeaveListener, key_used: str | None) -> None:
        """`key_used`: name of the relay's key that the link used; None without a link."""
        self.connection = connection
        self.outbox = connection.outbox  # used by every frame
        self.peer: Peer | None = None
        self.announced = False  # whether the join was logged
        self.key_used = key_used
        self._sessions = sessions
        self._exchange: ExchangeWatch | None = None

    def closed(self, ending: Ending) -> None:
        """The connection has ended."""
        self._sessions.leave(self, ending)

    def deliver(self, message: bytes) -> bool:
        """Send a message; False when the connection does not accept it."""
        return self.outbox.send(message)

    @property
    def exchange(self) -> ExchangeWatch:
        """The client's end-to-end key exchanges, as far as the relay sees them."""
        if self._exchange is None:
            self._exchange = ExchangeWatch()
        return self._exchange

    # -- for `/state` ------------------------------------------------------------------------------------------

    @property
    def end_to_end(self) -> str | None:
        """The latest end-to-end session, as text."""
        return None if self._exchange is None else self._exchange.summary

    @property
    def queued_bytes(self) -> int:
        """Bytes queued for this peer, those in the transport included."""
        return self.outbox.pending

    @property
    def backlog(self) -> int:
        """Bytes queued in the outbox, without those in the transport."""
        return self.outbox.queued

    @property
    def paused(self) -> bool:
        return self.connection.reader.paused

    @property
    def noise(self) -> str:
        return self.connection.info.noise

    @property
    def subprotocol(self) -> str | None:
        return self.connection.info.subprotocol

    @property
    def version(self) -> str | None:
        return self.connection.info.version


def session_of(peer: Peer) -> Session:
    """The session of a peer."""
    session = peer.outlet
    assert isinstance(session, Session)
    return session
