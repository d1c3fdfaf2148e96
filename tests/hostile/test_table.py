"""A short run of the table's attacks: the bystander stays connected and gets replies; memory and log stay bounded.

    make hostile        # all attacks over plain TCP, TLS and with workers, with figures

Times depend on the machine. The bound only means "not stalled": an unprotected relay stalled for six seconds and
more.
"""

from __future__ import annotations

import os

import pytest

from tests.drill.platform import FaultyPlatform
from tests.hostile.table import ATTACKS, PEERS_ONLY, ROADS, at, measure

SECONDS = min(4.0, float(os.environ.get("HOSTILE_SECONDS", "1.5")))

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
    "road", [pytest.param(road, marks=[] if road == "plain" else pytest.mark.slow) for road in ROADS]
)
@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ATTACKS]
)
def test_an_attack(platform: FaultyPlatform, attack: str, road: str) -> None:
    if road == "admin" and attack in PEERS_ONLY:
        pytest.skip("this attack needs the listener for peers")
    row = measure(platform, attack, road, SECONDS)
    print(f"\n{row}")
    assert row.events not in ("", "0", "none"), "the attackers did nothing"
    assert row.alive and row.kept
    assert at(row.taken, 0.99) < P99
    assert row.memory < MEMORY
    assert row.lines < LINES
    assert row.errors == []
