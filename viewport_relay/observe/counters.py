"""The relay's counters: plain integers, and histograms of prometheus_client. `metrics.py` reads them at scrape time.

Counting a frame is one `+= 1` on an attribute: no lock, no label look-up, no allocation. Histograms are observed outside the
path of a frame: for one read of 64, after the turn was sent, and once for each upgrade.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from attrs import Factory, define
from prometheus_client import Histogram, Metric
from prometheus_client.samples import Sample

from viewport_relay.reasons import Reason

#: Outcomes of a request to the platform, as far as its duration is told apart.
OUTCOMES = ("ok", "denied", "failed", "timeout")

_FORWARD = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0)
_ADMISSION = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)

#: A sample of a histogram: its name and its labels.
SampleKey: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


def _forward() -> Histogram:
    says = "Time of a frame in the relay, from the read to the receiver's socket; one read of 64 is timed."
    return Histogram("relay_forward_latency_seconds", says, registry=None, buckets=_FORWARD)


def _admission() -> Histogram:
    says = "Time from the upgrade request to the answer."
    return Histogram("relay_admission_latency_seconds", says, registry=None, buckets=_ADMISSION)


def _platform() -> Histogram:
    made = Histogram(
        "relay_platform_request_duration_seconds",
        "Time the platform took to answer a validation, by outcome.",
        labelnames=["outcome"],
        registry=None,
        buckets=_ADMISSION,
    )
    for outcome in OUTCOMES:  # at 0 from the start: else `increase()` misses the first one
        made.labels(outcome)
    return made


@define(eq=False)
class Counters:
    """Everything counted since the process started. Bytes are payload bytes of messages."""

    admission_ok: int = 0
    admission_denied: int = 0
    upgrade_rate_limited: int = 0
    http_rate_limited: int = 0
    connections_refused: int = 0  # closed as soon as they were accepted
    ws_connections_opened: int = 0
    ws_connections_closed: int = 0
    ws_connections_rejected: int = 0
    ws_slow_client_terminated: int = 0
    ws_idle_terminated: int = 0
    ws_stale_terminated: int = 0
    ws_frame_too_large: int = 0
    frames_client_to_daemon: int = 0
    bytes_client_to_daemon: int = 0
    frames_daemon_to_clients: int = 0
    bytes_daemon_to_clients: int = 0
    frames_client_rejected: int = 0
    frames_daemon_rejected: int = 0
    client_redirect: int = 0
    presence_missed: int = 0  # presence frames that a viewer could not take at once
    worker_requests: int = 0
    worker_requests_failed: int = 0
    backplane_refused: int = 0
    presence_unsigned: int = 0
    bus_publish_ok: int = 0
    bus_publish_failed: int = 0
    bus_queue_dropped: int = 0
    bus_queue_trimmed: int = 0
    bus_queue_unread: int = 0
    bus_pull_frames: int = 0
    bus_pull_invalid_signature: int = 0
    bus_pull_stale_signature: int = 0
    bus_pull_replayed_signature: int = 0
    worker_processes_lost: int = 0  # with RELAY_WORKERS: ended without having been told to
    handshakes: Counter[str] = Factory(Counter)  # "none" | "IK" | "IKpsk2" -> links established
    handshakes_left: Counter[Reason] = Factory(
        Counter
    )  # handshakes that the peer left, where that says something
    refusals: Counter[Reason] = Factory(Counter)  # upgrades refused
    closes: Counter[Reason] = Factory(Counter)  # connections that the relay closed
    drops: Counter[Reason] = Factory(Counter)  # frames that went nowhere
    jwks_fetches: Counter[str] = Factory(Counter)  # "ok" | "failed"
    validations: Counter[str] = Factory(Counter)  # "ok" | "denied" | "failed" | "cached"
    forward_latency: Histogram = Factory(_forward)
    admission_latency: Histogram = Factory(_admission)
    platform_latency: Histogram = Factory(_platform)
    #: samples of the histograms of other processes of this relay, added when they are read
    elsewhere: dict[SampleKey, float] = Factory(dict)

    def platform_answered(self, outcome: str, seconds: float) -> None:
        """Count one request to the platform; `outcome` is one of OUTCOMES."""
        self.platform_latency.labels(outcome).observe(seconds)

    def latencies(self) -> Iterator[Metric]:
        """The histograms as metrics, those of other processes added."""
        for histogram in (self.forward_latency, self.admission_latency, self.platform_latency):
            for metric in histogram.collect():
                metric.samples = [
                    sample._replace(value=sample.value + self.elsewhere.get(sample_key(sample), 0.0))
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ]
                yield metric


def sample_key(sample: Sample) -> SampleKey:
    """What tells a sample from the others."""
    return sample.name, tuple(sorted(sample.labels.items()))
