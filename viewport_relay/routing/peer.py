"""One admitted connection, as routing sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from viewport_relay.admission.grant import Grant, Role, Scope

if TYPE_CHECKING:
    from viewport_relay.admission.limits import Window
    from viewport_relay.routing.target import Target


class Outlet(Protocol):
    """Where a peer's messages leave. Routing only reads it; the wire writes to it."""

    @property
    def queued_bytes(self) -> int: ...
    @property
    def paused(self) -> bool: ...
    @property
    def noise(self) -> str: ...
    @property
    def subprotocol(self) -> str | None: ...
    @property
    def version(self) -> str | None: ...
    @property
    def end_to_end(self) -> str | None: ...


class Rates:
    """The windows that a connection's frames are charged to. Shared by all connections of the same key."""

    __slots__ = ("daemon", "key_exchange", "pairing", "runtime", "workspace")

    def __init__(
        self, key_exchange: Window, pairing: Window, runtime: Window, workspace: Window, daemon: Window
    ) -> None:
        self.key_exchange = key_exchange
        self.pairing = pairing
        self.runtime = runtime
        self.workspace = workspace
        self.daemon = daemon


class Peer:
    """An admitted connection. Compared by identity: a client that comes back is another peer."""

    __slots__ = (
        "channels",
        "connection_id",
        "grant",
        "ip",
        "outlet",
        "rates",
        "required_profile",
        "role",
        "scope",
        "since",
        "target",
    )

    def __init__(
        self,
        connection_id: str,
        grant: Grant,
        ip: str,
        since: float,
        outlet: Outlet,
        rates: Rates,
        target: Target,
    ) -> None:
        self.connection_id = connection_id
        self.grant = grant
        self.role: Role = grant.role
        self.scope: Scope | None = grant.scope
        self.required_profile: str | None = grant.required_profile and grant.required_profile.value
        self.ip = ip
        self.since = since  # seconds since the epoch
        self.outlet = outlet
        self.rates = rates
        self.target = target
        self.channels: set[str] = set()  # subscribed, trimmed

    def describe(self) -> dict[str, Any]:
        """What a log entry about this peer says of it."""
        return {
            "role": self.role.value,
            "workspaceId": self.grant.workspace_id,
            "runtimeTargetId": self.grant.runtime_target_id,
            "clientId": self.grant.client_id,
            "ip": self.ip,
        }
