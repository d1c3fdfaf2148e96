"""The event log: format, ring, folding, write errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logentries import entries_of
from viewport_relay.observe import folding
from viewport_relay.observe.entry import dump, timestamp
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason


class Broken(io.StringIO):
    """A stream that raises `error` on write while it is set."""

    error: Exception | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.fixture
def stream():
    return Broken()


@pytest.fixture
def log(stream, clock):
    return EventLog(stream, max_entries=100, now=clock)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def refuse(log, reason=Reason.JWT_EXPIRED, ip="192.0.2.1", workspace="w", role="client", **more):
    log.event("refused", reason=reason, ip=ip, workspaceId=workspace, role=role, **more)


def test_one_entry_is_one_json_line_in_the_documented_form(log, stream):
    log.event(
        "join",
        connection_id="c-1",
        role="client",
        workspaceId="w",
        runtimeTargetId=None,
        clientId="x",
        ip="::1",
    )
    log.event("refused", reason=Reason.JWT_EXPIRED, workspaceId="w")
    first, second = lines(stream)
    assert first == {
        "ts": "2023-11-14T22:13:20.000Z", "level": "info", "event": "join", "connectionId": "c-1",
        "details": {"role": "client", "workspaceId": "w", "clientId": "x", "ip": "::1"},
    }  # fmt: skip
    assert second["reason"] == "JWT_EXPIRED" and second["level"] == "warn"
    assert second["message"] == "JWT validation failed: token expired" and second["details"] == {
        "workspaceId": "w"
    }
    assert entries_of(log) == [first, second]


@pytest.mark.parametrize(
    "at,shown", [(0.0, "1970-01-01T00:00:00.000Z"), (1.9996, "1970-01-01T00:00:02.000Z")]
)
def test_a_timestamp_is_utc_with_milliseconds(at, shown):
    assert timestamp(at) == shown


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=12), _VALUES, max_size=6))
def test_a_line_is_json_in_printable_ascii(entry):
    line = dump(entry)
    assert json.loads(line) == entry
    assert line.isascii() and line.isprintable()


def test_given_level_and_message_and_the_minimum_level_of_the_stream(stream, clock):
    log = EventLog(stream, max_entries=9, level="warn", now=clock)
    log.event("a")
    log.event("b", level="error", reason=Reason.JWT_EXPIRED, message="other words")
    (written,) = lines(stream)
    assert written["level"] == "error" and written["message"] == "other words"
    assert [entry["event"] for entry in entries_of(log)] == ["a", "b"]


def test_hostile_text_cannot_break_a_line_or_a_terminal(log, stream):
    log.event("drop", message="a\nb\x1b[2J\u2028\u202e\x9b\ud800", workspaceId="\r\n{}", note="<script>")
    text = stream.getvalue()
    assert text.count("\n") == 1 and re.fullmatch(r"[\x20-\x7e]*\n", text)
    assert lines(stream)[0]["message"] == "a\nb\x1b[2J\u2028\u202e\x9b\ud800"


def test_an_entry_is_bounded(log, stream):
    log.event("x", message="m " * 100_000, **{f"k{n}": "v w " * 5000 for n in range(200)})
    assert len(stream.getvalue()) < 40_000


def test_details_are_redacted(stream, clock):
    log = EventLog(stream, max_entries=9, now=clock, secrets=["internal-key-value"])
    log.event(
        "x", message="internal-key-value", token="abc", nested={"q": "internal-key-value"}, data=b"payload"
    )
    assert "internal-key-value" not in stream.getvalue() and "payload" not in stream.getvalue()
    assert entries_of(log)[0]["details"]["token"] == "[redacted]"


# -- the ring -------------------------------------------------------------------------------------------------


def test_the_ring_keeps_the_newest(stream, clock):
    log = EventLog(stream, max_entries=10, now=clock)
    for n in range(50):
        log.event("join", n=n)
        log.event("leave", n=n)
    assert len(entries_of(log)) == 10
    assert [entry["details"]["n"] for entry in entries_of(log)] == [45, 45, 46, 46, 47, 47, 48, 48, 49, 49]


def test_a_flood_of_one_kind_does_not_displace_the_rest(stream, clock):
    log = EventLog(stream, max_entries=100, now=clock)
    refuse(log, Reason.INTERNAL_KEY_MISMATCH, ip="198.51.100.1")
    log.event("start")
    for n in range(5000):
        refuse(log, Reason.TOKEN_MISSING, ip=f"10.0.{n // 250}.{n % 250}", workspace=f"w{n}")
        clock.at += 0.2
    for n in range(20):
        log.event("join", n=n)
    events = [(entry["event"], entry.get("reason")) for entry in entries_of(log)]
    assert len(events) == 100
    assert events[0] == ("refused", "INTERNAL_KEY_MISMATCH") and events[1] == ("start", None)
    assert events[-20:] == [("join", None)] * 20
    stamps = [record.seq for record in log.records()]
    assert stamps == sorted(stamps)


# -- folding --------------------------------------------------------------------------------------------------


def test_repeated_refusals_of_one_source_are_counted_in_one_entry(log, clock):
    for _ in range(5):
        refuse(log)
    clock.at += 10
    for _ in range(95):
        clock.at += 0.1
        refuse(log)
    assert [entry["event"] for entry in entries_of(log)] == ["refused"] * 5
    assert sum(fold.count for fold in log.folds()) == 95
    clock.at = 1_700_000_060.0
    log.sweep()
    folded = entries_of(log)[-1]
    assert folded["event"] == "folded" and folded["reason"] == "JWT_EXPIRED" and folded["level"] == "warn"
    assert folded["details"] == {
        "of": "refused", "count": 95, "first": "2023-11-14T22:13:30.100Z", "last": "2023-11-14T22:13:39.500Z",
        "ip": "192.0.2.1", "workspaceId": "w", "role": "client",
    }  # fmt: skip
    assert "95 more" in folded["message"] and list(log.folds()) == []
    refuse(log)  # a new window: written unfolded
    assert entries_of(log)[-1]["event"] == "refused"


def test_the_summary_comes_with_the_next_entry_of_any_source_and_at_close(log, clock):
    for _ in range(7):
        refuse(log)
    clock.at += 61
    log.event("join")
    assert [entry["event"] for entry in entries_of(log)][-2:] == ["folded", "join"]
    for _ in range(7):
        refuse(log)
    log.close()
    assert entries_of(log)[-1]["details"]["count"] == 2


def test_a_clock_that_was_set_back_ends_a_window(log, clock):
    for _ in range(7):
        refuse(log)
    clock.at -= 86_400
    refuse(log)
    assert [entry["event"] for entry in entries_of(log)][-2:] == ["folded", "refused"]


@pytest.mark.parametrize(
    "differs", [{"ip": "192.0.2.2"}, {"workspace": "v"}, {"role": "worker"}, {"reason": Reason.JWT_MALFORMED}]
)
def test_other_sources_are_not_folded(log, differs):
    for _ in range(20):
        refuse(log)
    refuse(log, **differs)
    assert len(entries_of(log)) == 6


def test_joins_and_leaves_are_never_folded(stream, clock):
    log = EventLog(stream, max_entries=1000, now=clock)
    for _ in range(50):
        log.event("join", ip="1", role="client", workspaceId="w")
        log.event("leave", reason=Reason.PONG_TIMEOUT, ip="1", role="client", workspaceId="w")
    assert len(entries_of(log)) == 100


@pytest.mark.parametrize(
    "event,level,written",
    [
        ("twisted", "info", 5),
        ("twisted", "error", 5),
        ("internal_error", "error", 5),
        ("relay_note", "info", 50),
    ],
)
def test_entries_without_a_reason_are_folded_by_their_message(stream, clock, event, level, written):
    log = EventLog(stream, max_entries=1000, now=clock)
    for _ in range(50):
        log.event(event, level=level, message="the same again", namespace="n")
    assert len(entries_of(log)) == written
    log.event(event, level=level, message="another", namespace="n")
    assert entries_of(log)[-1]["message"] == "another"
    log.close()
    if written == 5:
        folded = entries_of(log)[-1]
        assert (
            folded["message"] == "the same again: 45 more, not written one by one" and "reason" not in folded
        )
        assert folded["details"]["of"] == event and folded["level"] == level


def test_made_up_messages_do_not_defeat_folding(stream, clock):
    log = EventLog(stream, max_entries=100_000, now=clock)
    for n in range(3000):
        log.event("twisted", level="error", message=f"made up {n}")
    assert len(entries_of(log)) == 100


def test_made_up_workspaces_do_not_defeat_folding(stream, clock):
    log = EventLog(stream, max_entries=100_000, now=clock)
    for n in range(5000):
        refuse(log, Reason.TOKEN_MISSING, workspace=f"made-up-{n}")
    assert len(entries_of(log)) == 100
    log.close()
    (summary,) = [entry for entry in entries_of(log) if entry["event"] == "folded"]
    assert summary["details"]["count"] == 4900 and summary["details"]["ip"] == "192.0.2.1"
    assert "workspaceId" not in summary["details"]


def test_made_up_addresses_do_not_defeat_folding(stream, clock):
    log = EventLog(stream, max_entries=100_000, now=clock)
    for n in range(20_000):
        refuse(log, Reason.TOKEN_MISSING, ip=f"2001:db8::{n:x}")
    assert len(entries_of(log)) == 600
    log.close()
    assert entries_of(log)[-1]["details"]["count"] == 19_400
    assert stream.getvalue().count("\n") == 601


def test_the_sources_that_are_told_apart_are_bounded(stream, clock, monkeypatch):
    monkeypatch.setattr(folding, "MOST_SOURCES", 50)
    log = EventLog(stream, max_entries=1000, now=clock)
    for n in range(60):
        for _ in range(7):
            refuse(log, ip=f"10.0.0.{n}", workspace=str(n))
    assert len(entries_of(log)) == 50 * 5 + 10 * 7, "entries of further sources are not counted one by one"


def test_last_seen_includes_folded_entries(log, clock):
    for _ in range(10):
        clock.at += 1
        refuse(log)
    log.event("join")
    assert log.last_seen == {("refused", Reason.JWT_EXPIRED): clock.at, ("join", None): clock.at}
    assert {row.code: row.last for row in log.problems.rows(clock.at)} == {"JWT_EXPIRED": clock.at}


# -- write errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")]
)
def test_write_errors_are_counted_and_reported_as_a_gap(log, stream, error):
    log.event("a")
    stream.error = error
    log.event("b")
    log.event("c")
    assert log.write_failures == 2 and [entry["event"] for entry in entries_of(log)] == ["a", "b", "c"]
    stream.error = None
    log.event("d")
    events = [(entry["event"], entry["details"]) for entry in lines(stream)]
    assert events == [("a", {}), ("log_lines_lost", {"count": 2}), ("d", {})]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_real_full_disk(clock):
    with open("/dev/full", "w") as full:
        log = EventLog(full, max_entries=5, now=clock)
        for _ in range(10):
            log.event("x")
        assert log.write_failures == 10 and len(entries_of(log)) == 5
        with contextlib.suppress(OSError):
            full.close()


def test_a_real_broken_pipe(clock):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    log = EventLog(stream, max_entries=5, now=clock)
    os.close(reader)
    log.event("x")
    log.event("y")
    assert log.write_failures == 2
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_followers_get_each_new_record_until_they_stop(log):
    got: list[str] = []

    def follower(record):
        got.append(record.event)

    log.followers.append(follower)
    log.event("a")
    log.event("b")
    log.followers.remove(follower)
    log.event("c")
    assert got == ["a", "b"]


def test_folded_entries_are_found_by_connection_id(stream, clock):
    worker = EventLog(io.StringIO(), max_entries=1, now=clock, secrets=["a-secret-of-ours"])
    parent = EventLog(stream, max_entries=10, now=clock)
    for n in range(10):
        refuse(worker, connection_id=f"c-{n}", detail=f"a-secret-of-ours {n}")
    assert worker.folded.get("c-2") is None, "that one was written"
    told = worker.folded.report()
    assert [name for name, _ in told] == [f"c-{n}" for n in range(5, 10)] and worker.folded.report() == []
    for _ in range(2):
        parent.folded.take_over(told)
    entry = parent.folded.get("c-7")
    assert entry == worker.folded.get("c-7") and entry["details"]["detail"] == "[redacted] 7"
    for n in range(6000):
        parent.folded.take_over([(f"d-{n}", "{}")])
        refuse(worker, connection_id=f"d-{n}")
    assert len(parent.folded) == len(worker.folded) == 4096
    assert len(worker.folded.report()) == 64
