"""Plain integers that the relay counts with; `metrics.py` reads them when a scraper asks.

Counting on the way of a frame is one `+= 1` on an attribute: no lock, no label look-up, no allocation.
"""

from __future__ import annotations

from collections import Counter

from attrs import Factory, define

from viewport_relay.observe.histogram import Histogram, admission_histogram, forward_histogram
from viewport_relay.reasons import Reason


@define(eq=False)
class Counters:
    """Everything counted since the process started. Bytes are payload bytes of messages."""

    admission_ok: int = 0
    admission_denied: int = 0
    upgrade_rate_limited: int = 0
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
    bus_publish_ok: int = 0
    bus_publish_failed: int = 0
    bus_pull_frames: int = 0
    bus_pull_invalid_signature: int = 0
    bus_pull_stale_signature: int = 0
    bus_pull_replayed_signature: int = 0
    worker_processes_lost: int = 0  # with RELAY_WORKERS, where nobody had asked them to end
    handshakes: Counter[str] = Factory(Counter)  # "none" | "IK" | "IKpsk2" -> links established
    handshakes_left: Counter[Reason] = Factory(
        Counter
    )  # handshakes that the peer left, where that says something
    refusals: Counter[Reason] = Factory(Counter)  # upgrades refused
    closes: Counter[Reason] = Factory(Counter)  # connections that the relay closed
    drops: Counter[Reason] = Factory(Counter)  # frames that went nowhere
    jwks_fetches: Counter[str] = Factory(Counter)  # "ok" | "failed"
    validations: Counter[str] = Factory(Counter)  # "ok" | "denied" | "failed" | "cached"
    forward_latency: Histogram = Factory(forward_histogram)  # frame read -> written to the receiver, seconds
    admission_latency: Histogram = Factory(
        admission_histogram
    )  # upgrade asked -> admitted or refused, seconds
    #: "ok" | "denied" | "failed" | "timeout" -> time the platform took to answer `validate`, seconds
    platform_latency: dict[str, Histogram] = Factory(dict)

    def platform_answered(self, outcome: str, seconds: float) -> None:
        """Count one request to the platform."""
        histogram = self.platform_latency.get(outcome)
        if histogram is None:
            histogram = self.platform_latency[outcome] = admission_histogram()
        histogram.observe(seconds)
