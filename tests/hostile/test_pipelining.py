"""Pipelined plain HTTP without credentials, and the round trips of another pair meanwhile.

    HOSTILE_SECONDS=10 .venv/bin/python -m pytest -s tests/hostile/test_pipelining.py -m "slow or not slow"

prints one line for each attack. The attackers run in another process. Times depend on the machine; the bound only
means "not stalled", and is a fifth of the time that one turn took when it handled all requests of a read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.drill.certificates import Identity
from tests.drill.peer import Peer
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import running
from tests.hostile.test_floods import at, round_trips

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("HOSTILE_SECONDS", "3"))

#: Requests of an address in a minute: few, so that the attack meets the limit also on a busy machine.
BUDGET = int(os.environ.get("HOSTILE_BUDGET", "60"))


@pytest.mark.parametrize("road", ["plain", pytest.param("tls", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("connections", "addresses"), [(100, 1), pytest.param(500, 6, marks=pytest.mark.slow)], ids=["one", "six"]
)
def test_pipelined_requests_of_a_few_addresses(
    platform: FaultyPlatform, tmp_path: Path, road: str, connections: int, addresses: int
) -> None:
    settings = platform.environment() | {
        "RELAY_MAX_CONNECTIONS_PER_IP": "50",
        "RELAY_HTTP_RATE_PER_IP": str(BUDGET),
    }
    context, files = None, []
    if road == "tls":
        ca = Identity.self_signed("test CA")
        server = ca.issue("server", "localhost").write(tmp_path, "server")
        settings |= {"RELAY_TLS_CERT_PATH": server.cert, "RELAY_TLS_KEY_PATH": server.key}
        context, files = ca.context(), [ca.write(tmp_path, "ca").cert]
    with running(settings, tls=context) as relay:
        daemon = Peer.daemon(relay, platform, "steady", "t")
        client = Peer.client(relay, platform, "steady", "t")
        client.converse(daemon)
        quiet = round_trips(relay, daemon, client, SECONDS)
        rss, cpu = relay.rss(), relay.cpu()
        attack = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.hostile.pipelining", str(relay.port), str(SECONDS + 1),
             str(connections), str(addresses), *files],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            time.sleep(0.5)
            taken = round_trips(relay, daemon, client, SECONDS)
            said, _ = attack.communicate(timeout=SECONDS + 10)
        finally:
            attack.kill()
            attack.wait()
        statuses = json.loads(said)
        print(
            f"\n{connections} connections of {addresses} addresses, {road}: {statuses}; round trip p50 "
            f"{at(quiet, 0.5):.1f} -> {at(taken, 0.5):.1f} ms, p99 {at(quiet, 0.99):.1f} -> {at(taken, 0.99):.1f} ms; "
            f"memory +{(relay.rss() - rss) / 1e6:.1f} MB; {relay.cpu() - cpu:.1f} s of CPU in {SECONDS + 1.5:.1f} s"
        )
        refusals = [entry for entry in relay.entries() if entry.get("reason") == "HTTP_RATE_LIMIT_EXCEEDED"]
        assert addresses <= len(refusals) <= 2 * addresses  # one for each address and minute
        assert at(taken, 0.99) < 200
        assert relay.http("/logs")[0] == 200
        client.close()
        daemon.close()
        assert relay.errors() == []
