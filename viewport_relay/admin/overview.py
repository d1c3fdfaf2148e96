"""The JSON of the dashboard: verdict, numbers, headroom, refusals with cause and fix; tables of peers and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.admin.reply import BadRequest, put_body, query
from viewport_relay.admin.settings import settings_json, shown_url
from viewport_relay.admin.state import ReadFacts, StateSource, peer_json, target_json
from viewport_relay.admin.trends import Trends
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.verdict import verdict_of
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import PeerView, TargetView

#: Most peers in one answer, and most targets: `/state` has them all.
MAX_PEERS: Final = 200
MAX_TARGETS: Final = 100

#: Longest `?search=`.
MAX_SEARCH: Final = 128


@frozen(eq=False)
class Overview:
    """The JSON pages of the dashboard; each needs the admin token or a session. `_config` gives the settings in force."""

    _config: Callable[[], Config]
    _log: EventLog
    _counters: Counters
    _state: StateSource
    _facts: ReadFacts
    _trends: Trends
    _uptime: Callable[[], float]

    def overview(self, request: Request) -> bytes:
        """`GET /admin/api/overview`: verdict, numbers, headroom, other relays of the fleet, and what was refused."""
        config, facts = self._config(), self._facts()
        relays = facts.condition.backplane.get("relays", ())
        body = {
            "ok": True,
            "now": round(facts.now, 3),
            "relayId": config.relay_id,
            "relayMode": config.mode,
            "version": __version__,
            "uptimeMs": round(self._uptime() * 1000),
            "verdict": verdict_of(facts).as_json(),
            **self._trends.numbers(),
            "capacity": self._trends.capacity(),
            "relays": [self._relay(told) for told in relays if not self._is_own(told)],
            "reasons": self._reasons(facts.now),
        }
        return put_body(request, body)

    def _is_own(self, told: Mapping[str, Any]) -> bool:
        """Whether a relay of the fleet is a worker of this one (`RELAY_ID-w0` and so on)."""
        name, _, number = told["relayId"].rpartition("-w")
        return bool(number.isdecimal()) and name == self._config().relay_id

    def _relay(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Another relay of the fleet. Its own words are redacted: any client of Redis may have written them."""
        shown = dict(told, relayId=self._log.redactor.identifier(told["relayId"]))
        if "url" in told:
            shown["url"] = shown_url(told["url"])
        if "version" in told:
            shown["version"] = self._log.redactor.detail("version", told["version"])
        return shown

    def _reasons(self, now: float) -> list[dict[str, Any]]:
        """Reasons that were counted, the latest first."""
        here = {row.code: row for row in self._log.problems.rows(now)}
        refused, closed, dropped = self._counters.refusals, self._counters.closes, self._counters.drops
        rows: list[dict[str, Any]] = []
        for reason in dict.fromkeys([*refused, *closed, *dropped]):
            counts = {"refused": refused[reason], "closed": closed[reason], "dropped": dropped[reason]}
            known = here.get(reason.code)
            last = self._trends.last_drop.get(reason) if known is None else known.last
            row: dict[str, Any] = {
                "reason": reason.code,
                "level": reason.entry.level,
                **counts,
                "count": sum(counts.values()),
                "lastAt": timestamp(last) if last is not None else None,
            }
            if known is not None:
                row["fix"], row["example"] = known.fix, known.example
                row["workspaces"], row["addresses"] = len(known.workspaces), len(known.addresses)
            rows.append(row)
        return sorted(rows, key=lambda row: (row["lastAt"] or "", row["count"]), reverse=True)

    def reasons(self, request: Request) -> bytes:
        """`GET /admin/api/reasons`: text, cause and fix of every reason there is."""
        members = ("text", "cause", "fix", "level")
        table = {r.code: {name: getattr(r.entry, name) for name in members} for r in Reason}
        return put_body(request, {"ok": True, "reasons": table})

    def settings(self, request: Request) -> bytes:
        """`GET /admin/api/settings`: the settings in force, secrets hidden, and the warnings of the start."""
        config = self._config()
        body = {"ok": True, "settings": settings_json(config), "warnings": list(config.warnings)}
        return put_body(request, body)

    # -- tables --------------------------------------------------------------------------------------------

    def connections(self, request: Request) -> bytes:
        """`GET /admin/api/connections`: clients without a daemon first, then paused peers, then long queues, then the newest."""
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
        """`GET /admin/api/workspaces`: targets whose clients wait for a daemon first, then the latest active."""
        search = _search(request)
        found = [
            target
            for target in self._state.targets()
            if search in target.workspace_id or search in (target.runtime_target_id or "")
        ]
        found.sort(key=lambda t: (t.daemon is None and bool(t.clients), t.last_activity_at), reverse=True)
        rows = [target_json(target, self._log.redactor, with_ids=False) for target in found[:MAX_TARGETS]]
        for row in rows:
            row.pop("clients")
            row.pop("workers", None)
        return self._put(request, len(found), workspaces=rows)

    def _put(self, request: Request, total: int, **rows: list[dict[str, Any]]) -> bytes:
        return put_body(
            request,
            {"ok": True, "total": total, "severalRelays": self._config().backplane_mode != "single", **rows},
        )

    def _connection(self, target: TargetView, peer: PeerView) -> dict[str, Any]:
        return {
            **peer_json(peer, self._log.redactor, with_ids=True),
            "role": peer.role,
            "workspaceId": self._log.redactor.identifier(target.workspace_id),
            "runtimeTargetId": self._log.redactor.detail("runtimeTargetId", target.runtime_target_id),
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
