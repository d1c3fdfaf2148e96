"""How close the relay is to its limits: connections, descriptors, memory, CPU, latencies, the certificate's end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from viewport_relay.admin.metrics import process_numbers
from viewport_relay.admin.state import StateSource
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.entry import timestamp

#: Seconds between two samples of the latencies, and how many are kept: quantiles are of the last five minutes.
SAMPLE: Final = 30.0
KEPT: Final = 11

#: Metric -> what the page calls it.
_LATENCIES: Final = {
    "relay_forward_latency_seconds": "forward",
    "relay_admission_latency_seconds": "admission",
    "relay_platform_request_duration_seconds": "platform",
}

#: Upper edge of a bucket -> observations up to that edge.
Buckets = Mapping[float, float]


class Capacity:
    """Samples latencies; reads the rest when asked. `sample` is to be called every SAMPLE seconds."""

    def __init__(self, config: Config, counters: Counters, state: StateSource) -> None:
        self._config = config
        self._counters = counters
        self._state = state
        self._samples: deque[dict[str, Buckets]] = deque(maxlen=KEPT)
        self._certificate_ends: float | None = None
        self.sample()

    def sample(self) -> None:
        self._samples.append(_buckets(self._counters))
        path = self._config.tls_cert_path
        self._certificate_ends = certificate_end(path) if path else None

    def as_json(self) -> dict[str, Any]:
        """The numbers now. Sizes in bytes, times in seconds; a limit of 0 or None is none."""
        config = self._config
        used = sum(self._state.connections().values())
        return {
            "connections": {"used": used, "limit": config.max_total_connections},
            "perAddress": config.max_connections_per_ip,
            "processes": process_numbers(self._state.processes()),
            "latency": self.quantiles(),
            "certificateEnds": None if self._certificate_ends is None else timestamp(self._certificate_ends),
        }

    def quantiles(self) -> dict[str, dict[str, float | None]]:
        """p50 and p99 of the last five minutes, seconds; None where nothing was observed."""
        oldest, newest = self._samples[0], _buckets(self._counters)
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
        if buckets[edge] >= rank:
            if edge == float("inf"):
                return lower
            inside = buckets[edge] - below
            return lower + (edge - lower) * ((rank - below) / inside if inside else 1.0)
        below, lower = buckets[edge], edge
    return lower


def certificate_end(path: str) -> float | None:
    """When the first certificate of a PEM file ends, seconds since the epoch; None when it cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError):
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
