"""The status line: what the relay does and what is wrong, in one entry.

Written at the first event of a new problem, when a problem is over, when readiness changes, and once a minute while
numbers change. A relay in which nothing happens writes none. The level is info: the entries of a failure have the level of
the failure, and a failure counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from attrs import define, field

from viewport_relay.observe.checks import Facts, ago
from viewport_relay.observe.problems import Problem
from viewport_relay.observe.sink import EventSink
from viewport_relay.observe.verdict import Verdict, verdict_of

#: Seconds between two status lines that only carry new numbers.
EVERY: Final = 60.0

#: New problems that one line explains at most, so that the line stays short.
MOST_EXPLAINED: Final = 8

#: Seconds after the start within which a relay that is not ready yet says nothing of it.
PATIENCE: Final = 3.0


@define(eq=False)
class StatusLine:
    """Writes events `status` to `log`. `facts` gives the present; call `tick` once a second."""

    _log: EventSink
    _facts: Callable[[], Facts]
    _open: Mapping[str, Problem] = field(factory=dict, init=False)
    #: the numbers of the last status line
    _told: tuple[object, ...] | None = field(default=None, init=False)
    _ready: bool | None = field(default=None, init=False)
    _due: float = field(default=0.0, init=False)
    _began: float = field(default=0.0, init=False)

    def tick(self) -> None:
        """Write a status line if one is called for."""
        facts, before = self._facts(), self._open
        ready = facts.condition.ready
        self._open = {row.code: row for row in facts.problems}
        new = [row for row in facts.problems if row.code not in before]
        over = [row for code, row in before.items() if code not in self._open]
        totals = {row.code: row.total for row in facts.problems}
        told = facts.admitted, facts.refused, ready, dict(facts.connections), totals
        if self._told is None:
            self._told, self._due, self._began = told, facts.now + EVERY, facts.now
        # A relay that becomes ready soon after its start needs no line for that.
        if self._ready is None and (ready or not 0 <= facts.now - self._began < PATIENCE):
            self._ready = True
        turned = self._ready is not None and ready is not self._ready
        # The wall clock may be set back.
        minute = not self._due - 2 * EVERY <= facts.now < self._due
        if minute:
            self._due = facts.now + EVERY
        if new or over or turned or (minute and told != self._told):
            if self._ready is not None:
                self._ready = ready
            self._write(facts, new, over)
            self._told, self._due = told, facts.now + EVERY

    def _write(self, facts: Facts, new: list[Problem], over: list[Problem]) -> None:
        verdict = verdict_of(facts)
        worst = next(iter(facts.problems), None)
        self._log.event(
            "status",
            message=" ".join(_sentences(facts, verdict, worst, new, over)),
            state=verdict.state,
            ready=facts.condition.ready,
            admitted=facts.admitted,
            refused=facts.refused,
            connections=dict(facts.connections),
            problems={row.code: row.count for row in facts.problems} or None,
            began=[row.code for row in new] or None,
            over=[row.code for row in over] or None,
            worst=worst.code if worst is not None else None,
        )


def _sentences(
    facts: Facts, verdict: Verdict, worst: Problem | None, new: list[Problem], over: list[Problem]
) -> list[str]:
    said = [verdict.headline, f"{verdict.counts}."]
    said += [f"Over: {row.code}, {row.count} in {ago(max(1.0, row.last - row.first))}." for row in over]
    if worst is not None:
        said.append(
            f"Worst: {worst.code}, {worst.count} since {ago(facts.now - worst.first)} ago: {worst.text}."
        )
        parts = {"Cause": worst.cause, "Fix": worst.fix, "Example": worst.example}
        said += [f"{label}: {words.rstrip('.')}." for label, words in parts.items() if words]
    for row in new[:MOST_EXPLAINED]:  # the only line of the log that says what to do about it
        fix = row.fix
        if row is not worst:
            said.append(f"New: {row.code}: {row.text}." + (f" Fix: {fix.rstrip('.')}." if fix else ""))
    return said
