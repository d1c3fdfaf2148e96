"""`GET /admin/api/connections` and `/admin/api/workspaces`: the tables of the dashboard, rows with trouble first."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from twisted.web.server import Request

from viewport_relay.admin.reply import BadRequest, put_json, query
from viewport_relay.admin.state import StateSource, peer_json, target_json
from viewport_relay.observe.redaction import Redactor
from viewport_relay.routing.views import PeerView, TargetView

#: Most peers in one answer, and most targets: `/state` has them all.
MAX_PEERS: Final = 200
MAX_TARGETS: Final = 100

#: Longest `?search=`.
MAX_SEARCH: Final = 128


@frozen(eq=False)
class Tables:
    """The two pages. Ids that peers chose pass the `redactor`. `several`: another relay may have the daemon."""

    _state: StateSource
    _redactor: Redactor
    _several: bool

    def connections(self, request: Request) -> bytes:
        """Clients without a daemon first, then paused peers, then long queues, then the newest."""
        search = _search(request)
        found = [
            (target, peer)
            for target in self._state.targets()
            for peer in target.peers
            if any(search in name for name in _names(target, peer))
        ]
        found.sort(key=_trouble_first)
        rows = [self._connection(target, peer) for target, peer in found[:MAX_PEERS]]
        return self._put(request, len(found), connections=rows)

    def workspaces(self, request: Request) -> bytes:
        """Targets whose clients wait for a daemon first, then the latest active."""
        search = _search(request)
        found = [
            target
            for target in self._state.targets()
            if search in target.workspace_id or search in (target.runtime_target_id or "")
        ]
        found.sort(key=lambda t: (t.daemon is None and bool(t.clients), t.last_activity_at), reverse=True)
        rows = [target_json(target, self._redactor, with_ids=False) for target in found[:MAX_TARGETS]]
        for row in rows:
            row.pop("clients")
            row.pop("workers", None)
        return self._put(request, len(found), workspaces=rows)

    def _put(self, request: Request, total: int, **rows: list[dict[str, Any]]) -> bytes:
        return put_json(request, {"ok": True, "total": total, "severalRelays": self._several, **rows})

    def _connection(self, target: TargetView, peer: PeerView) -> dict[str, Any]:
        return {
            **peer_json(peer, self._redactor, with_ids=True),
            "role": peer.role,
            "workspaceId": self._redactor.identifier(target.workspace_id),
            "runtimeTargetId": self._redactor.detail("runtimeTargetId", target.runtime_target_id),
            "waits": _waits(target, peer),
        }


def _search(request: Request) -> str:
    """The text to search for; an empty one matches everything. Raises BadRequest."""
    search = query(request).get("search", "")
    if len(search) > MAX_SEARCH:
        raise BadRequest("search", f"at most {MAX_SEARCH} characters")
    return search


def _names(target: TargetView, peer: PeerView) -> tuple[str, ...]:
    target_id = target.runtime_target_id or ""
    return target.workspace_id, target_id, peer.client_id, peer.connection_id, peer.ip, peer.role


def _waits(target: TargetView, peer: PeerView) -> bool:
    return peer.role == "client" and target.daemon is None


def _trouble_first(row: tuple[TargetView, PeerView]) -> tuple[bool, bool, int, float]:
    target, peer = row
    return not _waits(target, peer), not peer.paused, -peer.queued_bytes, -peer.since
