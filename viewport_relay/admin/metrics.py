"""`GET /metrics`: the relay's metrics in the format that the scraper asks for.

One collector reads plain integers and the present state at scrape time. Every label value comes from a table in the code
(roles, reasons, outcomes, process names): peers cannot add any. `docs/reference/metrics.md` is made from this module.
`?deprecated=0` leaves the older names out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import define, evolve
from prometheus_client import GCCollector, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.admin.reply import BadRequest, boolean, put, query
from viewport_relay.admin.state import StateSource
from viewport_relay.observe.counters import COUNTERS, Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason

#: Older name of a gauge -> the name that replaces it. A gauge must not end in `_total`.
DEPRECATED: Final[Mapping[str, str]] = {
    "relay_connections_total": "relay_connections",
    "relay_workspaces_total": "relay_workspaces",
}

_REFUSING = frozenset(r for r in Reason if r.entry.status and not r.name.startswith("ADMIN_"))
_CLOSING = frozenset(r for r in Reason if r.entry.close) | {Reason.PONG_TIMEOUT, Reason.IDLE_TIMEOUT}
_DROPPING = frozenset(
    {
        Reason.INVALID_FRAME, Reason.REQUEST_ID_CONFLICT, Reason.SESSION_NOT_OWNED, Reason.NO_OWNER,
        Reason.DAEMON_UNAVAILABLE, Reason.SESSION_EVENTS_SCOPE_ONLY, Reason.PRESENCE_USER_MISMATCH,
        Reason.BUS_SIGNATURE_INVALID, Reason.BUS_SIGNATURE_STALE, Reason.BUS_SIGNATURE_REPLAYED,
        Reason.BUS_FRAME_REFUSED,
    }
)  # fmt: skip
_HANDSHAKE_FAILURES = tuple(reason for reason in Reason if reason.name.startswith("NOISE_"))


@define(eq=False)
class RelayCollector(Collector):
    """Reads counters, state and log whenever a scraper asks. `uptime` is in seconds. `deprecated` adds the older names."""

    counters: Counters
    state: StateSource
    log: EventLog
    uptime: Callable[[], float]
    relay_id: str
    deprecated: bool = True

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry needs no names at registration

    def collect(self) -> Iterable[Metric]:
        for gauge in self._present():
            yield gauge
            for older, name in DEPRECATED.items():
                if name == gauge.name and self.deprecated:
                    twin = Metric(older, f"Deprecated, use {name}. {gauge.documentation}", "gauge")
                    twin.samples = [sample._replace(name=older) for sample in gauge.samples]
                    yield twin
        yield CounterMetricFamily(
            "relay_log_write_failures", "Log lines that could not be written.", value=self.log.write_failures
        )
        yield from _of_processes(self.state.processes())
        for attribute, says in COUNTERS.items():
            yield CounterMetricFamily(f"relay_{attribute}", says, value=getattr(self.counters, attribute))
        yield from self._labelled()
        yield from self.counters.latencies()

    def _present(self) -> Iterable[Metric]:
        state = self.state
        targets, joined, condition = state.targets(), state.connections(), state.condition()
        peers = [peer for target in targets for peer in target.peers]
        waiting = sum(peer.queued_bytes for peer in peers)
        to_daemons = sum(target.daemon.queued_bytes for target in targets if target.daemon is not None)
        roles = {role: joined.get(role, 0) for role in ("workspace-daemon", "client", "worker")}
        gauge = GaugeMetricFamily
        yield _family(gauge, "relay_connections", "Open connections by role.", "role", roles)
        yield gauge("relay_workspaces", "Runtime targets known to this relay.", len(targets))
        yield gauge("relay_sessions", "Sessions with an owner.", sum(t.sessions for t in targets))
        pending = sum(target.pending_requests for target in targets)
        yield gauge("relay_pending_requests", "Requests without an answer.", pending)
        queued = {"daemons": to_daemons, "clients": waiting - to_daemons}
        yield _family(gauge, "relay_queue_bytes", "Bytes waiting to be sent, by receiver.", "to", queued)
        longest = max((peer.queued_bytes for peer in peers), default=0)
        yield gauge("relay_queue_bytes_max", "The longest of those queues.", longest)
        paused = sum(peer.paused for peer in peers)
        yield gauge("relay_peers_paused", "Peers not read just now (back-pressure).", paused)
        yield gauge("relay_ready", "1 when the relay can admit peers.", int(condition.ready))
        yield gauge("relay_uptime_seconds", "Time since the relay started.", self.uptime())
        if condition.jwks_age is not None:
            yield gauge("relay_jwks_age_seconds", "Age of the key set in use.", condition.jwks_age)
        up = int(condition.backplane.get("up") is not False)
        yield gauge("relay_backplane_up", "1 while the backplane answers, or none is used.", up)
        info = gauge("relay_build_info", "Always 1.", labels=["version", "relay_id"])
        info.add_metric([__version__, self.relay_id], 1)
        yield info

    def _labelled(self) -> Iterable[Metric]:
        """Counters with a label. Every value that may come is there at 0 from the start: else `increase()` misses the first."""
        counted = self.counters
        for name, says, label, table, always in (
            ("refusals", "Upgrades refused, by reason.", "reason", counted.refusals, _REFUSING),
            ("closes", "Connections that the relay closed, by reason.", "reason", counted.closes, _CLOSING),
            ("frames_dropped", "Frames that were dropped, by reason.", "reason", counted.drops, _DROPPING),
            (
                # An IKpsk2 peer with another secret mostly leaves by itself: then there is no close to count.
                "handshake_failures", "Noise handshakes and links that failed, by reason.", "reason",
                {r: counted.closes[r] + counted.handshakes_left[r] for r in _HANDSHAKE_FAILURES}, (),
            ),
            (
                "handshakes", "Connections established, by the link's Noise pattern.", "noise", counted.handshakes,
                ("none", "IK", "IKpsk2"),
            ),
            ("jwks_fetches", "Fetches of the key set.", "outcome", counted.jwks_fetches, ("ok", "failed")),
            (
                "validations", "Platform validations, by outcome.", "outcome", counted.validations,
                ("ok", "denied", "failed", "cached"),
            ),
        ):  # fmt: skip
            values = {getattr(key, "code", key): table.get(key, 0) for key in (*always, *table)}
            yield _family(CounterMetricFamily, f"relay_{name}", says, label, values)


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    says: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    """A metric with one label."""
    family = kind(name, says, labels=[label])
    for value in sorted(values):
        family.add_metric([value], values[value])
    return family


def process_numbers(processes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """CPU, memory and descriptors of each process, by prometheus_client's names; a process that has just ended is left out."""
    found: dict[str, dict[str, float]] = {}
    for process, pid in processes.items():
        collector = ProcessCollector(namespace="of", pid=lambda pid=pid: pid, registry=None)  # type: ignore[misc]
        for metric in collector.collect():
            found.setdefault(process, {})[metric.name.removeprefix("of_process_")] = metric.samples[0].value
    return found


def _of_processes(processes: Mapping[str, int]) -> Iterable[Metric]:
    found = process_numbers(processes)
    for kind, name, says in (
        (CounterMetricFamily, "cpu_seconds", "CPU time used, user and system, by process."),
        (GaugeMetricFamily, "resident_memory_bytes", "Resident memory, by process."),
        (GaugeMetricFamily, "open_fds", "Open file descriptors, by process."),
    ):
        values = {process: numbers[name] for process, numbers in found.items()}
        yield _family(kind, f"relay_process_{name}", says, "process", values)


def registry(collector: RelayCollector) -> CollectorRegistry:
    """A registry with the metrics of the relay, of this process and of the interpreter."""
    made = CollectorRegistry()
    made.register(collector)
    for other in (ProcessCollector, PlatformCollector, GCCollector):
        other(registry=made)
    return made


class MetricsPage:
    """`GET /metrics`: text of version 0.0.4, unless the Accept header names another format."""

    def __init__(self, collector: RelayCollector) -> None:
        self._registries = {older: registry(evolve(collector, deprecated=older)) for older in (True, False)}

    def render(self, request: Request) -> bytes:
        given = query(request)
        for name in given.keys() - {"deprecated"}:
            raise BadRequest(name[:64], "nothing: the only parameter is deprecated", known=("deprecated",))
        deprecated = boolean("deprecated", given.get("deprecated", "1"))
        encode, kind = choose_encoder(request.getHeader("accept") or "")
        return put(request, 200, kind, encode(self._registries[deprecated]))
