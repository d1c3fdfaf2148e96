"""Floods by peers that are in or want in: a pair that behaves keeps talking, memory stays in bounds, nothing breaks.

    make hostile        # all kinds, ten seconds each, with a table of figures at the end

The attackers run in another process (`attack.py`). Times depend on the machine; the bound here says "not stuck".
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.peer import Peer, Refused, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until
from tests.hostile.attack import KINDS

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("HOSTILE_SECONDS", "1"))
ATTACKERS = 4

#: What the default run does; `make hostile` does all.
QUICK = {"ping_flood", "close_storm", "compression"}

_figures: list[str] = []


@pytest.fixture(scope="module")
def platform() -> Iterator[FaultyPlatform]:
    with FaultyPlatform() as made:
        yield made


@pytest.fixture(
    scope="module", params=["1", pytest.param("0", marks=pytest.mark.slow)], ids=["fast path", "plain"]
)
def relay(request: pytest.FixtureRequest, platform: FaultyPlatform) -> Iterator[Relay]:
    with running(platform.environment() | {"RELAY_FAST_PATH": request.param}) as made:
        yield made
        assert made.errors() == []
    for line in _figures:
        print(line)
    _figures.clear()


def round_trips(relay: Relay, daemon: Peer, client: Peer, seconds: float) -> list[float]:
    """A client that asks and is answered, fifty times a second at most. Times in milliseconds, sorted."""
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


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_a_flood(relay: Relay, platform: FaultyPlatform, kind: str) -> None:
    daemon = Peer.daemon(relay, platform, "steady", "t", daemonIssueGeneration=time.monotonic_ns())
    client = Peer.client(relay, platform, "steady", "t")
    client.converse(daemon)
    quiet = round_trips(relay, daemon, client, min(1.0, SECONDS))
    tokens = [platform.token("client", "hostile", "t") for _ in range(ATTACKERS)]
    before = relay.rss()
    attack = subprocess.Popen(
        [sys.executable, "-B", "-m", "tests.hostile.attack", kind, str(relay.port), str(SECONDS + 1), *tokens],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(0.8)
    taken = round_trips(relay, daemon, client, SECONDS)
    peak = relay.rss()
    said, _ = attack.communicate(timeout=60)
    _figures.append(
        f"{kind:18} {int(said):9,} in {SECONDS + 1:.0f} s; round trip p50 {at(quiet, 0.5):.1f} -> {at(taken, 0.5):.1f} ms, "
        f"p99 {at(quiet, 0.99):.1f} -> {at(taken, 0.99):.1f} ms; memory +{(peak - before) / 1e6:.1f} MB"
    )
    assert at(taken, 0.99) < 1500
    assert peak - before < 60_000_000
    daemon.close()
    client.close()
    # What the attackers had sent is still worked at, between the others' turns, and then they are gone.
    until(lambda: _clients(relay, "hostile") == 0, 120, "the attackers' end")


def _clients(relay: Relay, workspace: str) -> int:
    return sum(target["clientCount"] for target in relay.state() if target["workspaceId"] == workspace)


def test_ten_thousand_connections(platform: FaultyPlatform) -> None:
    """Attempts with the limits of production: all but the first few are refused cheaply, and the pair notices little."""
    limits = {"RELAY_RATE_LIMIT_PER_IP": "120", "RELAY_MAX_CONNECTIONS_PER_IP": "50"}
    with running(platform.environment() | limits) as relay:
        daemon = Peer.daemon(relay, platform, "steady", "t")
        client = Peer.client(relay, platform, "steady", "t")
        client.converse(daemon)
        token = platform.token("client", "hostile", "t")
        before, taken, statuses = relay.rss(), [], {}
        began = time.monotonic()
        attempts = 0
        wanted = 10_000 if SECONDS > 5 else 3_000
        while attempts < wanted and time.monotonic() - began < 30:
            try:
                Peer.client(relay, platform, "hostile", "t", token=token).close()
                status = 101
            except Refused as refused:
                status = refused.status
            except OSError:
                status = 0
            statuses[status] = statuses.get(status, 0) + 1
            attempts += 1
            if attempts % 100 == 0:
                start = time.perf_counter()
                client.send(e2ee(client.session, attempts))
                daemon.text()
                taken.append((time.perf_counter() - start) * 1000)
        seconds = time.monotonic() - began
        print(f"{attempts} attempts in {seconds:.1f} s: {statuses}; memory +{(relay.rss() - before) / 1e6:.1f} MB; "
              f"p99 of the pair {at(sorted(taken), 0.99):.1f} ms; {len(relay.entries())} log lines")  # fmt: skip
        assert statuses.get(429, 0) > attempts * 0.9
        assert relay.rss() - before < 30_000_000
        assert at(sorted(taken), 0.99) < 1500
        assert len(relay.entries()) < 1000  # folded
        daemon.close()
        client.close()
        assert relay.errors() == []
