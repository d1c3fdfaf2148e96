"""A contested seat after the relay's event loop was blocked: a daemon that answered its ping keeps the seat."""

from __future__ import annotations

from tests.memorywire import MemoryPeer, MemoryRelay

PONG_TIMEOUT = 3.0


def relay_with_heartbeat() -> MemoryRelay:
    relay = MemoryRelay(RELAY_PONG_TIMEOUT_MS=str(int(PONG_TIMEOUT * 1000)))
    relay.heartbeat.start()
    return relay


def run(relay: MemoryRelay, seconds: float) -> None:
    for _ in range(round(seconds / 0.1)):
        relay.clock.advance(0.1)
        relay.pump()


def block(relay: MemoryRelay, seconds: float) -> None:
    """Advance the clock alone, as a blocked event loop does; due timers run before any read."""
    relay.clock.rightNow += seconds
    relay.clock.advance(0)
    relay.pump()


def contested(relay: MemoryRelay, *, holder_answers: bool) -> tuple[MemoryPeer, MemoryPeer]:
    """The seat's holder and a challenger; the holder has been pinged and its pong is unread."""
    holder = relay.daemon(generation=1)
    run(relay, 1)
    holder.answers_pings = holder_answers
    challenger = relay.daemon(generation=1)
    return holder, challenger


def test_a_daemon_that_answers_keeps_its_seat_after_a_blocked_loop() -> None:
    relay = relay_with_heartbeat()
    holder, challenger = contested(relay, holder_answers=True)
    block(relay, 60)
    assert holder.is_open and relay.counters.ws_stale_terminated == 0
    run(relay, 3)
    assert holder.is_open and challenger.closed == (4008, "daemon already connected")


def test_a_daemon_without_pong_loses_its_seat_after_a_full_time_out() -> None:
    relay = relay_with_heartbeat()
    holder, challenger = contested(relay, holder_answers=False)
    block(relay, 60)
    run(relay, PONG_TIMEOUT - 0.5)
    assert holder.is_open and challenger.is_open  # a full time-out again: no daemon has answered
    run(relay, 1)
    assert not holder.is_open and challenger.is_open
    assert relay.counters.ws_stale_terminated == 1


def test_no_time_out_while_reading_is_paused() -> None:
    """The pong stays unread while the relay has paused reading (wire protocol, section 8)."""
    relay = relay_with_heartbeat()
    holder, challenger = contested(relay, holder_answers=True)
    holder.connection.reader.pause_reading(relay)
    run(relay, 3 * PONG_TIMEOUT)
    assert holder.is_open and challenger.is_open
    holder.connection.reader.resume_reading(relay)
    run(relay, 2)
    assert holder.is_open and challenger.closed == (4008, "daemon already connected")
