"""The relay's metrics as Prometheus reads them.

One collector reads plain integers and a picture of the present at scrape time. Every label value comes from a table in the
code (roles, reasons, outcomes, process names): peers cannot add any. `docs/reference/metrics.md` is made from this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import Factory, frozen
from prometheus_client import GCCollector, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

#: attribute of `Counters` -> what it says. The metric is `relay_` + attribute + `_total`.
COUNTERS: Mapping[str, str] = {
    "admission_ok": "Peers admitted.",
    "admission_denied": "Peers refused after their token was looked at.",
    "upgrade_rate_limited": "Upgrade attempts over RELAY_RATE_LIMIT_PER_IP.",
    "http_rate_limited": "Plain HTTP requests over RELAY_HTTP_RATE_PER_IP.",
    "connections_refused": "TCP connections closed at accept, of addresses over their budget.",
    "ws_connections_opened": "WebSocket connections opened.",
    "ws_connections_closed": "WebSocket connections closed.",
    "ws_connections_rejected": "Upgrades refused, for whatever reason.",
    "ws_slow_client_terminated": "Clients closed because they read too slowly (counted when decided).",
    "ws_idle_terminated": "Peers dropped because nothing was received from them.",
    "ws_stale_terminated": "Peers dropped because they did not answer pings.",
    "ws_frame_too_large": "Messages over RELAY_FRAME_MAX_BYTES.",
    "frames_client_to_daemon": "Frames forwarded from clients to daemons.",
    "bytes_client_to_daemon": "Payload bytes forwarded from clients to daemons.",
    "frames_daemon_to_clients": "Frames forwarded from daemons to clients.",
    "bytes_daemon_to_clients": "Payload bytes forwarded from daemons to clients.",
    "frames_client_rejected": "Frames of clients that were not forwarded.",
    "frames_daemon_rejected": "Frames of daemons that were not forwarded.",
    "client_redirect": "Clients told to use another relay.",
    "presence_missed": "Presence frames that a viewer with a full queue missed.",
    "worker_requests": "Requests of workers carried to the platform.",
    "worker_requests_failed": "Requests of workers that the platform did not answer.",
    "backplane_refused": "Commands and questions that Redis or the platform refused.",
    "presence_unsigned": "Presence entries read from Redis without a right signature.",
    "bus_publish_ok": "Bus frames published.",
    "bus_publish_failed": "Bus frames that could not be published.",
    "bus_queue_dropped": "Bus frames that went before they were sent because too much waited, the oldest first.",
    "bus_queue_trimmed": "Bus frames that went because the queue of a relay was full, the oldest first.",
    "bus_queue_unread": "Bus frames that were published, not read by the other relay, and taken back out of its queue after 3 s.",
    "bus_pull_frames": "Bus frames received.",
    "bus_pull_invalid_signature": "Bus frames with a missing or wrong signature.",
    "bus_pull_stale_signature": "Bus frames too old or from the future.",
    "bus_pull_replayed_signature": "Bus frames seen before.",
    "worker_processes_lost": "Worker processes (RELAY_WORKERS) that died or had to be killed.",
}

_ROLES = ("workspace-daemon", "client", "worker")
_HANDSHAKES = ("none", "IK", "IKpsk2")
#: Older name of a gauge -> the name that replaces it. A gauge must not end in `_total`.
DEPRECATED: Mapping[str, str] = {
    "relay_connections_total": "relay_connections",
    "relay_workspaces_total": "relay_workspaces",
}

#: What is shown of each process: name without the prefix, type, help.
_OF_PROCESSES = (
    ("cpu_seconds", "CPU time used, user and system, by process."),
    ("resident_memory_bytes", "Resident memory, by process."),
    ("open_fds", "Open file descriptors, by process."),
)
_REFUSING = frozenset(r for r in Reason if r.entry.status and not r.name.startswith("ADMIN_"))
_CLOSING = frozenset(r for r in Reason if r.entry.close) | {Reason.PONG_TIMEOUT, Reason.IDLE_TIMEOUT}
_DROPPING = frozenset(
    {
        Reason.INVALID_FRAME, Reason.REQUEST_ID_CONFLICT, Reason.SESSION_NOT_OWNED, Reason.NO_OWNER,
        Reason.DAEMON_UNAVAILABLE, Reason.SESSION_EVENTS_SCOPE_ONLY, Reason.PRESENCE_USER_MISMATCH,
        Reason.BUS_SIGNATURE_INVALID,
        Reason.BUS_SIGNATURE_STALE, Reason.BUS_SIGNATURE_REPLAYED, Reason.BUS_FRAME_REFUSED,
    }
)  # fmt: skip
_HANDSHAKE_FAILURES = tuple(reason for reason in Reason if reason.name.startswith("NOISE_"))


@frozen
class Gauges:
    """The present, as far as metrics show it. Bytes are payload bytes; ages are seconds, None: unknown."""

    connections: Mapping[str, int] = Factory(dict)
    workspaces: int = 0
    sessions: int = 0
    pending_requests: int = 0
    queued_to_daemons: int = 0
    queued_to_clients: int = 0
    queued_most: int = 0
    paused: int = 0
    ready: bool = True
    jwks_age: float | None = None
    backplane_up: bool = True
    uptime: float = 0.0
    log_write_failures: int = 0
    #: name of each process of this relay -> its process id
    processes: Mapping[str, int] = Factory(dict)


class RelayCollector(Collector):
    """Reads `counters` and `gauges()` whenever a scraper asks. `deprecated` adds the older names."""

    def __init__(
        self,
        counters: Counters,
        gauges: Callable[[], Gauges],
        version: str,
        relay_id: str,
        *,
        deprecated: bool = True,
    ) -> None:
        self._deprecated = deprecated
        self._counters = counters
        self._gauges = gauges
        self._info = (version, relay_id)

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry needs no names at registration

    def collect(self) -> Iterable[Metric]:
        present = self._gauges()
        yield from self._present(present)
        yield from _of_processes(present.processes)
        for attribute, says in COUNTERS.items():
            yield CounterMetricFamily(f"relay_{attribute}", says, value=getattr(self._counters, attribute))
        yield from self._by_reason()
        yield from self._counters.latencies()

    def _present(self, now: Gauges) -> Iterable[Metric]:
        yield from self._older_too(_connections(now))
        says = "Runtime targets known to this relay."
        yield from self._older_too(GaugeMetricFamily("relay_workspaces", says, now.workspaces))
        yield GaugeMetricFamily("relay_sessions", "Sessions with an owner.", now.sessions)
        yield GaugeMetricFamily("relay_pending_requests", "Requests without an answer.", now.pending_requests)
        queue = GaugeMetricFamily(
            "relay_queue_bytes", "Bytes waiting to be sent, by receiver.", labels=["to"]
        )
        queue.add_metric(["daemons"], now.queued_to_daemons)
        queue.add_metric(["clients"], now.queued_to_clients)
        yield queue
        yield GaugeMetricFamily("relay_queue_bytes_max", "The longest of those queues.", now.queued_most)
        yield GaugeMetricFamily("relay_peers_paused", "Peers not read just now (back-pressure).", now.paused)
        yield GaugeMetricFamily("relay_ready", "1 when the relay can admit peers.", int(now.ready))
        yield GaugeMetricFamily("relay_uptime_seconds", "Time since the relay started.", now.uptime)
        if now.jwks_age is not None:
            yield GaugeMetricFamily("relay_jwks_age_seconds", "Age of the key set in use.", now.jwks_age)
        yield GaugeMetricFamily(
            "relay_backplane_up", "1 while the backplane answers, or none is used.", int(now.backplane_up)
        )
        yield CounterMetricFamily(
            "relay_log_write_failures", "Log lines that could not be written.", value=now.log_write_failures
        )
        info = GaugeMetricFamily("relay_build_info", "Always 1.", labels=["version", "relay_id"])
        info.add_metric(list(self._info), 1)
        yield info

    def _older_too(self, gauge: GaugeMetricFamily) -> Iterable[Metric]:
        yield gauge
        for older, name in DEPRECATED.items():
            if name == gauge.name and self._deprecated:
                twin = Metric(older, f"Deprecated, use {name}. {gauge.documentation}", "gauge")
                twin.samples = [sample._replace(name=older) for sample in gauge.samples]
                yield twin

    def _by_reason(self) -> Iterable[Metric]:
        counted = self._counters
        for name, says, table, always in (
            ("relay_refusals", "Upgrades refused, by reason.", counted.refusals, _REFUSING),
            ("relay_closes", "Connections that the relay closed, by reason.", counted.closes, _CLOSING),
            ("relay_frames_dropped", "Frames that went nowhere, by reason.", counted.drops, _DROPPING),
        ):
            family = CounterMetricFamily(name, says, labels=["reason"])
            # those that may come are there from the start, at 0: else `increase()` misses the first one
            for reason in sorted({*always, *table}, key=lambda r: r.code):
                family.add_metric([reason.code], table[reason])
            yield family
        handshakes = CounterMetricFamily(
            "relay_handshakes", "Connections established, by the link's Noise pattern.", labels=["noise"]
        )
        for noise in _HANDSHAKES:
            handshakes.add_metric([noise], counted.handshakes.get(noise, 0))
        yield handshakes
        failures = CounterMetricFamily(
            "relay_handshake_failures",
            "Noise handshakes and links that failed, by reason.",
            labels=["reason"],
        )
        for reason in _HANDSHAKE_FAILURES:
            # an IKpsk2 peer with another secret mostly leaves by itself: there is no close to count then
            failed = counted.closes.get(reason, 0) + counted.handshakes_left.get(reason, 0)
            failures.add_metric([reason.code], failed)
        yield failures
        fetches = CounterMetricFamily("relay_jwks_fetches", "Fetches of the key set.", labels=["outcome"])
        for outcome in ("ok", "failed"):
            fetches.add_metric([outcome], counted.jwks_fetches.get(outcome, 0))
        yield fetches
        validations = CounterMetricFamily(
            "relay_validations", "Platform validations, by outcome.", labels=["outcome"]
        )
        for outcome in ("ok", "denied", "failed", "cached"):
            validations.add_metric([outcome], counted.validations.get(outcome, 0))
        yield validations


def _connections(now: Gauges) -> GaugeMetricFamily:
    family = GaugeMetricFamily("relay_connections", "Open connections by role.", labels=["role"])
    for role in _ROLES:
        family.add_metric([role], now.connections.get(role, 0))
    return family


def process_numbers(processes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """CPU, memory and descriptors of each process, as prometheus_client calls them; one that has just ended is left out."""
    found: dict[str, dict[str, float]] = {}
    for process, pid in processes.items():
        collector = ProcessCollector(namespace="of", pid=lambda pid=pid: pid, registry=None)  # type: ignore[misc]
        for metric in collector.collect():
            found.setdefault(process, {})[metric.name.removeprefix("of_process_")] = metric.samples[0].value
    return found


def _of_processes(processes: Mapping[str, int]) -> Iterable[Metric]:
    found = process_numbers(processes)
    for name, says in _OF_PROCESSES:
        made = CounterMetricFamily if name == "cpu_seconds" else GaugeMetricFamily
        family = made(f"relay_process_{name}", says, labels=["process"])
        for process, numbers in found.items():
            family.add_metric([process], numbers[name])
        yield family


def registry(collector: RelayCollector) -> CollectorRegistry:
    """A registry with the metrics of the relay, of this process and of the interpreter."""
    made = CollectorRegistry()
    made.register(collector)
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made
