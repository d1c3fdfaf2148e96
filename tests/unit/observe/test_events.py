"""The table of events against the code that logs them."""

from __future__ import annotations

import ast
from pathlib import Path

import viewport_relay
from viewport_relay.observe.events import EVENTS

PACKAGE = Path(viewport_relay.__file__).parent

#: Written by the log and its followers themselves.
OWN = {"folded", "flapping", "log_lines_lost", "follow_gap", "join", "status"}


def logged() -> set[str]:
    """The first argument of every `….event("name", …)` in the package, and the names of two ways to log."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "event"
            ):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant):
                    found.add(first.value)
    return found


def test_every_event_is_in_the_table_and_every_row_is_logged():
    assert logged() - set(EVENTS) == set(), "events without a row in observe/events.py"
    assert set(EVENTS) - logged() - OWN == set(), "rows that nothing logs"


def test_rows_are_written_for_people():
    for name, event in EVENTS.items():
        assert name == name.lower() and event.says and not event.says.endswith("."), name
        assert not event.fix.endswith("."), name
