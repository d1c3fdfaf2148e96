"""Fixtures of the routing tests: a target and its peers, without connections."""

from __future__ import annotations

from typing import Any

from viewport_relay.admission.claims import required_profile
from viewport_relay.protocol.grant import Claims, Grant, Profile, Role, Scope
from viewport_relay.routing.model import Peer, Target
from viewport_relay.routing.rates import FrameRates, Rates
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.routing.views import PeerView
from viewport_relay.windows import Window, WindowTable

_RATES = ("key_exchange", "pairing", "runtime", "workspace", "daemon")


def limits(**rates: int) -> FrameRates:
    """Limits of frames per minute; the others are off."""
    given = dict.fromkeys(_RATES, 0) | rates
    return FrameRates(**given, in_words={name: f"{name}={limit}" for name, limit in given.items()})  # type: ignore[arg-type]


NO_LIMIT = limits()


class Outlet:
    """Null object in place of a peer's connection."""

    backlog = 0

    def view(self, peer: Peer, wall_offset: float) -> PeerView:
        role, client_id = peer.role.value, peer.grant.client_id
        return PeerView(
            peer.connection_id,
            role,
            client_id,
            peer.ip,
            peer.since + wall_offset,
            0,
            "none",
            None,
            None,
            False,
        )


class House:
    """One workspace and target with a clock that the test sets; peers join through the registry."""

    def __init__(
        self,
        limits: FrameRates = NO_LIMIT,
        *,
        workspace: str = "w",
        target: str | None = "t",
        most_requests: int = 8,
        most_sessions: int = 8,
    ) -> None:
        self.now = 1000.0
        self.registry = Registry(most_requests=most_requests, most_sessions=most_sessions)
        self.router = Router(limits)
        self.workspace = workspace
        self.target_id = target
        self.workspace_window = Window()
        self._made = 0

    @property
    def target(self) -> Target:
        return self.registry.target(self.workspace, self.target_id, self.now)

    def peer(
        self,
        role: Role,
        *,
        scope: Scope | None = None,
        target: str | None = ...,  # type: ignore[assignment]
        policy_mode: str | None = None,
        e2ee_profile: Profile | None = None,
        workspace: str | None = None,
        **claims: Any,
    ) -> Peer:
        """An admitted peer that has not joined."""
        self._made += 1
        where = self.target_id if target is ... else target
        said = Claims(
            workspace_id=workspace or self.workspace,
            runtime_target_id=where,
            scope=scope,
            policy_mode=policy_mode,
            e2ee_profile=e2ee_profile,
            **claims,
        )
        connection_id = f"{role.value}-{self._made}"
        grant = Grant(
            role=role,
            workspace_id=workspace or self.workspace,
            runtime_target_id=where,
            scope=scope,
            client_id=said.client_id or connection_id,
            claims=said,
            required_profile=required_profile(said),
        )
        rates = Rates(WindowTable(), (connection_id,), Window(), self.workspace_window, Window())
        room = self.registry.target(grant.workspace_id, where, self.now)
        return Peer(connection_id, grant, "127.0.0.1", self.now, Outlet(), rates, room)

    def client(self, scope: Scope = Scope.RUNTIME, **rest: Any) -> Peer:
        peer = self.peer(Role.CLIENT, scope=scope, **rest)
        self.registry.join(peer, self.now)
        return peer

    def daemon(self, generation: int | None = None, **rest: Any) -> Peer:
        peer = self.peer(Role.DAEMON, daemon_issue_generation=generation, **rest)
        self.registry.join(peer, self.now)
        return peer

    def leave(self, peer: Peer) -> Peer | None:
        return self.registry.leave(peer, self.now)
