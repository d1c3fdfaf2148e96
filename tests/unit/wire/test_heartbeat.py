"""The heartbeat after a blocked event loop: unread bytes cause no time-out."""

from __future__ import annotations

from tests.memorywire import MemoryRelay

PEERS = {"RELAY_PING_INTERVAL_MS": "1000", "RELAY_PONG_TIMEOUT_MS": "3000", "RELAY_IDLE_TIMEOUT_MS": "5000"}


def run(relay: MemoryRelay, seconds: float, step: float = 0.1) -> None:
    for _ in range(round(seconds / step)):
        relay.clock.advance(step)
        relay.pump()


def test_blocked_time_causes_no_time_out() -> None:
    relay = MemoryRelay(**PEERS)
    relay.heartbeat.start()
    client = relay.client()
    run(relay, 3)
    assert client.is_open and client.pings
    relay.clock.rightNow += 60.0  # advance the clock only, as a blocked event loop does
    relay.clock.advance(0)
    assert client.is_open and relay.counters.ws_idle_terminated == relay.counters.ws_stale_terminated == 0
    # Afterwards time-outs apply again.
    run(relay, 6)
    assert client.is_open
    client.answers_pings = False
    run(relay, 6)
    assert not client.is_open and relay.counters.ws_stale_terminated == 1


def test_small_delays_do_not_suspend_the_time_out() -> None:
    """A busy reactor is always a little late: small delays must not suspend the time-out."""
    relay = MemoryRelay(**PEERS)
    relay.heartbeat.start()
    client = relay.client()
    client.answers_pings = False
    run(relay, 9, step=0.9)
    assert not client.is_open
