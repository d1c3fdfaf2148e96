"""The heartbeat after the whole process stood still: no connection is closed for bytes that could not be read."""

from __future__ import annotations

from tests.memorywire import MemoryRelay

PEERS = {"RELAY_PING_INTERVAL_MS": "1000", "RELAY_PONG_TIMEOUT_MS": "3000", "RELAY_IDLE_TIMEOUT_MS": "5000"}


def run(relay: MemoryRelay, seconds: float, step: float = 0.1) -> None:
    for _ in range(round(seconds / step)):
        relay.clock.advance(step)
        relay.pump()


def test_time_in_which_we_stood_still_counts_against_nobody() -> None:
    relay = MemoryRelay(**PEERS)
    relay.heartbeat.start()
    client = relay.client()
    run(relay, 3)
    assert client.is_open and client.pings
    relay.clock.rightNow += 60.0  # the clock goes on, nothing else does
    relay.clock.advance(0)
    assert client.is_open and relay.counters.ws_idle_terminated == relay.counters.ws_stale_terminated == 0
    # Afterwards the clocks run as before: who answers stays, who does not is dropped in its time.
    run(relay, 6)
    assert client.is_open
    client.answers_pings = False
    run(relay, 6)
    assert not client.is_open and relay.counters.ws_stale_terminated == 1


def test_small_delays_are_not_forgiven() -> None:
    """A busy reactor is late all the time: that must not keep the dead alive."""
    relay = MemoryRelay(**PEERS)
    relay.heartbeat.start()
    client = relay.client()
    client.answers_pings = False
    run(relay, 9, step=0.9)
    assert not client.is_open
