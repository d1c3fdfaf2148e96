"""Samples of the last hour for the dashboard's charts, and how close the relay is to its limits.

Limits are those of connections and descriptors; memory, CPU, latencies and the certificate's end are shown beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import define, field
from cryptography import x509

from viewport_relay.admin.metrics import process_numbers
from viewport_relay.admin.state import StateSource
from viewport_relay.config import Config, read_file
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.entry import timestamp
from viewport_relay.reasons import Reason

#: Seconds between two samples, and how many are kept: of numbers for an hour, of latencies for five minutes.
STEP: Final = 5.0
KEPT: Final = 720
KEPT_LATENCIES: Final = 61

#: Metric -> what the page calls it.
_LATENCIES: Final = {
    "relay_forward_latency_seconds": "forward",
    "relay_admission_latency_seconds": "admission",
    "relay_platform_request_duration_seconds": "platform",
}

#: Upper edge of a bucket -> observations up to that edge.
Buckets = Mapping[float, float]


@define(eq=False)
class Trends:
    """Samples of connections, counters and latencies. Call `sample` every STEP seconds; `now` gives seconds since the epoch."""

    _config: Callable[[], Config]
    _counters: Counters
    _state: StateSource
    _now: Callable[[], float]
    #: when a frame was last dropped for a reason, to within STEP seconds; seconds since the epoch
    last_drop: dict[Reason, float] = field(factory=dict, init=False)
    _drops: dict[Reason, int] = field(factory=dict, init=False)
    _samples: deque[dict[str, float]] = field(factory=lambda: deque(maxlen=KEPT), init=False)
    _latencies: deque[dict[str, Buckets]] = field(factory=lambda: deque(maxlen=KEPT_LATENCIES), init=False)

    def __attrs_post_init__(self) -> None:
        self._latencies.append(_buckets(self._counters))

    def sample(self) -> None:
        """Keep the numbers of this moment."""
        at = self._now()
        self._samples.append({"at": round(at, 3), **self.numbers()})
        self._latencies.append(_buckets(self._counters))
        for reason, count in self._counters.drops.items():
            if count != self._drops.get(reason, 0):
                self._drops[reason], self.last_drop[reason] = count, at

    def numbers(self) -> dict[str, int]:
        """The numbers of this moment: connections by role, and counters since the start."""
        connections, counters = self._state.connections(), self._counters
        return {
            "daemons": connections.get("workspace-daemon", 0),
            "clients": connections.get("client", 0),
            "workers": connections.get("worker", 0),
            "frames": counters.frames_client_to_daemon + counters.frames_daemon_to_clients,
            "refused": counters.refusals.total(),
        }

    def history(self) -> dict[str, Any]:
        """The samples as columns, a third of the size of rows."""
        names = "at", *self.numbers()
        return {"ok": True, **{name: [row[name] for row in self._samples] for name in names}}

    def capacity(self) -> dict[str, Any]:
        """The use of limits now. Sizes in bytes, times in seconds; a limit of 0 or None is none."""
        config, used = self._config(), sum(self._state.connections().values())
        ends = certificate_end(config.tls_cert_path) if config.tls_cert_path else None
        return {
            "connections": {"used": used, "limit": config.max_total_connections},
            "processes": process_numbers(self._state.processes()),
            "latency": self.quantiles(),
            "certificateEnds": None if ends is None else timestamp(ends),
        }

    def quantiles(self) -> dict[str, dict[str, float | None]]:
        """p50 and p99 of the last five minutes, seconds; None where nothing was observed."""
        oldest, newest = self._latencies[0], _buckets(self._counters)
        found = {}
        for name, buckets in newest.items():
            before = oldest.get(name, {})
            recent = {edge: count - before.get(edge, 0.0) for edge, count in buckets.items()}
            found[name] = {"p50": quantile(recent, 0.5), "p99": quantile(recent, 0.99)}
        return found


def quantile(buckets: Buckets, q: float) -> float | None:
    """The q-quantile of cumulative buckets, linear within a bucket; None where they are empty.

    Above the last finite edge the answer is that edge.
    """
    edges: Sequence[float] = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if total <= 0:
        return None
    rank, below, lower = q * total, 0.0, 0.0
    for edge in edges:
        if edge == float("inf"):
            break
        if buckets[edge] >= rank:
            return lower + (edge - lower) * (rank - below) / (buckets[edge] - below)
        below, lower = buckets[edge], edge
    return lower


def certificate_end(path: str) -> float | None:
    """When the first certificate of a PEM file ends, seconds since the epoch; None when it cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate(read_file(path))
    except ValueError:
        return None
    return certificate.not_valid_after_utc.timestamp()


def _buckets(counters: Counters) -> dict[str, Buckets]:
    """Cumulative buckets of each histogram, all labels added up."""
    found: dict[str, dict[float, float]] = {}
    for metric in counters.latencies():
        buckets = found.setdefault(_LATENCIES[metric.name], {})
        for sample in metric.samples:
            if "le" in sample.labels:
                edge = float(sample.labels["le"])
                buckets[edge] = buckets.get(edge, 0.0) + sample.value
    return dict(found)
