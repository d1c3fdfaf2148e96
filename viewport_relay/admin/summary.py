"""`GET /logs?summary=1`: numbers by level, event and reason, and what each reason means here; open problems as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from viewport_relay.admin.filters import Filter
from viewport_relay.admin.words import paragraphs, rate
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.problems import BACKGROUND, Problem
from viewport_relay.observe.ring import Record
from viewport_relay.reasons import Reason


def summary(log: EventLog, wanted: Filter, now: float) -> dict[str, Any]:
    """Count the entries that the filter accepts. A folded entry counts as often as its event came.

    An event that reports the cause of refusals (a failed fetch of keys) counts for a reason only where no peer was refused
    for that reason.
    """
    levels: Counter[str] = Counter()
    events: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    causes: Counter[str] = Counter()

    def add(level: str, event: str, reason: str | None, count: int) -> None:
        levels[level] += count
        events[event] += count
        if reason == Reason.PEER_FLAPPING.code:
            events["join"] += count
        if reason is not None:
            (causes if event in BACKGROUND else reasons)[reason] += count

    for record in log.records():
        if wanted.accepts(record):
            add(record.level, record.of or record.event, record.reason, record.folded or 1)
    for fold in log.folds():
        source = fold.source
        running = Record(0, fold.last, fold.level, source.event, source.reason, source.workspace_id, None, "")
        if wanted.accepts(running):
            add(fold.level, source.event, source.reason, fold.count)
    for code, count in causes.items():
        reasons.setdefault(code, count)
    here = {row.code: row for row in log.problems.rows(now)}
    return {
        "ok": True,
        "total": levels.total(),
        "byLevel": dict(levels),
        "byEvent": dict(events.most_common()),
        "byReason": dict(reasons.most_common()),
        "reasons": {code: _about(code, here.get(code)) for code, _ in reasons.most_common()},
    }


def _about(code: str, row: Problem | None) -> dict[str, Any]:
    """The text of a reason, and its numbers in the log; times and numbers are of the present or last episode."""
    entry = Reason[code].entry
    told = {"meaning": entry.text, "level": entry.level, "cause": entry.cause, "fix": entry.fix}
    if row is None:
        return told
    return told | _known(row) | {"open": row.open} | ({"detail": row.detail} if row.detail else {})


def problem_json(row: Problem) -> dict[str, Any]:
    """An open problem as a JSON object."""
    return {"code": row.code, "level": row.level, "text": row.text, "count": row.count, **_known(row)}


def _known(row: Problem) -> dict[str, Any]:
    return {
        "cause": row.cause,
        "fix": row.fix,
        "firstSeen": timestamp(row.first),
        "lastSeen": timestamp(row.last),
        "perMinute": rate(row),
        "workspaces": len(row.workspaces),
        "addresses": len(row.addresses),
        "example": row.example,
    }


def summary_text(numbers: dict[str, Any]) -> str:
    """The numbers of `summary` as text."""
    levels = ", ".join(f"{count} {level}" for level, count in numbers["byLevel"].items())
    lines = [f"{numbers['total']} entries: {levels or 'none'}"]
    lines += [f"  {count:>8}  {event}" for event, count in numbers["byEvent"].items()]
    for code, count in numbers["byReason"].items():
        about = numbers["reasons"][code]
        lines += ["", f"{about['level'].upper():<5} {code}: {count}"]
        if "firstSeen" in about:
            lines[-1] += (
                f", first {about['firstSeen'][:19]}Z, last {about['lastSeen'][:19]}Z, {about['perMinute']:g} a minute, "
                f"workspaces: {about['workspaces']}, addresses: {about['addresses']}"
            )
        lines += paragraphs(
            {"what": about["meaning"], **{name: about.get(name, "") for name in ("cause", "fix", "example")}}
        )
    return "\n".join(lines) + "\n"
