"""The wall clock is set while the relay runs: ages, windows and durations go on as if it had not been."""

from __future__ import annotations

import io
from email.utils import formatdate
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from tests.logentries import entries_of
from viewport_relay.admin.auth import ONE_TIME_SECONDS, AdminAuth
from viewport_relay.admission.httpcall import Answer
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.observe.checks import Condition, Facts
from viewport_relay.observe.folding import WINDOW
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.problems import QUIET
from viewport_relay.observe.recent import SPAN
from viewport_relay.observe.status import StatusLine
from viewport_relay.observe.verdict import verdict_of
from viewport_relay.reasons import Reason

EPOCH = 1_700_000_000.0
HOURS = 3600.0

#: By how many seconds the wall clock is set.
STEPS = pytest.mark.parametrize("step", [5 * HOURS, -5 * HOURS, 90.0, -90.0])


class Machine:
    """A log on a machine with both clocks."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ahead = EPOCH
        self.ready = True
        self.out = io.StringIO()
        self.log = EventLog(self.out, max_entries=500, now=self.wall, clock=self.clock.seconds)

    def wall(self) -> float:
        return self.ahead + self.clock.seconds()

    def facts(self) -> Facts:
        at = self.log.now()
        admitted, refused = self.log.problems.recent(at)
        return Facts(
            now=at, condition=Condition(self.ready, "", 5.0, {"mode": "single"}), jwks_ttl=3600.0,
            last_seen=self.log.last_seen, has_internal_key=True, problems=self.log.problems.open(at),
            admitted=admitted, refused=refused,
        )  # fmt: skip

    def refuse(self, reason: Reason = Reason.PLATFORM_UNREACHABLE) -> None:
        self.log.event("refuse", reason=reason, workspaceId="acme", role="client", ip="192.0.2.1")

    def told(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in entries_of(self.log) if entry["event"] == event]


@STEPS
def test_a_problem_is_open_for_as_long_as_without_the_step(step: float) -> None:
    machine = Machine()
    machine.refuse()
    machine.clock.advance(60)
    machine.ahead += step
    [row] = machine.facts().problems
    assert (row.code, row.lately, row.first) == ("PLATFORM_UNREACHABLE", 1, machine.wall() - 60)
    machine.clock.advance(QUIET - 61)
    assert machine.facts().problems
    machine.clock.advance(2)
    assert not machine.facts().problems


@STEPS
def test_the_numbers_of_the_last_minutes(step: float) -> None:
    machine = Machine()
    for _ in range(3):
        machine.log.event("join", connection_id="c", role="client", ip="192.0.2.1")
    machine.refuse()
    machine.clock.advance(60)
    machine.ahead += step
    assert (machine.facts().admitted, machine.facts().refused) == (3, 1)
    machine.refuse()
    assert machine.facts().refused == 2
    machine.clock.advance(SPAN - 30)
    assert (machine.facts().admitted, machine.facts().refused) == (0, 1)
    machine.clock.advance(60)
    assert machine.facts().refused == 0


@STEPS
def test_a_fault_that_is_over_does_not_come_back(step: float) -> None:
    machine = Machine()
    machine.refuse()
    assert verdict_of(machine.facts()).state == "bad"
    machine.clock.advance(5)
    machine.log.event("join", connection_id="c", role="client", ip="192.0.2.1")
    machine.clock.advance(200)
    before = verdict_of(machine.facts())
    machine.ahead += step
    assert verdict_of(machine.facts()) == before


@STEPS
def test_a_window_of_folding_has_its_length(step: float) -> None:
    machine = Machine()
    for _ in range(20):
        machine.refuse()
    machine.clock.advance(WINDOW / 2)
    machine.ahead += step
    machine.log.sweep()
    assert not machine.told("folded")
    machine.clock.advance(WINDOW / 2)
    machine.log.sweep()
    [summary] = machine.told("folded")
    assert summary["details"]["count"] == 15


@STEPS
def test_a_flapping_peer_is_told_once_a_window(step: float) -> None:
    machine = Machine()
    about = {"connection_id": "c", "role": "client", "workspaceId": "acme", "ip": "192.0.2.1"}
    for _ in range(10):
        machine.log.event("join", **about)
        machine.log.event("leave", seconds=0.1, **about)
    machine.ahead += step
    machine.log.sweep()
    assert not machine.told("flapping")
    machine.clock.advance(WINDOW)
    machine.log.sweep()
    assert len(machine.told("flapping")) == 1


def test_a_relay_that_is_not_ready_says_so_although_the_clock_was_set_back() -> None:
    machine = Machine()
    machine.ready = False
    line = StatusLine(machine.log, machine.facts)
    line.tick()
    machine.ahead -= 5 * HOURS
    for _ in range(5):
        machine.clock.advance(1)
        line.tick()
    assert [entry["details"]["ready"] for entry in machine.told("status")] == [False]


def test_slow_adjustment_of_the_clock_is_no_step() -> None:
    """An NTP daemon that slews changes the clock by 0.5 ms a second."""
    machine = Machine()
    machine.refuse()
    for _ in range(100):
        machine.clock.advance(1)
        machine.ahead += 0.0005
        machine.log.sweep()
    assert machine.facts().problems[0].first == EPOCH


@STEPS
def test_the_distance_from_the_platforms_clock_follows_at_once(step: float) -> None:
    machine = Machine()
    platform = PlatformClock(machine.clock, machine.wall)
    platform.observe(Answer(200, Headers({"date": [formatdate(EPOCH, usegmt=True)]}), b""))
    machine.clock.advance(100)
    machine.ahead += step
    assert platform.offset() == pytest.approx(step, abs=1)


@STEPS
def test_a_one_time_key_is_good_for_its_time(step: float) -> None:
    machine = Machine()
    auth = AdminAuth(["an-admin-token-0123456789abcdef"], now=machine.wall, clock=machine.clock.seconds)
    key, late = auth.one_time_key(), auth.one_time_key()
    machine.ahead += step
    assert auth.redeem(key)
    machine.clock.advance(ONE_TIME_SECONDS + 1)
    assert not auth.redeem(late)
