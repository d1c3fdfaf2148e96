"""Problems: first time, count, peers concerned, end after a quiet period."""

from __future__ import annotations

import io

import pytest

from viewport_relay.observe.entry import LogEntry
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.problems import MOST_DISTINCT, QUIET, Problems
from viewport_relay.observe.recent import SPAN
from viewport_relay.observe.redaction import Redactor
from viewport_relay.reasons import Reason


@pytest.fixture
def log(clock):
    return EventLog(io.StringIO(), max_entries=50, now=clock, secrets=["the-internal-key"])


def refuse(log, reason=Reason.JWT_EXPIRED, workspace="w", ip="192.0.2.1", **more):
    log.event("refuse", reason=reason, workspaceId=workspace, ip=ip, role="client", **more)


def test_folded_events_are_counted(log, clock):
    began = clock.at
    for n in range(302):
        refuse(log, workspace=f"w-{n % 3}", connection_id=f"c-{n}", detail=f"exp passed {n} s ago")
        clock.at += 0.5
    (problem,) = log.problems.open(clock.at)
    assert (problem.code, problem.level, problem.count, problem.lately, problem.total) == (
        "JWT_EXPIRED", "warn", 302, 302, 302,
    )  # fmt: skip
    assert problem.first == began and problem.last == clock.at - 0.5
    assert sorted(problem.workspaces) == ["w-0", "w-1", "w-2"] and problem.addresses == ["192.0.2.1"]
    assert problem.detail == "exp passed 301 s ago" and "connection=c-301" in problem.peer
    assert log.problems.recent(clock.at) == (0, 302)


def test_lately_is_the_last_five_minutes(log, clock):
    for _ in range(60):
        refuse(log)
        clock.at += 10
    (problem,) = log.problems.open(clock.at)
    assert problem.count == 60 and abs(problem.lately - SPAN / 10) <= 1


def test_a_problem_ends_after_the_quiet_period_and_can_recur(log, clock):
    for _ in range(5):
        refuse(log)
    clock.at += QUIET
    assert log.problems.open(clock.at) == [] and len(log.problems.rows(clock.at)) == 1
    refuse(log, workspace="other")
    (problem,) = log.problems.open(clock.at)
    assert (problem.count, problem.total, problem.first, problem.workspaces) == (1, 6, clock.at, ["other"])


@pytest.mark.parametrize(
    ("wrong", "others", "right"),
    [
        ("reload_failed", (), "reload"),
        ("worker_silent", (), "worker_answers"),
        ("worker_silent", ("worker_killed",), "worker_lost"),
        ("tls_certificate_ends", (), "tls_reloaded"),
        ("tls_certificate_invalid", (), "tls_reloaded"),
    ],
)
def test_what_lasts_is_a_problem_until_the_event_that_ends_it(log, clock, wrong, others, right):
    log.event(wrong, message="wrong")
    clock.at += 100 * QUIET
    assert [row.code for row in log.problems.open(clock.at)] == [wrong]
    for event in (*others, right):
        log.event(event, message="right")
    assert wrong not in [row.code for row in log.problems.open(clock.at)]


def test_failed_fetches_are_not_added_to_the_refusals_that_they_cause(log, clock):
    for _ in range(3):
        log.event("jwks_fetch_failed", reason=Reason.JWKS_UNREACHABLE, why="connection refused")
    (problem,) = log.problems.open(clock.at)
    assert problem.count == 3 and problem.detail == "connection refused"
    for _ in range(2):
        refuse(log, Reason.JWKS_UNREACHABLE, detail="connection refused (http://platform.example/jwks)")
        log.event("jwks_fetch_failed", reason=Reason.JWKS_UNREACHABLE, why="connection refused")
    (problem,) = log.problems.open(clock.at)
    assert (problem.count, problem.total) == (2, 2) and problem.event == "refuse"


def test_normal_events_are_no_problems_and_info_reasons_are_not_open(log, clock):
    log.event("join", role="client")
    log.event("relay_started", message="x")
    log.event("leave", role="client", seconds=100)
    log.event("close", reason=Reason.PONG_TIMEOUT)
    assert log.problems.open(clock.at) == []
    assert [row.code for row in log.problems.rows(clock.at)] == ["PONG_TIMEOUT"]
    assert log.problems.recent(clock.at) == (1, 0)


def test_events_without_a_reason_are_problems_of_their_own(log, clock):
    log.event("worker_lost", level="error", message="worker 1 was ended by signal 11")
    refuse(log)
    assert [row.code for row in log.problems.open(clock.at)] == [
        "worker_lost",
        "JWT_EXPIRED",
    ]  # the most severe first


def test_rows_are_redacted_and_bounded(log, clock):
    for n in range(2 * MOST_DISTINCT):
        refuse(
            log, workspace=f"w-{n}", ip=f"10.0.{n // 256}.{n % 256}", detail="the-internal-key " + "x" * 9999
        )
    (problem,) = log.problems.open(clock.at)
    assert len(problem.workspaces) == len(problem.addresses) == MOST_DISTINCT
    assert "the-internal-key" not in problem.detail and len(problem.detail) <= 400


def test_rows_of_other_processes_are_added():
    here, there = Problems(Redactor()), Problems(Redactor())
    for problems, workspace, at in ((here, "a", 1000.0), (there, "b", 1010.0)):
        about = {"workspaceId": workspace, "ip": "192.0.2.1", "detail": workspace}
        problems.note(LogEntry(at, "warn", "refuse", Reason.JWT_EXPIRED, None, "c", about))
    there.note(LogEntry(1011.0, "error", "refuse", Reason.JWKS_UNREACHABLE, None, "c", {}))
    here.note(LogEntry(1012.0, "error", "jwks_fetch_failed", Reason.JWKS_UNREACHABLE, None, None, {}))
    here.elsewhere = [there.report(1020.0)]
    rows = {row.code: row for row in here.open(1020.0)}
    expired = rows["JWT_EXPIRED"]
    assert (expired.count, expired.first, expired.last) == (2, 1000.0, 1010.0)
    assert set(expired.workspaces) == {"a", "b"} and len(expired.addresses) == 1 and expired.detail == "b"
    assert rows["JWKS_UNREACHABLE"].count == 1
    assert here.recent(1020.0) == (0, 3)
