"""A short run of the table's attacks: the bystander stays connected and gets replies; memory and log stay bounded.

    make hostile                    # all attacks over plain TCP, TLS and with workers, with figures
    make hostile BEFORE=DIRECTORY   # the same, with the figures of another tree of the relay above each

Times depend on the machine. The bound only means "not stalled": an unprotected relay stalled for six seconds and
more.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.drill.platform import FaultyPlatform
from tests.hostile.table import ROWS, at, line, measure

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "1.5"))

#: A tree of the relay to measure beside this one.
BEFORE = os.environ.get("HOSTILE_BEFORE", "")

#: Attacks of the default run, over plain TCP; `make hostile` runs all.
QUICK = {
    "pipelined_100",
    "json_50",
    "fragments",
    "other_target",
    "presence",
    "ring",
    "admin_tokens",
    "ping_flood",
}

#: Milliseconds, bytes, lines. Ring: three lines for each reason and address, then one that counts the others.
P99, MEMORY, LINES = 1000, 100_000_000, 2500


@pytest.mark.parametrize(
    ("attack", "road"),
    [
        pytest.param(*row, marks=[] if row[0] in QUICK and row[1] == "plain" else pytest.mark.slow)
        for row in ROWS
    ],
)
def test_an_attack(platform: FaultyPlatform, attack: str, road: str) -> None:
    if BEFORE:
        print("\n" + line(platform, attack, road, SECONDS, Path(BEFORE), beside=False), end="")
    row = measure(platform, attack, road, SECONDS, beside=False)
    print(f"\n{'this   ' if BEFORE else ''}{row}")
    assert row.events not in ("", "0", "none"), "the attackers did nothing"
    assert row.alive and row.kept
    assert at(row.taken, 0.99) < P99
    assert row.memory < MEMORY
    assert row.lines < LINES
    assert row.errors == []
