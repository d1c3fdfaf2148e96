"""The registry: all targets of this relay. No I/O; times are arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from viewport_relay.protocol.grant import Role
from viewport_relay.routing.model import Peer, Seated, SeatOutcome, Target
from viewport_relay.routing.tables import RequestTable, SessionTable
from viewport_relay.routing.views import TargetView

_Key = tuple[str, str | None]


class Registry:
    """Targets by (workspace, runtime target). Peers without a runtime target share one target of their workspace."""

    def __init__(self, *, most_requests: int, most_sessions: int) -> None:
        self._most_requests = most_requests
        self._most_sessions = most_sessions
        self._targets: dict[_Key, Target] = {}
        self.joined: Counter[Role] = Counter()

    def __len__(self) -> int:
        return len(self._targets)

    def __iter__(self) -> Iterator[Target]:
        return iter(tuple(self._targets.values()))

    def find(self, workspace_id: str, runtime_target_id: str | None) -> Target | None:
        return self._targets.get((workspace_id, runtime_target_id))

    def target(self, workspace_id: str, runtime_target_id: str | None, now: float) -> Target:
        """The target, made if it is new. Only for peers whose token was accepted."""
        key = workspace_id, runtime_target_id
        target = self._targets.get(key)
        if target is None:
            requests, sessions = self._most_requests, self._most_sessions
            target = Target(*key, now, RequestTable(requests), RequestTable(requests), SessionTable(sessions))
            self._targets[key] = target
        target.active_at = now
        return target

    def join(self, peer: Peer, now: float) -> SeatOutcome:
        """Add a peer to its target. For a daemon the seat decides."""
        peer.target.active_at = now
        self.joined[peer.role] += 1
        if peer.role is not Role.DAEMON:
            peer.target.add(peer)
            return Seated()
        arrival = peer.target.seat.arrive(peer, now)
        if isinstance(arrival, Seated):
            # Also on an empty seat: requests and sessions may be there of a daemon on another relay.
            peer.target.forget_daemon()
        return arrival

    def leave(self, peer: Peer, now: float) -> Peer | None:
        """Remove a peer; returns the daemon that has the seat now, if a waiting one got it."""
        target = peer.target
        target.active_at = now
        self.joined[peer.role] -= 1
        if peer.role is not Role.DAEMON:
            target.remove_client(peer)
            return None
        held = target.seat.holder is peer
        successor = target.seat.leave(peer)
        if held:
            target.forget_daemon()
        return successor

    def peers(self) -> Iterator[Peer]:
        """Every peer that has joined: daemons, challengers of a seat, clients and executors."""
        for target in self:
            if target.seat.holder is not None:
                yield target.seat.holder
            yield from (*target.seat.challengers, *target.clients, *target.executors)

    def expired(self, before: float) -> list[Peer]:
        """The peers whose token's `exp` lies before this time (seconds since the epoch)."""
        return [
            peer
            for peer in self.peers()
            if (until := peer.grant.claims.expires_at) is not None and until <= before
        ]

    def clean_up(self, now: float, empty_ttl: float) -> int:
        """Forget targets that have been empty for `empty_ttl` seconds; returns their number."""
        gone = []
        for key, target in self._targets.items():
            if target.empty and now - target.active_at >= empty_ttl:
                gone.append(key)
            else:
                target.expire(now)
        for key in gone:
            del self._targets[key]
        return len(gone)

    def views(self, wall_offset: float) -> list[TargetView]:
        """All targets. `wall_offset` turns monotonic seconds into seconds since the epoch."""
        return [self._view(target, wall_offset) for target in self]

    def _view(self, target: Target, wall_offset: float) -> TargetView:
        holder = target.seat.holder
        return TargetView(
            workspace_id=target.workspace_id,
            runtime_target_id=target.runtime_target_id,
            daemon=None if holder is None else holder.outlet.view(holder, wall_offset),
            clients=tuple(peer.outlet.view(peer, wall_offset) for peer in target.clients),
            executors=tuple(peer.outlet.view(peer, wall_offset) for peer in target.executors),
            sessions=len(target.sessions),
            pending_requests=len(target.key_exchanges) + len(target.pairings),
            frames=target.frames,
            bytes=target.bytes,
            created_at=target.created_at + wall_offset,
            last_activity_at=target.active_at + wall_offset,
        )
