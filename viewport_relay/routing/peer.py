"""One admitted connection, as routing sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from viewport_relay.protocol.grant import Grant, Role, Scope

if TYPE_CHECKING:
    from viewport_relay.admission.limits import Window, WindowTable
    from viewport_relay.routing.target import Target


#: What most peers subscribe to: a set of its own would be 200 bytes each.
_NO_CHANNELS: Final[frozenset[str]] = frozenset()


class Outlet(Protocol):
    """Where a peer's messages leave. Routing only reads it; the wire writes to it."""

    @property
    def queued_bytes(self) -> int: ...
    @property
    def backlog(self) -> int: ...
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
    """The windows that a connection's frames are charged to. Shared by all connections of the same key.

    Those of frames that few peers send are found with the first of them, and held from then on.
    """

    __slots__ = (
        "_client",
        "_key_exchange",
        "_pairing",
        "_table",
        "_unforwarded",
        "daemon",
        "runtime",
        "workspace",
    )

    def __init__(
        self,
        table: WindowTable,
        client: tuple[str, ...],
        runtime: Window,
        workspace: Window,
        daemon: Window,
    ) -> None:
        """`client` is what the client's own windows go by in `table`."""
        self._table = table
        self._client = client
        self._key_exchange: Window | None = None
        self._pairing: Window | None = None
        self._unforwarded: Window | None = None
        self.runtime = runtime
        self.workspace = workspace
        self.daemon = daemon

    def key_exchange(self, now: float) -> Window:
        """For the client's key exchanges."""
        if self._key_exchange is None:
            self._key_exchange = self._table.window(("kex", *self._client), now)
        return self._key_exchange

    def pairing(self, now: float) -> Window:
        """For the client's requests to pair."""
        if self._pairing is None:
            self._pairing = self._table.window(("pairing", *self._client), now)
        return self._pairing

    def unforwarded(self, now: float) -> Window:
        """For the bytes of the client's messages that are not forwarded."""
        if self._unforwarded is None:
            self._unforwarded = self._table.window(("unforwarded", *self._client), now)
        return self._unforwarded


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
        self.channels: frozenset[str] = _NO_CHANNELS  # subscribed, trimmed

    def describe(self) -> dict[str, Any]:
        """What a log entry about this peer says of it."""
        return {
            "role": self.role.value,
            "workspaceId": self.grant.workspace_id,
            "runtimeTargetId": self.grant.runtime_target_id,
            "clientId": self.grant.client_id,
            "ip": self.ip,
        }
