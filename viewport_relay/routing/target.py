"""The room of one (workspace, runtime target): its daemon's seat, its clients, who asked and who owns what."""

from __future__ import annotations

from typing import TypeAlias

from viewport_relay.protocol.grant import Role
from viewport_relay.routing.peer import Peer
from viewport_relay.routing.seat import Seat
from viewport_relay.routing.tables import RequestTable, SessionTable

#: Who waits for an answer or owns a session: a local peer, or the relay that a bus frame came from.
Owner: TypeAlias = Peer | str


class Target:
    """State of one target. No frame ever leaves it for another. Times are monotonic seconds."""

    __slots__ = (
        "active_at",
        "bytes",
        "channels",
        "clients",
        "created_at",
        "frames",
        "key_exchanges",
        "pairings",
        "runtime_target_id",
        "seat",
        "sessions",
        "workers",
        "workspace_id",
    )

    def __init__(
        self,
        workspace_id: str,
        runtime_target_id: str | None,
        now: float,
        *,
        most_requests: int,
        most_sessions: int,
    ) -> None:
        self.workspace_id = workspace_id
        self.runtime_target_id = runtime_target_id
        self.created_at = now
        self.active_at = now
        self.frames = 0
        self.bytes = 0
        self.seat = Seat()
        self.clients: dict[Peer, None] = {}
        self.workers: dict[Peer, None] = {}
        self.channels: dict[str, dict[Peer, None]] = {}
        self.key_exchanges: RequestTable[Owner] = RequestTable(most_requests)
        self.pairings: RequestTable[Owner] = RequestTable(most_requests)
        self.sessions: SessionTable[Owner] = SessionTable(most_sessions)

    @property
    def daemon(self) -> Peer | None:
        return self.seat.holder

    @property
    def empty(self) -> bool:
        return self.seat.holder is None and not (self.clients or self.workers or self.seat.challengers)

    def forget_daemon(self) -> None:
        """The daemon left or was replaced: what it knew is void; the clients stay."""
        self.key_exchanges.clear()
        self.pairings.clear()
        self.sessions.clear()

    def forget_owner(self, owner: Owner) -> None:
        """Late answers to this one go nowhere."""
        self.key_exchanges.forget_owner(owner)
        self.pairings.forget_owner(owner)
        self.sessions.forget_owner(owner)

    def subscribe(self, peer: Peer, channel: str) -> None:
        peer.channels |= {channel}
        self.channels.setdefault(channel, {})[peer] = None

    def unsubscribe(self, peer: Peer, channel: str) -> None:
        peer.channels -= {channel}
        subscribers = self.channels.get(channel)
        if subscribers is not None:
            subscribers.pop(peer, None)
            if not subscribers:
                del self.channels[channel]

    def add(self, peer: Peer) -> None:
        """A client or a worker comes; a daemon asks the seat instead."""
        (self.workers if peer.role is Role.WORKER else self.clients)[peer] = None

    def remove_client(self, peer: Peer) -> None:
        self.clients.pop(peer, None)
        self.workers.pop(peer, None)
        for channel in peer.channels:
            self.unsubscribe(peer, channel)
        self.forget_owner(peer)

    def heaviest(self, limit: int) -> Peer | None:
        """The client or worker with the longest backlog, when all of them together have more than `limit` bytes."""
        total, most, heaviest = 0, 0, None
        for peer in (*self.clients, *self.workers):
            backlog = peer.outlet.backlog
            total += backlog
            if backlog > most:
                most, heaviest = backlog, peer
        return heaviest if total > limit else None

    def expire(self, now: float) -> None:
        """Drop what has aged out of the tables."""
        self.key_exchanges.expire(now)
        self.pairings.expire(now)
        self.sessions.expire(now)
