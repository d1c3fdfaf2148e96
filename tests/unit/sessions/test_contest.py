"""A contested seat when the relay could not hear the daemon that has it: the daemon keeps it."""

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


def stand_still(relay: MemoryRelay, seconds: float) -> None:
    """The clock goes on, nothing else does; then what is due runs before anything is read."""
    relay.clock.rightNow += seconds
    relay.clock.advance(0)
    relay.pump()


def contested(relay: MemoryRelay, *, holder_lives: bool) -> tuple[MemoryPeer, MemoryPeer]:
    """The one that sits, and the one that waits: the first has been pinged and its answer is not read yet."""
    holder = relay.daemon(generation=1)
    run(relay, 1)
    holder.answers_pings = holder_lives
    challenger = relay.daemon(generation=1)
    return holder, challenger


def test_a_daemon_that_lives_keeps_its_seat_after_a_standstill() -> None:
    relay = relay_with_heartbeat()
    holder, challenger = contested(relay, holder_lives=True)
    stand_still(relay, 60)
    assert holder.is_open and relay.counters.ws_stale_terminated == 0
    run(relay, 3)
    assert holder.is_open and challenger.closed == (4008, "daemon already connected")


def test_a_daemon_that_is_gone_loses_it_in_its_time_after_a_standstill() -> None:
    relay = relay_with_heartbeat()
    holder, challenger = contested(relay, holder_lives=False)
    stand_still(relay, 60)
    run(relay, PONG_TIMEOUT - 0.5)
    assert holder.is_open and challenger.is_open  # a whole time-out again, since no daemon answered
    run(relay, 1)
    assert not holder.is_open and challenger.is_open
    assert relay.counters.ws_stale_terminated == 1


def test_a_daemon_that_is_not_read_is_not_judged() -> None:
    """Its answer waits where the relay has stopped reading (wire protocol, section 8)."""
    relay = relay_with_heartbeat()
    holder, challenger = contested(relay, holder_lives=True)
    holder.connection.reader.pause_reading(relay)
    run(relay, 3 * PONG_TIMEOUT)
    assert holder.is_open and challenger.is_open
    holder.connection.reader.resume_reading(relay)
    run(relay, 2)
    assert holder.is_open and challenger.closed == (4008, "daemon already connected")
