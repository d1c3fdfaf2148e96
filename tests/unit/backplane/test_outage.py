"""One entry when it breaks, one when it works again."""

from __future__ import annotations

from twisted.internet.task import Clock

from tests.unit.backplane.parts import Log
from viewport_relay.backplane.outage import Outage
from viewport_relay.reasons import Reason


def test_told_once_each_way() -> None:
    clock, log, recovered = Clock(), Log(), []
    outage = Outage(clock, log, ("commands", "bus"), lambda: recovered.append(clock.seconds()))
    assert (outage.is_up, outage.is_down) == (False, False)  # still connecting
    outage.up("commands")
    outage.up("bus")
    assert outage.is_up
    assert log.names() == []
    outage.down("commands", "refused")
    outage.down("bus", "refused too")
    outage.down("commands", "refused again")
    assert (outage.is_up, outage.is_down, outage.why) == (False, True, "refused")
    clock.advance(3)
    outage.up("commands")
    assert outage.is_down
    outage.up("bus")
    outage.up("bus")
    assert (outage.is_up, outage.is_down, recovered) == (True, False, [3.0])
    assert log.names() == ["backplane_unreachable", "backplane_recovered"]
    assert log.events[0]["reason"] is Reason.BACKPLANE_UNREACHABLE
    assert log.events[1]["seconds"] == 3


def test_down_before_it_was_ever_up() -> None:
    clock, log, recovered = Clock(), Log(), []
    outage = Outage(clock, log, ("commands", "bus"), lambda: recovered.append(1))
    outage.down("commands", "refused")
    outage.up("commands")
    assert not outage.is_up  # the other one has said nothing
    outage.up("bus")
    assert outage.is_up
