"""The JSON that the dashboard polls: verdict, numbers, headroom, refusals with cause and fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.admin.capacity import Capacity
from viewport_relay.admin.history import History, numbers
from viewport_relay.admin.reply import put_json
from viewport_relay.admin.settings import settings_json, shown_url
from viewport_relay.admin.state import ReadFacts, StateSource
from viewport_relay.admin.summary import problem_json
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.verdict import judge
from viewport_relay.reasons import Reason


@frozen(eq=False)
class Overview:
    """The JSON pages of the dashboard; each needs the admin token or a session."""

    _config: Config
    _log: EventLog
    _counters: Counters
    _state: StateSource
    _facts: ReadFacts
    _capacity: Capacity
    _history: History
    _uptime: Callable[[], float]
    _now: Callable[[], float]

    def overview(self, request: Request) -> bytes:
        """`GET /admin/api/overview`."""
        now, config, counters, state = self._now(), self._config, self._counters, self._state
        facts = self._facts()
        body = {
            "ok": True,
            "now": round(now, 3),
            "relayId": config.relay_id,
            "relayMode": config.mode,
            "version": __version__,
            "uptimeMs": round(self._uptime() * 1000),
            "verdict": judge(facts).as_json(),
            "problems": [problem_json(row) for row in facts.problems],
            **numbers(counters, state),
            "bytes": counters.bytes_client_to_daemon + counters.bytes_daemon_to_clients,
            "admitted": counters.admission_ok,
            "rateLimited": counters.upgrade_rate_limited,
            "targets": len(state.targets()),
            "logWriteFailures": self._log.write_failures,
            "capacity": self._capacity.as_json(),
            "relays": [
                self._relay(told) for told in state.backplane().get("relays", ()) if not self._is_own(told)
            ],
            "reasons": self._reasons(now),
        }
        return put_json(request, body)

    def _is_own(self, told: Mapping[str, Any]) -> bool:
        """Whether it is a worker of this relay (`RELAY_ID-w0` and so on)."""
        name, _, number = told["relayId"].rpartition("-w")
        return bool(number.isdecimal()) and name == self._config.relay_id

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
            last = self._log.last_of(reason) or self._history.last_drop.get(reason)
            row: dict[str, Any] = {
                "reason": reason.code,
                "level": reason.entry.level,
                **counts,
                "count": sum(counts.values()),
                "lastAt": timestamp(last) if last is not None else None,
            }
            known = here.get(reason.code)
            if known is not None:
                row["fix"], row["example"] = known.fix, known.example
                row["workspaces"], row["addresses"] = len(known.workspaces), len(known.addresses)
            rows.append(row)
        return sorted(rows, key=lambda row: (row["lastAt"] or "", row["count"]), reverse=True)

    def reasons(self, request: Request) -> bytes:
        """`GET /admin/api/reasons`: text, cause and fix of every reason there is."""
        members = ("text", "cause", "fix", "level")
        table = {r.code: {name: getattr(r.entry, name) for name in members} for r in Reason}
        return put_json(request, {"ok": True, "reasons": table})

    def settings(self, request: Request) -> bytes:
        """`GET /admin/api/settings`: the settings in force, secrets hidden, and the warnings of the start."""
        body = {"ok": True, "settings": settings_json(self._config), "warnings": list(self._config.warnings)}
        return put_json(request, body)
