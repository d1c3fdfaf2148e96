"""The view that the admin pages have of the running relay, the facts behind the verdict, and `GET /state`.

`StateSource` is an interface; the service implements it. The admin pages reach the relay through nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from viewport_relay.config import Config
from viewport_relay.observe.checks import Condition, Facts
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.redaction import Redactor
from viewport_relay.routing.views import PeerView, Selection, TargetView

#: Reads the facts of the moment, of which a verdict is made.
ReadFacts = Callable[[], Facts]


class StateSource(Protocol):
    """Read-only views of the relay, and the two actions that operators have."""

    def targets(self) -> Sequence[TargetView]:
        """Every target that a peer has joined and that is not forgotten yet."""

    def connections(self) -> Mapping[str, int]:
        """Open connections by role (`workspace-daemon`, `client`, `worker`); the sum is their number."""

    def disconnect(self, selection: Selection) -> int | Deferred[int]:
        """Close the connections of a selection; returns their number, or a Deferred of it."""

    def flush_caches(self) -> None:
        """Forget validations, and fetch the key set again with the next upgrade."""

    def condition(self) -> Condition:
        """Whether peers can be admitted now, and the state of keys, clock, platform and backplane."""

    def refresh(self) -> Deferred[None] | None:
        """Ask other processes for their state, for the methods above; None: there is nothing to wait for."""

    def processes(self) -> Mapping[str, int]:
        """The processes of this relay: name (`relay`, or `parent`, `worker-0` and so on) and process id."""


def state_json(config: Config, state: StateSource, redactor: Redactor) -> dict[str, Any]:
    """The body of `GET /state` (wire protocol, section 13).

    Ids and versions that peers chose pass the `redactor`: a peer may have put its token there.
    """
    targets = sorted(state.targets(), key=lambda t: (t.workspace_id, t.runtime_target_id or ""))
    return {
        "ok": True,
        "service": "relay",
        "relayMode": config.mode,
        "relayId": config.relay_id,
        "backplaneMode": config.backplane_mode,
        "busEnabled": config.bus_enabled,
        "clientRedirectEnabled": config.client_redirect_enabled,
        "connections": dict(state.connections()),
        "workspaces": [target_json(t, redactor, with_ids=config.state_include_client_ids) for t in targets],
    }


def target_json(target: TargetView, redactor: Redactor, *, with_ids: bool) -> dict[str, Any]:
    """One target. Client ids and addresses are shown only `with_ids`."""
    shown: dict[str, Any] = {
        "workspaceId": redactor.identifier(target.workspace_id),
        "runtimeTargetId": redactor.detail("runtimeTargetId", target.runtime_target_id),
        "daemonConnected": target.daemon is not None,
        "clientCount": len(target.clients),
        "lastActivityAt": timestamp(target.last_activity_at),
        "createdAt": timestamp(target.created_at),
        "workerCount": len(target.executors),
        "sessions": target.sessions,
        "pendingRequests": target.pending_requests,
        "frames": target.frames,
        "bytes": target.bytes,
        "queuedBytes": sum(peer.queued_bytes for peer in target.peers),
    }
    if with_ids:
        shown["clientIds"] = [redactor.identifier(peer.client_id) for peer in target.clients]
    if target.daemon is not None:
        shown["daemon"] = peer_json(target.daemon, redactor, with_ids=True)
    shown["clients"] = [peer_json(peer, redactor, with_ids=with_ids) for peer in target.clients]
    if target.executors:
        shown["workers"] = [peer_json(peer, redactor, with_ids=with_ids) for peer in target.executors]
    return shown


def peer_json(peer: PeerView, redactor: Redactor, *, with_ids: bool) -> dict[str, Any]:
    """One peer. Client id and address are shown only `with_ids`."""
    shown: dict[str, Any] = {
        "connectionId": peer.connection_id,
        "since": timestamp(peer.since),
        "version": redactor.detail("version", peer.version),
        "noise": peer.noise,
        "subprotocol": redactor.detail("subprotocol", peer.subprotocol),
        "queuedBytes": peer.queued_bytes,
        "paused": peer.paused,
        "endToEnd": peer.end_to_end,
    }
    if peer.subprotocol is not None and peer.subprotocol.startswith("auth."):
        shown["subprotocol"] = "auth"  # the rest of it is the token
    if with_ids:
        shown["clientId"] = redactor.identifier(peer.client_id)
        shown["ip"] = peer.ip
    return shown


def facts_reader(config: Config, log: EventLog, state: StateSource) -> ReadFacts:
    """A function that reads the facts of the moment."""

    def read() -> Facts:
        at = log.now()
        admitted, refused = log.problems.recent(at)
        return Facts(
            now=at,
            condition=state.condition(),
            jwks_ttl=config.jwks_cache_ttl,
            last_seen=log.last_seen,
            has_internal_key=config.internal_key is not None,
            problems=log.problems.open(at),
            connections=state.connections(),
            admitted=admitted,
            refused=refused,
        )

    return read
