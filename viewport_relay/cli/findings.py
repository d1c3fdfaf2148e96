"""Findings of the doctor, one for each line of its output. No I/O."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

Outcome = Literal["ok", "warn", "fail"]
MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


@frozen
class Finding:
    """The name of a check, its result, and the fix (empty when the check passed)."""

    name: str
    outcome: Outcome
    found: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f" → {self.fix}" if self.fix else ""
        return f"{MARKS[self.outcome]} {self.name}: {self.found}{fix}"


def ok(name: str, found: str) -> Finding:
    """A check that passed."""
    return Finding(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Finding:
    """A check that passed with a warning."""
    return Finding(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Finding:
    """A check that failed."""
    return Finding(name, "fail", found, fix)
