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
    targets = state.targets()
    peers = [peer for target in targets for peer in target.peers]
    to_daemons = sum(target.daemon.queued_bytes for target in targets if target.daemon is not None)
    return Gauges(
        connections=state.connections(),
        workspaces=len(targets),
        sessions=sum(target.sessions for target in targets),
        pending_requests=sum(target.pending_requests for target in targets),
        queued_to_daemons=to_daemons,
        queued_to_clients=sum(peer.queued_bytes for peer in peers) - to_daemons,
        queued_most=max((peer.queued_bytes for peer in peers), default=0),
        paused=sum(peer.paused for peer in peers),
        ready=state.readiness()[0],
        jwks_age=state.jwks_age(),
        backplane_up=state.backplane().get("up") is not False,
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
        uptime: Callable[[], float],
    ) -> None:
        def picture() -> Gauges:
            return gauges(state, log, uptime())

        self._registries = {
            deprecated: registry(
                RelayCollector(counters, picture, __version__, config.relay_id, deprecated=deprecated)
            )
            for deprecated in (True, False)
        }

    def render(self, request: Request) -> bytes:
        given = query(request)
        for name in given.keys() - {"deprecated"}:
            raise BadRequest(name[:64], "nothing: the only parameter is deprecated", known=("deprecated",))
        deprecated = boolean("deprecated", given.get("deprecated", "1"))
        encode, kind = choose_encoder(request.getHeader("accept") or "")
        return put(request, 200, kind, encode(self._registries[deprecated]))
