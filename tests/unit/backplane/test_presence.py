"""Presence: announcements, their order, and the cache of look-ups."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.memorywire import Log
from tests.unit.backplane.parts import StubCarrier
from viewport_relay.backplane.interface import CarrierFailed, SeatClaim, TargetKey, Whereabouts
from viewport_relay.backplane.lookups import Lookups
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.presence import Presence
from viewport_relay.observe.counters import Counters

KEY = ("w", "t")
HOLDER, NEXT_HOLDER = object(), object()
THERE = {"relayId": "b", "relayWsBaseUrl": "ws://b", "daemonConnected": True}


class Parts:
    def __init__(self, *, hold: bool = False, interval: float = 20.0) -> None:
        self.clock = Clock()
        self.carrier = StubCarrier(hold=hold)
        self.log = Log()
        self.outage = Outage(self.clock, self.log, Counters(), lambda: self.presence.tell_again())
        self.outage.expect("p")
        self.presence = Presence(
            self.clock,
            self.carrier,
            self.outage,
            self.log,
            lambda: 1_800_000_000.0,
            relay_id="a",
            ws_base_url="ws://a",
            interval=interval,
        )
        self.lookups = Lookups(
            self.clock,
            self.carrier,
            self.outage,
            self.log,
            is_own=lambda relay_id: relay_id in ("a", "parent"),
            acceptable=lambda url: "evil" not in url,
        )
        self.moved: list[tuple[TargetKey, object]] = []
        self.presence.start(self._moved)

    def _moved(self, target: TargetKey, holder: object) -> None:
        self.moved.append((target, holder))
        self.presence.changed(target, None, None)

    def calls(self) -> list[str]:
        return [call[0] for call in self.carrier.seen]


def value(deferred: Deferred[Any]) -> Any:
    found: list[Any] = []
    deferred.addCallback(found.append)
    return found[0]


def test_a_fault_is_logged_with_its_traceback() -> None:
    parts = Parts()
    parts.carrier.failing = ZeroDivisionError("a fault of the carrier")
    parts.presence.changed(KEY, HOLDER, "m")
    [entry] = parts.log.named("internal_error")
    assert "Traceback" in entry["message"] and "in _step" in entry["message"]


def test_announced_renewed_withdrawn() -> None:
    parts = Parts()
    parts.presence.changed(KEY, HOLDER, "m")
    assert parts.carrier.entries[KEY] == {
        "relayId": "a",
        "relayWsBaseUrl": "ws://a",
        "daemonConnected": True,
        "runtimeTargetId": "t",
        "machineId": "m",
        "updatedAtMs": 1_800_000_000_000,
    }
    parts.clock.pump([1.0] * 45)
    assert parts.calls() == ["announce", "renew", "renew"]
    parts.presence.changed(KEY, None, None)
    assert parts.calls()[-1] == "withdraw"
    assert parts.carrier.entries == {}
    parts.clock.pump([1.0] * 60)
    assert len(parts.calls()) == 4


def test_an_interval_of_zero_disables_announcements() -> None:
    parts = Parts(interval=0.0)
    parts.presence.changed(KEY, HOLDER, None)
    parts.presence.changed(KEY, None, None)
    parts.clock.advance(100)
    assert parts.calls() == []


def test_leave_and_join_are_announced_in_order() -> None:
    parts = Parts(hold=True)
    parts.presence.changed(KEY, HOLDER, "m1")
    parts.presence.changed(KEY, None, None)
    parts.presence.changed(KEY, NEXT_HOLDER, "m2")
    assert parts.carrier.seen == [("announce", KEY, "m1")]  # one call at a time
    parts.carrier.answer()
    parts.carrier.answer()
    assert parts.carrier.seen == [("announce", KEY, "m1"), ("announce", KEY, "m2")]
    parts.presence.changed(KEY, None, None)
    parts.presence.changed(KEY, HOLDER, "m3")
    parts.presence.changed(KEY, None, None)
    parts.carrier.answer()
    assert parts.carrier.entries == {}


def test_a_daemon_that_leaves_while_the_answer_to_its_announcement_is_lost_is_withdrawn() -> None:
    parts = Parts(hold=True)
    parts.presence.changed(KEY, HOLDER, None)
    parts.presence.changed(KEY, None, None)
    parts.carrier.fail(CarrierFailed("the connection to Redis was lost", outage=False))
    parts.presence.tell_again()
    assert parts.calls() == ["announce", "withdraw"]
    parts.carrier.answer()
    parts.presence.tell_again()
    assert parts.calls() == ["announce", "withdraw"]


def test_a_daemon_that_moved_to_another_relay() -> None:
    parts = Parts()
    parts.presence.changed(KEY, HOLDER, None)
    parts.carrier.entries[KEY] = THERE
    parts.clock.pump([1.0] * 25)
    assert parts.moved == [(KEY, HOLDER)]
    assert parts.carrier.entries[KEY] == THERE  # the other relay's entry stays
    assert "withdraw" not in parts.calls()


def test_a_daemon_that_joins_during_a_renewal_stays() -> None:
    parts = Parts(hold=True)
    parts.presence.changed(KEY, HOLDER, "m1")
    parts.carrier.answer()
    parts.carrier.entries[KEY] = THERE
    parts.clock.pump([1.0] * 25)
    assert parts.calls()[-1] == "renew"
    parts.presence.changed(KEY, NEXT_HOLDER, "m2")
    parts.carrier.answer()
    assert parts.moved == []
    parts.carrier.answer()
    assert (
        parts.carrier.entries[KEY]["machineId"] == "m2"
    )  # the newer announcement replaces the other relay's


def test_missed_announcements_are_sent_after_the_outage() -> None:
    parts = Parts()
    parts.outage.down("p", CarrierFailed("gone"))
    parts.presence.changed(KEY, HOLDER, None)
    parts.clock.pump([1.0] * 30)
    assert parts.calls() == []  # no command is sent in an outage
    parts.outage.up("p")
    assert parts.calls() == ["renew"]  # renew, since the daemon may have moved in the outage
    parts.outage.down("p", CarrierFailed("gone"))
    parts.carrier.entries.clear()
    parts.outage.up("p")
    assert parts.calls() == ["renew", "renew"]
    assert KEY in parts.carrier.entries


def test_a_refused_command_is_logged_and_repeated() -> None:
    parts = Parts()
    parts.carrier.failing = CarrierFailed("Redis says: NOPERM", outage=False)
    parts.presence.changed(KEY, HOLDER, None)
    assert parts.log.names() == ["presence_failed"]
    parts.carrier.failing = None
    parts.clock.pump([1.0] * 25)
    assert parts.calls() == ["announce", "renew"]


def test_a_withdrawal_that_keeps_failing_is_dropped() -> None:
    parts = Parts()
    parts.presence.changed(KEY, HOLDER, None)
    parts.carrier.failing = CarrierFailed("down")
    parts.presence.changed(KEY, None, None)
    parts.clock.pump([1.0] * 90)
    assert parts.presence._seats == {}


def test_settle_waits_for_the_withdrawal() -> None:
    parts = Parts(hold=True)
    parts.presence.changed(KEY, HOLDER, None)
    parts.carrier.answer()
    parts.presence.changed(KEY, None, None)
    settled = Deferred.fromCoroutine(parts.presence.settle())
    assert not settled.called
    parts.carrier.answer()
    assert settled.called


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (THERE, Whereabouts("b", "ws://b")),
        ({**THERE, "machineId": "m", "more": [1]}, Whereabouts("b", "ws://b")),
        (None, None),
        ({**THERE, "relayId": "a"}, None),  # the own entry: the daemon has left
        ({**THERE, "relayId": "parent"}, None),
        ({**THERE, "relayId": ""}, None),
        ({**THERE, "relayId": 7}, None),
        ({**THERE, "relayId": "x" * 129}, None),
        ({**THERE, "daemonConnected": False}, None),
        ({**THERE, "daemonConnected": 1}, None),
        ({**THERE, "relayWsBaseUrl": None}, None),
        ({**THERE, "relayWsBaseUrl": "ws://evil"}, None),
        ({}, None),
    ],
)
def test_valid_and_invalid_entries(entry: dict[str, object] | None, found: Whereabouts | None) -> None:
    parts = Parts()
    if entry is not None:
        parts.carrier.entries[KEY] = entry
    assert value(parts.lookups.resolve(KEY)) == found


def test_an_entry_is_cached_for_two_seconds_and_a_missing_one_briefly() -> None:
    parts = Parts()
    for seconds, asked in ((0.0, 1), (0.2, 1), (0.1, 2)):
        parts.clock.advance(seconds)
        assert value(parts.lookups.resolve(KEY)) is None
        assert parts.calls().count("resolve") == asked
    parts.carrier.entries[KEY] = THERE
    parts.clock.advance(0.3)
    for seconds, asked in ((0.0, 3), (1.9, 3), (0.2, 4)):
        parts.clock.advance(seconds)
        assert value(parts.lookups.resolve(KEY)) == Whereabouts("b", "ws://b")
        assert parts.calls().count("resolve") == asked


def test_concurrent_look_ups_are_shared_and_a_failure_finds_no_relay() -> None:
    parts = Parts(hold=True)
    waiting = [parts.lookups.resolve(KEY) for _ in range(5)]
    assert parts.calls() == ["resolve"]
    parts.carrier.fail(CarrierFailed("time out"))
    assert [value(one) for one in waiting] == [None] * 5
    parts.outage.down("p", CarrierFailed("gone"))
    assert value(parts.lookups.resolve(KEY)) is None
    assert parts.calls() == ["resolve"]


def take_by_b(parts: Parts, generation: int | None) -> str | None:
    """Relay b announces a newly joined daemon."""
    return parts.carrier.seats.take(KEY, THERE, SeatClaim(generation, 1_800_000_000_000), new=True)


def test_a_seat_taken_by_another_relay_is_released_within_a_second() -> None:
    parts = Parts()
    parts.presence.changed(KEY, HOLDER, None, 5)
    assert take_by_b(parts, 5) is None
    parts.clock.pump([0.1] * 6)
    assert parts.moved == [(KEY, HOLDER)]
    assert parts.carrier.entries[KEY] == THERE


def test_a_higher_generation_keeps_its_seat() -> None:
    parts = Parts()
    parts.presence.changed(KEY, HOLDER, None, 5)
    assert take_by_b(parts, 4) == "a"
    parts.clock.pump([0.1] * 10)
    assert parts.moved == []


def test_a_lower_generation_is_closed_at_once() -> None:
    parts = Parts()
    take_by_b(parts, 6)
    parts.presence.changed(KEY, HOLDER, None, 5)
    assert parts.moved == [(KEY, HOLDER)]
    assert parts.carrier.entries[KEY] == THERE


def test_a_daemon_from_an_outage_does_not_replace_a_later_one() -> None:
    parts = Parts()
    parts.outage.down("p", CarrierFailed("gone"))
    parts.presence.changed(KEY, HOLDER, None, 5)
    parts.clock.advance(10)
    parts.carrier.seats.take(KEY, THERE, SeatClaim(5, 1_800_000_005_000), new=True)
    parts.outage.up("p")
    assert parts.moved == [(KEY, HOLDER)]


def test_a_higher_generation_regains_its_seat_after_an_outage() -> None:
    parts = Parts()
    parts.presence.changed(KEY, HOLDER, None, 6)
    parts.outage.down("p", CarrierFailed("gone"))
    parts.carrier.seats.lose_everything()
    take_by_b(parts, 5)
    parts.outage.up("p")
    assert parts.moved == []
    assert parts.carrier.entries[KEY]["relayId"] == "a"
    assert parts.carrier.seats.moved("b") == [KEY]


def test_a_cached_entry_is_refreshed_before_it_expires() -> None:
    parts = Parts()
    assert parts.lookups.known(KEY) is None
    parts.carrier.entries[KEY] = THERE
    value(parts.lookups.resolve(KEY))
    for _ in range(100):
        assert parts.lookups.known(KEY) == Whereabouts("b", "ws://b")
        parts.clock.advance(0.1)
    assert 9 <= parts.calls().count("resolve") <= 11
    parts.carrier.entries[KEY] = {**THERE, "relayId": "c"}
    parts.clock.advance(1.0)
    parts.lookups.known(KEY)
    assert parts.lookups.known(KEY) == Whereabouts("c", "ws://b")
