"""Outages of the backplane: one log entry at the beginning, one at the end."""

from __future__ import annotations

from twisted.internet.task import Clock

from tests.memorywire import Log
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.outage import Outage
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

PARTS = ("commands", "bus")
REFUSED = Reason.BACKPLANE_REFUSED


class Parts:
    def __init__(self, *parts: str) -> None:
        self.clock, self.log, self.counters = Clock(), Log(), Counters()
        self.recovered: list[float] = []
        self.outage = Outage(
            self.clock, self.log, self.counters, lambda: self.recovered.append(self.clock.seconds())
        )
        for part in parts:
            self.outage.expect(part)

    def is_now(self) -> tuple[bool, bool]:
        return self.outage.is_up, self.outage.is_down


def test_an_outage_and_its_end_are_logged_once() -> None:
    parts = Parts(*PARTS)
    outage = parts.outage
    assert parts.is_now() == (False, False)  # still connecting
    outage.up("commands")
    outage.up("bus")
    assert parts.is_now() == (True, False)
    assert parts.log.names() == []
    outage.down("commands", CarrierFailed("lost"))
    outage.down("bus", CarrierFailed("lost too"))
    outage.down("commands", CarrierFailed("connection refused"))
    assert parts.is_now() == (False, True)
    assert outage.failed.why == "connection refused"
    parts.clock.advance(3)
    outage.up("commands")
    assert outage.is_down
    outage.up("bus")
    outage.up("bus")
    assert parts.is_now() == (True, False)
    assert parts.recovered == [3.0]
    assert parts.log.names() == ["backplane_unreachable", "backplane_recovered"]
    assert parts.log.events[0]["reason"] is Reason.BACKPLANE_UNREACHABLE
    assert parts.log.events[1]["seconds"] == 3


def test_an_outage_before_the_first_connection() -> None:
    parts = Parts(*PARTS)
    parts.outage.down("commands", CarrierFailed("refused"))
    parts.outage.up("commands")
    assert not parts.outage.is_up  # the other part has not reported yet
    parts.outage.up("bus")
    assert parts.outage.is_up


def test_each_reason_is_logged_once_in_an_outage_and_again_in_the_next() -> None:
    parts = Parts("commands")
    for _ in range(2):
        for _ in range(5):
            parts.outage.down("commands", CarrierFailed("READONLY", reason=REFUSED))
            parts.outage.down("commands", CarrierFailed("gone"))
        parts.outage.up("commands")
    line = ["backplane_refused", "backplane_unreachable", "backplane_recovered"]
    assert parts.log.names() == line * 2
    assert parts.counters.backplane_refused == 10


def test_a_part_that_is_not_listed_counts_from_its_first_report() -> None:
    parts = Parts()
    assert parts.is_now() == (True, False)
    parts.outage.down("bus/pull", CarrierFailed("HTTP 429", reason=REFUSED))
    assert parts.is_now() == (False, True)
    parts.outage.up("platform")
    assert parts.outage.is_down
    parts.outage.up("bus/pull")
    assert parts.is_now() == (True, False)
