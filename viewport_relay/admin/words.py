"""Verdict, problems and entries as text for terminals."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from viewport_relay.observe.checks import Facts, ago
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.problems import Problem
from viewport_relay.observe.recent import SPAN
from viewport_relay.observe.verdict import Verdict, verdict_of

#: Columns of text.
WIDTH: Final = 110

#: Problems shown in full; further ones with one line each.
IN_FULL: Final = 6

_INERT: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def inert(text: str) -> str:
    """Text for a terminal: control characters, escapes and marks that turn the direction are shown as codes."""
    return _INERT.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def as_text(line: str) -> str:
    """An entry's line of JSON as a line of text."""
    entry = json.loads(line)
    parts = [entry["ts"], entry["level"].upper().ljust(5), entry["event"]]
    parts += [entry[name] for name in ("reason", "message") if name in entry]
    if "connectionId" in entry:
        parts.append(f"connection={entry['connectionId']}")
    for name, value in entry["details"].items():
        parts.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return inert(" ".join(str(part) for part in parts))


def wrapped(label: str, text: str) -> list[str]:
    """`text` behind its label, wrapped with a hanging indent; no line where there is no text."""
    if not text:
        return []
    first = f"  {label:<9}"
    return textwrap.wrap(
        inert(text), WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def paragraphs(parts: Mapping[str, str]) -> list[str]:
    """The lines of several texts, each behind its label."""
    return [line for label, text in parts.items() for line in wrapped(label, text)]


def _verdict_lines(verdict: Verdict) -> list[str]:
    """The first lines: headline, counts, and the checks that warn or fail."""
    lines = [f"{verdict.state.upper()}: {inert(verdict.headline)}", f"  {inert(verdict.counts)}"]
    for check in verdict.checks:
        if check.state in ("bad", "warn"):
            when = f" [{check.when}]" if check.when else ""
            lines += paragraphs({"check": f"{check.name}: {check.text}{when}", "fix": check.fix})
    return lines


def problem_lines(facts: Facts, problem: Problem) -> list[str]:
    """One problem: number, beginning, workspaces and addresses, cause, fix, example."""
    head = (
        f"{problem.level.upper():<5} {problem.code}: {problem.count} since {timestamp(problem.first)[11:19]} UTC, "
        f"last {ago(facts.now - problem.last)} ago, {rate(problem):g} a minute"
    )
    if problem.workspaces or problem.addresses:
        spaces, addresses = len(problem.workspaces), len(problem.addresses)
        head += f"; {spaces} workspace{'' if spaces == 1 else 's'}, {addresses} address{'' if addresses == 1 else 'es'}"
    parts = {"what": problem.text, "cause": problem.cause, "fix": problem.fix, "example": problem.example}
    return [inert(head), *paragraphs(parts)]


def rate(problem: Problem) -> float:
    """Events of a problem for each minute, within the last SPAN seconds."""
    return round(problem.lately / min(SPAN / 60, max(1.0, (problem.last - problem.first) / 60)), 1)


def _problems_lines(facts: Facts) -> list[str]:
    """The open problems: those of the relay and the platform first, then the newest."""
    if not facts.problems:
        return ["no open problems"]
    newest_first = sorted(facts.problems, key=lambda row: (row.level == "error", row.last), reverse=True)
    lines = [line for problem in newest_first[:IN_FULL] for line in ("", *problem_lines(facts, problem))][1:]
    further = [problem_lines(facts, problem)[0] for problem in newest_first[IN_FULL:]]
    return [*lines, "", *further] if further else lines


def report(facts: Facts, entries: Sequence[str], total: int) -> str:
    """The text of `/logs`: verdict, problems, entries. `total` is how many entries there would be."""
    shown = f"{total} entries" if len(entries) == total else f"the last {len(entries)} of {total} entries"
    lines = [
        *_verdict_lines(verdict_of(facts)),
        "",
        *_problems_lines(facts),
        "",
        f"-- {shown} " + "-" * max(3, WIDTH - len(shown) - 4),
        *entries,
        "-- more: ?limit=100, ?since=15m, ?level=error,warn, ?reason=CODE, ?about=ID, ?summary=1, ?follow=1",
    ]
    return "\n".join(lines) + "\n"
