"""What the doctor says: one `Finding` a line. No I/O."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

Outcome = Literal["ok", "warn", "fail"]
MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


@frozen
class Finding:
    """What was looked at, what was found, and what to do about it (nothing, when all is well)."""

    name: str
    outcome: Outcome
    found: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f" → {self.fix}" if self.fix else ""
        return f"{MARKS[self.outcome]} {self.name}: {self.found}{fix}"


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Finding:
    """It works, and is worth a look."""
    return Finding(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Finding:
    """It cannot work."""
    return Finding(name, "fail", found, fix)
