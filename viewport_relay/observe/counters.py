"""The relay's counters: plain integers, and histograms of prometheus_client. `admin.metrics` reads them at scrape time.

Counting a frame is one `+= 1` on an attribute: no lock, no label look-up, no allocation. Histograms are observed outside the
path of a frame: for one read of 64, after the turn was sent, and once for each upgrade.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from attrs import Factory, define, field, fields
from prometheus_client import Histogram, Metric
from prometheus_client.samples import Sample

from viewport_relay.reasons import Reason

#: Outcomes of a request to the platform, as far as its duration is told apart.
OUTCOMES = ("ok", "denied", "failed", "timeout")

_FORWARD = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0)
_ADMISSION = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)

#: A sample of a histogram: its name and its labels.
SampleKey: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

_SAYS: Final = "says"


def counted(says: str) -> int:
    """A field of `Counters` that starts at 0. `says`: what the metric `relay_FIELD_total` tells."""
    made: int = field(default=0, metadata={_SAYS: says})
    return made


def histogram(name: str, says: str, buckets: tuple[float, ...], outcomes: tuple[str, ...] = ()) -> Any:
    """A field with a histogram. Each of `outcomes` is there at 0 from the start: else `increase()` misses the first one."""

    def make() -> Histogram:
        made = Histogram(name, says, ["outcome"] if outcomes else [], registry=None, buckets=buckets)
        for outcome in outcomes:
            made.labels(outcome)
        return made

    return Factory(make)


@define(eq=False)
class Counters:
    """Everything counted since the process started. Bytes are payload bytes of messages."""

    # fmt: off
    admission_ok: int = counted("Peers admitted.")
    admission_denied: int = counted("Peers refused after their token was looked at.")
    upgrade_rate_limited: int = counted("Upgrade attempts over RELAY_RATE_LIMIT_PER_IP.")
    http_rate_limited: int = counted("Plain HTTP requests over RELAY_HTTP_RATE_PER_IP.")
    connections_refused: int = counted("TCP connections closed at accept, of addresses over their budget.")
    ws_connections_opened: int = counted("WebSocket connections opened.")
    ws_connections_closed: int = counted("WebSocket connections closed.")
    ws_connections_rejected: int = counted("Upgrades refused, for any reason.")
    ws_slow_client_terminated: int = counted("Clients closed because they read too slowly (counted when decided).")
    ws_idle_terminated: int = counted("Peers dropped because nothing was received from them.")
    ws_stale_terminated: int = counted("Peers dropped because they did not answer pings.")
    ws_frame_too_large: int = counted("Messages over RELAY_FRAME_MAX_BYTES.")
    frames_client_to_daemon: int = counted("Frames forwarded from clients to daemons.")
    bytes_client_to_daemon: int = counted("Payload bytes forwarded from clients to daemons.")
    frames_daemon_to_clients: int = counted("Frames forwarded from daemons to clients.")
    bytes_daemon_to_clients: int = counted("Payload bytes forwarded from daemons to clients.")
    frames_client_rejected: int = counted("Frames of clients that were not forwarded.")
    frames_daemon_rejected: int = counted("Frames of daemons that were not forwarded.")
    client_redirect: int = counted("Clients told to use another relay.")
    presence_missed: int = counted("Presence frames that a viewer with a full queue missed.")
    worker_requests: int = counted("Requests of executors carried to the platform.")
    worker_requests_failed: int = counted("Requests of executors that the platform did not answer.")
    backplane_refused: int = counted("Commands and questions that Redis or the platform refused.")
    presence_unsigned: int = counted("Presence entries read from Redis without a right signature.")
    bus_publish_ok: int = counted("Bus frames published.")
    bus_publish_failed: int = counted("Bus frames that could not be published.")
    bus_queue_dropped: int = counted("Bus frames that went before they were sent because too much waited, the oldest first.")
    bus_queue_trimmed: int = counted("Bus frames that went because the queue of a relay was full, the oldest first.")
    bus_queue_unread: int = counted("Bus frames that were published, not read by the other relay, and taken back out of its queue after 3 s.")
    bus_pull_frames: int = counted("Bus frames received.")
    bus_pull_invalid_signature: int = counted("Bus frames with a missing or wrong signature.")
    bus_pull_stale_signature: int = counted("Bus frames too old or from the future.")
    bus_pull_replayed_signature: int = counted("Bus frames seen before.")
    worker_processes_lost: int = counted("Worker processes (RELAY_WORKERS) that died or had to be killed.")
    handshakes: Counter[str] = Factory(Counter)  # "none" | "IK" | "IKpsk2" -> links established
    #: handshakes that the peer left, by the reason that is likely
    handshakes_left: Counter[Reason] = Factory(Counter)
    refusals: Counter[Reason] = Factory(Counter)  # upgrades refused
    closes: Counter[Reason] = Factory(Counter)  # connections that the relay closed
    drops: Counter[Reason] = Factory(Counter)  # frames that were dropped
    jwks_fetches: Counter[str] = Factory(Counter)  # "ok" | "failed"
    validations: Counter[str] = Factory(Counter)  # "ok" | "denied" | "failed" | "cached"
    forward_latency: Histogram = histogram("relay_forward_latency_seconds",
        "Time of a frame in the relay, from the read to the receiver's socket; one read of 64 is timed.", _FORWARD)
    admission_latency: Histogram = histogram("relay_admission_latency_seconds",
        "Time from the upgrade request to the answer.", _ADMISSION)
    platform_latency: Histogram = histogram("relay_platform_request_duration_seconds",
        "Time the platform took to answer a validation, by outcome.", _ADMISSION, OUTCOMES)
    # fmt: on
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
    """The key of a sample: its name and its labels."""
    return sample.name, tuple(sorted(sample.labels.items()))


#: Plain counters: attribute of `Counters` -> what it says. The metric is `relay_` + attribute + `_total`.
COUNTERS: Final[Mapping[str, str]] = {
    row.name: row.metadata[_SAYS] for row in fields(Counters) if _SAYS in row.metadata
}
