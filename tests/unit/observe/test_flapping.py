"""Flapping peers: folded log entries, exact counts, no connection missing from the log."""

from __future__ import annotations

import io

import pytest

from tests.logentries import entries_of
from viewport_relay.observe import flapping
from viewport_relay.observe.logs import EventLog


@pytest.fixture
def log(clock):
    return EventLog(io.StringIO(), max_entries=5000, now=clock)


def about(ip="192.0.2.1", workspace="w"):
    return {"role": "workspace-daemon", "workspaceId": workspace, "runtimeTargetId": "t", "ip": ip}


def life(log, clock, name, seconds=0.4, **who):
    log.event("join", connection_id=name, **about(**who))
    clock.at += seconds
    log.event("leave", connection_id=name, message="1006", **about(**who), seconds=seconds)


def events(log):
    return [entry["event"] for entry in entries_of(log)]


def test_many_short_connections_are_one_finding(log, clock):
    for n in range(127 + flapping.LIVES):
        life(log, clock, f"c-{n}")
    assert events(log).count("join") == events(log).count("leave") <= 2 * flapping.LIVES
    log.close()
    findings = [entry for entry in entries_of(log) if entry["event"] == "flapping"]
    assert {entry["reason"] for entry in findings} == {"PEER_FLAPPING"} and findings[0]["level"] == "warn"
    assert sum(entry["details"]["count"] for entry in findings) + events(log).count("leave") == 132
    assert findings[0]["message"].startswith("joined and left within 1 s, ")
    assert findings[0]["details"]["workspaceId"] == "w" and findings[0]["details"]["ip"] == "192.0.2.1"
    (problem,) = log.problems.open(clock.at)
    assert problem.code == "PEER_FLAPPING" and "times" in problem.detail


def test_a_connection_that_stays_is_logged_with_the_time_of_its_join(log, clock):
    for n in range(8):
        life(log, clock, f"c-{n}")
    joined = clock.at
    log.event("join", connection_id="stays", **about())
    assert "stays" not in str(entries_of(log))
    clock.at += 90
    log.sweep()
    entry = entries_of(log)[-1]
    assert entry["event"] == "join" and entry["connectionId"] == "stays"
    assert entry["ts"].endswith(f"{joined % 60:06.3f}Z")


def test_a_long_connection_of_a_flapping_peer_is_logged_in_full(log, clock):
    for n in range(8):
        life(log, clock, f"c-{n}")
    before = len(entries_of(log))
    life(log, clock, "long", seconds=30)
    assert [(e["event"], e["connectionId"]) for e in entries_of(log)[before:]] == [
        ("join", "long"),
        ("leave", "long"),
    ]


@pytest.mark.parametrize("other", [{"ip": "192.0.2.2"}, {"workspace": "v"}])
def test_other_peers_are_not_folded(log, clock, other):
    for n in range(20):
        life(log, clock, f"c-{n}")
    before = len(entries_of(log))
    life(log, clock, "another", **other)
    assert len(entries_of(log)) == before + 2


def test_ordinary_connections_are_not_folded(log, clock):
    for n in range(50):
        life(log, clock, f"c-{n}", seconds=6)
    assert len(entries_of(log)) == 100


def test_the_table_is_bounded_and_entries_expire(log, clock, monkeypatch):
    monkeypatch.setattr(flapping, "MOST_PEERS", 10)
    lives = 2 * flapping.LIVES

    def logged(workspace):
        """Joins and leaves that are logged of so many short lives."""
        before = len(entries_of(log))
        for n in range(lives):
            life(log, clock, f"c-{n}", seconds=0.001, workspace=workspace)
        return len(entries_of(log)) - before

    assert [logged(f"w-{n}") for n in range(12)] == [2 * flapping.LIVES] * 10 + [2 * lives] * 2
    clock.at += 61
    log.sweep()
    assert logged("w-11") == 2 * flapping.LIVES, "windows that are over make room"
