"""`GET /admin/api/connections`: every peer, those that need a look first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from twisted.web.server import Request

from viewport_relay.admin.reply import BadRequest, put_json, query
from viewport_relay.admin.state import StateSource
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.redaction import Redactor
from viewport_relay.routing.views import PeerView, TargetView

#: Most peers in one answer.
MAX_PEERS: Final = 200
MAX_SEARCH: Final = 128


class Connections:
    """The page. Ids that peers chose pass the `redactor`. `several`: another relay may have the daemon."""

    def __init__(self, state: StateSource, redactor: Redactor, *, several: bool) -> None:
        self._several = several
        self._state = state
        self._redactor = redactor

    def render(self, request: Request) -> bytes:
        search = query(request).get("search", "")
        if len(search) > MAX_SEARCH:
            raise BadRequest("search", f"at most {MAX_SEARCH} characters")
        found = [
            (target, peer)
            for target, peer in _all(self._state)
            if not search or _matches(target, peer, search)
        ]
        found.sort(key=_need_a_look)
        rows = [self._row(target, peer) for target, peer in found[:MAX_PEERS]]
        body = {"ok": True, "total": len(found), "severalRelays": self._several, "connections": rows}
        return put_json(request, body)

    def _row(self, target: TargetView, peer: PeerView) -> dict[str, Any]:
        return {
            "connectionId": peer.connection_id,
            "role": peer.role,
            "workspaceId": self._redactor.identifier(target.workspace_id),
            "runtimeTargetId": self._redactor.detail("runtimeTargetId", target.runtime_target_id),
            "clientId": self._redactor.identifier(peer.client_id),
            "ip": peer.ip,
            "since": timestamp(peer.since),
            "version": self._redactor.detail("version", peer.version),
            "noise": peer.noise,
            "queuedBytes": peer.queued_bytes,
            "paused": peer.paused,
            "waits": peer.role == "client" and target.daemon is None,
        }


def _all(state: StateSource) -> Iterator[tuple[TargetView, PeerView]]:
    for target in state.targets():
        if target.daemon is not None:
            yield target, target.daemon
        for peer in (*target.clients, *target.workers):
            yield target, peer


def _matches(target: TargetView, peer: PeerView, search: str) -> bool:
    names = (
        target.workspace_id,
        target.runtime_target_id or "",
        peer.client_id,
        peer.connection_id,
        peer.ip,
        peer.role,
    )
    return any(search in name for name in names)


def _need_a_look(row: tuple[TargetView, PeerView]) -> tuple[bool, bool, int, float]:
    """Sorts clients without a daemon first, then paused peers, then long queues, then the newest."""
    target, peer = row
    waits = peer.role == "client" and target.daemon is None
    return not waits, not peer.paused, -peer.queued_bytes, -peer.since
