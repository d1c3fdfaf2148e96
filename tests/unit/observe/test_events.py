"""The table of events against the calls that log them."""

from __future__ import annotations

import ast
from io import StringIO
from pathlib import Path

import viewport_relay
from tests.logentries import entries_of
from viewport_relay.observe.events import EVENTS
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason

PACKAGE = Path(viewport_relay.__file__).parent

#: Events that the log writes itself.
OWN = {"folded", "flapping", "log_lines_lost", "follow_gap", "join", "status"}


def logged() -> set[str]:
    """The first argument of each `….event("name", …)` or `…._event("name", …)` call in the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("event", "_event")
            ):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant):
                    found.add(first.value)
    return found


def test_every_event_is_in_the_table_and_every_row_is_logged():
    assert logged() - set(EVENTS) == set(), "events without a row in observe/events.py"
    assert set(EVENTS) - logged() - OWN == set(), "rows that nothing logs"


#: Events without a reason: the responsible party decides the severity.
FAULT = {
    "of the relay, its surroundings or the platform": {
        "bus_publish_failed", "bus_pull_failed", "internal_error", "listen_failed", "log_lines_lost", "relay_id_shared",
        "reload_failed", "tls_certificate_invalid", "tls_reload_failed", "worker_killed", "worker_lost", "worker_silent",
    },
    "of a peer, or one that harms no peer yet": {
        "bus_queue_unread", "config_warning", "follow_gap", "http_dropped", "http_unreadable", "jwks_refetch_failed",
        "signal_ignored", "tls_certificate_ends",
    },
}  # fmt: skip
LEVELS = {
    "of the relay, its surroundings or the platform": "error",
    "of a peer, or one that harms no peer yet": "warn",
}


def test_the_level_of_each_event_follows_the_rule():
    expected = {name: LEVELS[fault] for fault, names in FAULT.items() for name in names}
    assert {name: event.level for name, event in EVENTS.items() if event.level != "info"} == expected


def test_callers_give_no_constant_level():
    """Constant levels stand in the table only."""
    constant = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("event", "_event")
        for keyword in node.keywords
        if keyword.arg == "level" and isinstance(keyword.value, ast.Constant)
    ]
    assert constant == []


def test_the_log_takes_the_level_from_the_table():
    log = EventLog(StringIO(), max_entries=99)
    for name in EVENTS:
        if name not in OWN:
            log.event(name, message="said")
    assert {e["event"]: e["level"] for e in entries_of(log)} == {
        name: event.level for name, event in EVENTS.items() if name not in OWN
    }
    log.event("presence_failed", reason=Reason.BACKPLANE_UNREACHABLE)
    assert entries_of(log)[-1]["level"] == "error", "a reason says more than the event"


def test_rows_have_a_description_and_a_fix():
    for name, event in EVENTS.items():
        assert (event.level == "info") or event.fix or name in {"http_dropped", "follow_gap"}, name
        assert name == name.lower() and event.says and not event.says.endswith("."), name
        assert not event.fix.endswith("."), name
