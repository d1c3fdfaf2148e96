"""`GET /metrics`: the relay's metrics in the format that the scraper asks for.

`?deprecated=0` leaves the older names out (`observe.metrics.DEPRECATED`).
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.exposition import choose_encoder
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.admin.reply import BadRequest, boolean, put, query
from viewport_relay.admin.state import StateSource
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.metrics import Gauges, RelayCollector, registry


def gauges(state: StateSource, log: EventLog, uptime: float) -> Gauges:
    """A picture of the present for the collector."""
    to_daemons = to_clients = most = paused = sessions = pending = workspaces = 0
    for target in state.targets():
        workspaces += 1
        sessions += target.sessions
        pending += target.pending_requests
        if target.daemon is not None:
            to_daemons += target.daemon.queued_bytes
            most = max(most, target.daemon.queued_bytes)
            paused += target.daemon.paused
        for peer in (*target.clients, *target.workers):
            to_clients += peer.queued_bytes
            most = max(most, peer.queued_bytes)
            paused += peer.paused
    up = state.backplane().get("up")
    return Gauges(
        connections=state.connections(),
        workspaces=workspaces,
        sessions=sessions,
        pending_requests=pending,
        queued_to_daemons=to_daemons,
        queued_to_clients=to_clients,
        queued_most=most,
        paused=paused,
        ready=state.readiness()[0],
        jwks_age=state.jwks_age(),
        backplane_up=up is not False,
        uptime=uptime,
        log_write_failures=log.write_failures,
        processes=state.processes(),
    )


class MetricsPage:
    """Text of version 0.0.4 unless the Accept header names another."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        state: StateSource,
        log: EventLog,
        started_at: float,
        now: Callable[[], float],
    ) -> None:
        def picture() -> Gauges:
            return gauges(state, log, max(0.0, now() - started_at))

        self._registries = {
            deprecated: registry(
                RelayCollector(counters, picture, __version__, config.relay_id, deprecated=deprecated)
            )
            for deprecated in (True, False)
        }

    def render(self, request: Request) -> bytes:
        given = query(request)
        for name in given:
            if name != "deprecated":
                raise BadRequest(
                    name[:64], "nothing: the only parameter is deprecated", known=("deprecated",)
                )
        deprecated = boolean("deprecated", given.get("deprecated", "1"))
        encode, kind = choose_encoder(request.getHeader("accept") or "")
        return put(request, 200, kind, encode(self._registries[deprecated]))
