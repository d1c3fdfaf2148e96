"""Ten thousand upgrade attempts: round trips of another pair, memory, and errors.

The attackers run in another process (`attack.py`). Times depend on the machine; the bound only means "not stalled".
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.drill.peer import Peer, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running

ROOT = Path(__file__).parents[2]
ATTEMPTS = 10_000


def round_trips(relay: Relay, daemon: Peer, client: Peer, seconds: float) -> list[float]:
    """Round trips of a client, at most fifty a second. Times in milliseconds, sorted."""
    taken: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = e2ee(client.session, len(taken) + 1, "x" * 500)
        began = time.perf_counter()
        client.send(text)
        assert daemon.text() == text
        daemon.send(text)
        assert client.text() == text
        taken.append((time.perf_counter() - began) * 1000)
        time.sleep(0.02)
    return sorted(taken)


def at(taken: list[float], part: float) -> float:
    return taken[min(len(taken) - 1, int(len(taken) * part))]


#: Attempts one after the other: production limits refuse nearly all; without limits all are admitted and leave.
LIMITS = {
    "refused": {"RELAY_RATE_LIMIT_PER_IP": "120", "RELAY_MAX_CONNECTIONS_PER_IP": "50"},
    "admitted": {"RELAY_RATE_LIMIT_PER_IP": "0", "RELAY_MAX_CONNECTIONS_PER_IP": "0"},
}


@pytest.mark.parametrize("path", ["1", pytest.param("0", marks=pytest.mark.slow)], ids=["fast path", "plain"])
@pytest.mark.parametrize("fate", ["refused", pytest.param("admitted", marks=pytest.mark.slow)])
def test_ten_thousand_attempts(platform: FaultyPlatform, path: str, fate: str) -> None:
    """Each attempt is cheap, admitted or refused, and the pair is hardly affected."""
    settings = LIMITS[fate] | {"RELAY_FAST_PATH": path}
    with running(platform.environment() | settings) as relay:
        daemon = Peer.daemon(relay, platform, "steady", "t")
        client = Peer.client(relay, platform, "steady", "t")
        client.converse(daemon)
        quiet = round_trips(relay, daemon, client, 1.0)
        before = most = relay.rss()
        token = platform.token("client", "hostile", "t")
        began = time.monotonic()
        attack = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.hostile.attack", str(relay.port), str(ATTEMPTS), token],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        taken = []
        while attack.poll() is None:
            assert time.monotonic() - began < 120
            taken += round_trips(relay, daemon, client, 0.2)
            most = max(most, relay.rss())
        seconds = time.monotonic() - began
        assert attack.stdout is not None
        statuses = {int(status): number for status, number in json.load(attack.stdout).items()}
        attack.stdout.close()
        taken.sort()
        print(
            f"{ATTEMPTS:,} attempts in {seconds:.1f} s, {statuses}; round trip p50 {at(quiet, 0.5):.1f} -> "
            f"{at(taken, 0.5):.1f} ms, p99 {at(quiet, 0.99):.1f} -> {at(taken, 0.99):.1f} ms; "
            f"memory +{(most - before) / 1e6:.1f} MB; {len(relay.entries()):,} log lines"
        )
        assert sum(statuses.values()) == ATTEMPTS
        if fate == "refused":
            # 0: closed at accept. As many connections are taken as upgrade attempts and plain HTTP are allowed together.
            assert set(statuses) == {0, 101, 429}
            assert statuses[101] + statuses[429] <= 1320
            assert len(relay.entries()) < 1000  # folded
        else:
            assert statuses == {101: ATTEMPTS}
        assert most - before < 60_000_000
        assert at(taken, 0.99) < 1500
        daemon.close()
        client.close()
        assert relay.errors() == []
