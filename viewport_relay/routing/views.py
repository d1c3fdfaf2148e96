"""Values for operators: copies of the routing state (`/state`, `/metrics`), and a selection of connections."""

from __future__ import annotations

from attrs import frozen


@frozen
class PeerView:
    """One connection. Times are seconds since the epoch; `queued_bytes` is what waits to be sent to it."""

    connection_id: str
    role: str
    client_id: str
    ip: str
    since: float
    queued_bytes: int  # those in the transport included
    noise: str  # "none" | "IK" | "IKpsk2"
    subprotocol: str | None
    version: str | None  # the peer's User-Agent, cut to 64 characters
    paused: bool  # the relay does not read it just now (back-pressure)
    end_to_end: str | None = None  # the latest end-to-end session in words; clients only


@frozen
class Selection:
    """The connections that match every part that is given (not None)."""

    workspace_id: str | None = None
    runtime_target_id: str | None = None
    connection_id: str | None = None
    token_id: str | None = None


@frozen
class TargetView:
    """One (workspace, runtime target)."""

    workspace_id: str
    runtime_target_id: str | None
    daemon: PeerView | None
    clients: tuple[PeerView, ...]
    executors: tuple[PeerView, ...]
    sessions: int
    pending_requests: int
    frames: int
    bytes: int
    created_at: float
    last_activity_at: float

    @property
    def peers(self) -> tuple[PeerView, ...]:
        """Every connection: the daemon's, the clients', the executors'."""
        return (*(() if self.daemon is None else (self.daemon,)), *self.clients, *self.executors)
