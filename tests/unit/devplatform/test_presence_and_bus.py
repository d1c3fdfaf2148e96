"""Presence: expiry, last write wins. Bus: order, bounds, long polling."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.devplatform.bus import MAX_BYTES, MAX_ENTRIES, MAX_FRAMES, MAX_WAITING, Bus, PresenceTable


@pytest.fixture
def presence(clock: Clock) -> PresenceTable:
    return PresenceTable(clock, clock.seconds)


def test_an_entry_has_the_documented_members(presence: PresenceTable, clock: Clock) -> None:
    presence.announce("w", "t", "relay-1", "wss://one", "laptop")
    assert presence.resolve("w", "t") == {
        "relayId": "relay-1",
        "relayWsBaseUrl": "wss://one",
        "daemonConnected": True,
        "runtimeTargetId": "t",
        "machineId": "laptop",
        "updatedAtMs": int(clock.seconds() * 1000),
    }
    presence.announce("w", "t", "relay-1", "wss://one")
    unknown_machine = presence.resolve("w", "t")
    assert unknown_machine is not None
    assert "machineId" not in unknown_machine


def test_an_entry_expires_after_45_s(presence: PresenceTable, clock: Clock) -> None:
    presence.announce("w", "t", "relay-1", "wss://one")
    clock.advance(45)
    assert presence.resolve("w", "t")
    presence.announce("w", "t", "relay-1", "wss://one")
    clock.advance(45.1)
    assert presence.resolve("w", "t") is None
    assert len(presence) == 0


def test_only_the_holding_relay_deletes_an_entry(presence: PresenceTable) -> None:
    presence.announce("w", "t", "relay-1", "wss://one")
    presence.announce("w", "t", "relay-2", "wss://two")
    presence.withdraw("w", "t", "relay-1")
    entry = presence.resolve("w", "t")
    assert entry is not None
    assert entry["relayId"] == "relay-2"
    presence.withdraw("w", "t", "relay-2")
    assert presence.resolve("w", "t") is None


def test_over_the_limit_the_oldest_entry_is_dropped(presence: PresenceTable) -> None:
    for target in ("a", "b", *map(str, range(MAX_ENTRIES - 2)), "a", "d"):
        presence.announce("w", target, "relay-1", "wss://one")
    assert [bool(presence.resolve("w", target)) for target in "ab0d"] == [True, False, True, True]
    assert len(presence) == MAX_ENTRIES


def frame(number: int, to: str | None = None, **over: object) -> dict[str, object]:
    made: dict[str, object] = {"payload": str(number), "sourceRelayId": "s", **over}
    return made if to is None else {**made, "targetRelayId": to}


def pull(
    bus: Bus, relay: str = "r1", since: int = 0, limit: int = 200, wait: float = 0.0
) -> Deferred[list[dict[str, object]]]:
    return Deferred.fromCoroutine(bus.pull(relay, since, limit, wait))


def now(pulled: Deferred[list[dict[str, object]]]) -> list[dict[str, object]]:
    frames: list[list[dict[str, object]]] = []
    pulled.addCallback(frames.append)
    assert frames, "the pull still waits"
    return frames[0]


@pytest.mark.parametrize("step", [18_000.0, -18_000.0])
def test_the_wall_clock_is_set(clock: Clock, step: float) -> None:
    """An entry lives for its time, and a pull ends after its time."""
    ahead = 0.0
    presence, bus = (kind(clock, lambda: ahead + clock.seconds()) for kind in (PresenceTable, Bus))
    presence.announce("w", "t", "r1", "ws://r1")
    pulled = Deferred.fromCoroutine(bus.pull("r1", 0, 10, 2.0))
    ahead += step
    clock.advance(2.1)
    assert pulled.result == []
    assert presence.resolve("w", "t")
    clock.advance(45)
    assert presence.resolve("w", "t") is None


@pytest.fixture
def bus(clock: Clock) -> Bus:
    return Bus(clock, clock.seconds)


def test_frames_are_delivered_once_and_in_order(bus: Bus) -> None:
    ids = [bus.publish(frame(number)) for number in range(3)]
    got = now(pull(bus))
    assert [one["id"] for one in got] == ids == sorted(ids)
    assert [one["payload"] for one in got] == ["0", "1", "2"]
    assert [one["payload"] for one in now(pull(bus, since=ids[0], limit=1))] == ["1"]
    assert now(pull(bus, since=ids[-1])) == []


def test_a_frame_is_delivered_to_its_addressee_or_to_all(bus: Bus) -> None:
    bus.publish(frame(0, to="r1"))
    bus.publish(frame(1, to="r2"))
    bus.publish(frame(2))
    bus.publish({**frame(3), "targetRelayId": None})
    assert [one["payload"] for one in now(pull(bus, "r1"))] == ["0", "2", "3"]
    assert [one["payload"] for one in now(pull(bus, "r2"))] == ["1", "2", "3"]


def test_the_queue_is_bounded_in_frames_bytes_and_age(bus: Bus, clock: Clock) -> None:
    for number in range(MAX_FRAMES + 2):
        bus.publish(frame(number))
    assert len(bus) == MAX_FRAMES
    assert [one["payload"] for one in now(pull(bus, limit=5))] == ["2", "3", "4", "5", "6"]
    bus.publish(frame(7, extra="x" * (MAX_BYTES - 60)))
    assert [one["payload"] for one in now(pull(bus))] == ["7"]
    clock.advance(60.1)
    assert now(pull(bus)) == []
    assert len(bus) == 0


def test_an_answer_stays_below_the_size_limit_of_relays(clock: Clock) -> None:
    bus = Bus(clock, clock.seconds)
    for number in range(3):
        bus.publish(frame(number, extra="x" * 100_000))
    bus.publish(frame(3, extra="x" * 300_000))
    first = now(pull(bus))
    assert [one["payload"] for one in first] == ["0"]
    last = now(pull(bus, since=int(str(first[0]["id"])) + 2))
    assert [one["payload"] for one in last] == ["3"], "a frame that is large by itself still gets out"


def test_a_pull_waits_for_a_frame(bus: Bus, clock: Clock) -> None:
    waiting = pull(bus, wait=1.0)
    clock.advance(0.9)
    assert bus.waiting == 1
    bus.publish(frame(0, to="someone-else"))
    assert bus.waiting == 1, "a frame for another relay does not end the wait"
    bus.publish(frame(1))
    assert [one["payload"] for one in now(waiting)] == ["1"]
    assert bus.waiting == 0
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(("wanted", "seconds"), [(0.5, 0.5), (2.0, 2.0), (3600.0, 2.0)])
def test_a_pull_without_frames_ends_after_at_most_2_s(
    bus: Bus, clock: Clock, wanted: float, seconds: float
) -> None:
    waiting = pull(bus, wait=wanted)
    clock.advance(seconds - 0.01)
    assert bus.waiting == 1
    clock.advance(0.02)
    assert now(waiting) == []
    assert not clock.getDelayedCalls()


def test_a_disconnected_puller_is_removed(bus: Bus, clock: Clock) -> None:
    waiting = pull(bus, wait=2.0)
    waiting.cancel()
    caught: list[object] = []
    waiting.addErrback(lambda failure: caught.append(failure.value))
    assert isinstance(caught[0], CancelledError)
    assert bus.waiting == 0
    assert not clock.getDelayedCalls()


def test_over_the_limit_of_waiting_pulls_the_answer_is_immediate(bus: Bus) -> None:
    waiting = [pull(bus, wait=2.0) for _ in range(MAX_WAITING)]
    assert now(pull(bus, wait=2.0)) == []
    bus.publish(frame(1))
    assert all(now(one) for one in waiting)


def test_a_restarted_bus_numbers_above_the_old_one(bus: Bus, clock: Clock) -> None:
    last = bus.publish(frame(0))
    clock.advance(1)
    assert Bus(clock, clock.seconds).publish(frame(1)) > last
