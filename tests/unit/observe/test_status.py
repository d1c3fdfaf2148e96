"""The status line: triggers and content."""

from __future__ import annotations

import io

import pytest

from tests.logentries import entries_of
from viewport_relay.observe.checks import Condition, Facts
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.problems import QUIET
from viewport_relay.observe.status import StatusLine
from viewport_relay.reasons import Reason


class World:
    """An event log, a clock and facts that a test sets."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0
        self.log = EventLog(io.StringIO(), max_entries=500, now=lambda: self.at)
        self.ready = (True, "")
        self.connections = {"workspace-daemon": 0, "client": 0}
        self.line = StatusLine(self.log, self.facts)

    def facts(self) -> Facts:
        admitted, refused = self.log.problems.recent(self.at)
        return Facts(
            now=self.at, condition=Condition(*self.ready, 5.0, {"mode": "single"}), jwks_ttl=3600.0,
            last_seen=self.log.last_seen, has_internal_key=True,
            problems=self.log.problems.open(self.at), connections=dict(self.connections), admitted=admitted,
            refused=refused,
        )  # fmt: skip

    def run(self, seconds: int) -> list[dict]:
        """Tick once a second; returns the status lines written meanwhile."""
        before = len(entries_of(self.log))
        for _ in range(seconds):
            self.at += 1
            self.line.tick()
        return [entry for entry in entries_of(self.log)[before:] if entry["event"] == "status"]

    def refuse(self, reason=Reason.JWT_EXPIRED, **more):
        about = {"workspaceId": "acme", "role": "client", "ip": "192.0.2.1", "detail": "exp passed 400 s ago"}
        self.log.event("refuse", reason=reason, connection_id="c-1", **(about | more))


@pytest.fixture
def world():
    made = World()
    assert made.run(5) == []
    return made


def test_a_quiet_relay_writes_no_status_line(world):
    assert world.run(600) == []


def test_the_first_refusal_of_a_reason_is_reported_with_cause_fix_and_example(world):
    world.refuse()
    (line,) = world.run(1)
    assert line["level"] == "info" and line["details"]["began"] == ["JWT_EXPIRED"]
    for words in (
        "Daemons can connect", "0 admitted, 1 refused in 5 min (JWT_EXPIRED 1)", "connected: 0 daemons, 0 clients",
        "Worst: JWT_EXPIRED, 1 since", Reason.JWT_EXPIRED.entry.cause, "Fix: let the peer fetch a new token",
        "Example: role=client workspace=acme ip=192.0.2.1 connection=c-1: exp passed 400 s ago",
    ):  # fmt: skip
        assert words in line["message"], line["message"]
    world.refuse()
    assert world.run(30) == [], "not a new reason"
    world.refuse(Reason.INTERNAL_KEY_MISMATCH)
    (line,) = world.run(1)
    assert line["details"]["worst"] == "INTERNAL_KEY_MISMATCH"


@pytest.mark.parametrize("together", [True, False])
def test_a_new_problem_is_reported_with_its_fix_beside_a_worse_one(world, together):
    world.refuse(Reason.INTERNAL_KEY_MISMATCH)
    if not together:
        world.run(1)
    world.refuse(Reason.WORKSPACE_NOT_FOUND)
    (line,) = world.run(1)
    said = line["message"]
    assert (
        line["details"]["worst"] == "INTERNAL_KEY_MISMATCH"
        and "WORKSPACE_NOT_FOUND" in line["details"]["began"]
    )
    assert (
        f"New: WORKSPACE_NOT_FOUND: Workspace not found. Fix: {Reason.WORKSPACE_NOT_FOUND.entry.fix}." in said
    )
    assert said.count("Fix:") == 2, "the worst problem and the new one, each once"


def test_many_new_problems_make_no_long_line(world):
    for reason in list(Reason):
        world.refuse(reason)
    (line,) = world.run(1)
    assert len(line["message"]) < 8192


def test_one_line_a_minute_while_numbers_change(world):
    lines = []
    for n in range(180):
        world.connections["client"] = n
        lines += world.run(1)
    assert len(lines) == 3 and all(line["level"] == "info" for line in lines)
    assert lines[-1]["details"]["connections"]["client"] > 100


def test_the_end_of_a_problem_is_reported(world):
    for _ in range(10):
        world.refuse()
        world.at += 1
    world.run(1)
    lines = world.run(int(QUIET) + 70)
    over = [line for line in lines if line["details"].get("over")]
    assert len(over) == 1 and over[0]["details"]["over"] == ["JWT_EXPIRED"]
    assert "Over: JWT_EXPIRED, 10 in 9 s." in over[0]["message"]


def test_a_change_of_readiness_is_reported_at_once_except_at_start():
    world = World()
    world.ready = (False, "the JWKS was not fetched yet")
    assert world.run(2) == []
    world.ready = (True, "")
    assert world.run(30) == [], "a relay that becomes ready at its start"
    world.ready = (False, "RELAY_SHUTTING_DOWN")
    (line,) = world.run(1)
    assert (
        "Daemons cannot connect: relay shutting down." in line["message"]
        and line["details"]["ready"] is False
    )


def test_a_relay_that_does_not_become_ready_is_reported_within_seconds():
    world = World()
    world.ready = (False, "the JWKS was not fetched yet")
    (line,) = world.run(5)
    assert "Daemons cannot connect: the JWKS was not fetched yet." in line["message"]


def test_a_clock_that_was_set_back_does_not_stop_the_line(world):
    world.connections["client"] = 1
    assert len(world.run(60)) == 1
    world.at -= 86_400
    world.connections["client"] = 2
    assert len(world.run(70)) >= 1


def test_equally_late_tokens_of_several_peers_point_to_a_clock(world):
    for n, late in enumerate((3590, 3600, 3612)):
        world.refuse(ip=f"192.0.2.{n}", workspaceId=f"w-{n}", secondsAgo=late)
    (line,) = world.run(1)
    assert (
        "Fix: the tokens of 3 peers are all about 3600 s past their end: that is a clock" in line["message"]
    )


def test_a_specific_hint_replaces_the_general_fix(world):
    world.refuse(Reason.RATE_LIMIT_EXCEEDED, hint="set RELAY_TRUSTED_PROXIES=10.0.0.5")
    (line,) = world.run(1)
    assert "Fix: set RELAY_TRUSTED_PROXIES=10.0.0.5." in line["message"]


def test_status_lines_are_no_problems(world):
    world.refuse()
    world.run(1)
    assert [row.code for row in world.log.problems.rows(world.at)] == ["JWT_EXPIRED"]
