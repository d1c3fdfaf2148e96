"""A rolling restart of a fleet, and the reconnect of all daemons at once."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest

from tests.drill.balancer import CHECK, balanced
from tests.drill.fleet import DrillFleet, metric, report
from tests.drill.platform import FaultyPlatform
from tests.drill.redisserver import RedisServer
from tests.drill.relay import until
from tests.drill.swarm import Swarm, tenths

pytestmark = pytest.mark.redis
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("program", "pairs"),
    [
        pytest.param("haproxy", 20, marks=pytest.mark.haproxy),
        pytest.param("haproxy", 150, marks=[pytest.mark.haproxy, slow]),
        pytest.param("nginx", 150, marks=[pytest.mark.nginx, slow]),
    ],
)
def test_a_rolling_restart(
    program: str, pairs: int, platform: FaultyPlatform, redis: RedisServer, tmp_path: Path
) -> None:
    """Behind the balancer of docs/how-to/load-balancers.md no upgrade is refused, and no request is silent."""
    with balanced(program, tmp_path, platform, redis.url, pause=0.0) as (balancer, fleet, swarm):
        swarm.add(pairs, daemon=lambda n: [balancer.port], client=lambda n: [balancer.port])
        swarm.until_talking()
        swarm.mark()
        began = time.monotonic()
        errors = []
        for number, relay in enumerate(fleet.relays[:]):
            assert relay.stop() == 0
            errors += relay.errors()
            fleet.restart(number).wait()
            time.sleep(3 * CHECK)  # an orchestrator waits likewise until the health check passes
        took = time.monotonic() - began
        swarm.until_talking()
        time.sleep(0.5)
        figures = swarm.figures()
        share = fleet.bus_share(1.5)
        report(
            f"rolling restart of three behind {program}", pairs=pairs, took=took, **figures,
            refused=len(swarm.refused), reconnects=swarm.closes.total(), redirects=swarm.followed,
            bus_share_afterwards=share,
        )  # fmt: skip
        assert swarm.refused == []
        # Closed with 1001 in waves, and no other close; each peer once or twice, because its next relay may restart later.
        assert all("relay shutting down" in why for why in swarm.closes), swarm.closes
        assert figures["cut"] <= swarm.closes.total()
        assert figures["silent"] == 0
        assert figures["longest_gap"] < 10
        assert share < 0.01
        # Frames queued for the relay's previous process are refused by the new one.
        assert [e for e in errors + fleet.errors() if e.get("reason") != "BUS_SIGNATURE_STALE"] == []
        assert swarm.disorder == 0


@pytest.mark.parametrize("wanted", [150, pytest.param(2000, marks=slow)])
def test_all_daemons_reconnect_at_once(platform: FaultyPlatform, redis: RedisServer, wanted: int) -> None:
    """One relay is killed, and its daemons reconnect to the other relay, where pairs exchange messages."""
    # The drill needs one descriptor for each daemon, a relay two for an upgrade with a request to the platform.
    count = min(wanted, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1000) // 3)
    settings = {"RELAY_MAX_TOTAL_CONNECTIONS": str(count + 1000)}
    with (
        DrillFleet(platform, redis.url, 2, settings) as fleet,
        Swarm(platform, patience=5.0) as steady,
        Swarm(platform) as swarm,
    ):
        steady.add(3, daemon=lambda n: fleet.ports[1:], client=lambda n: fleet.ports[1:])
        swarm.add(count, daemon=lambda n: fleet.ports, client=None)
        steady.until_talking()
        swarm.until_seated(120)
        swarm.mark()
        steady.mark()
        asked, cpu, commands = platform.validated, fleet[1].cpu(), _commands(redis)
        began = time.monotonic()
        fleet[0].process.kill()
        until(lambda: len(swarm.seated) == count, 120, "a seat for each")
        seated = max(swarm.seated) - began
        until(lambda: _announced_by(redis, "relay-1") == count + 3, 30, "presence of each")
        announced = time.monotonic() - began
        cpu, commands = fleet[1].cpu() - cpu, _commands(redis) - commands
        figures = steady.figures()
        refused = [
            why for why in swarm.refused if f" at {fleet.ports[0]}:" not in why
        ]  # by the remaining relay
        report(
            f"{count} daemons come back at once", wanted=wanted, seated_after=seated,
            announced_after=announced, relay_cpu=cpu,
            cpu_each=cpu / count, platform_requests=platform.validated - asked,
            redis_commands=commands, refused=len(refused),
            joins_per_tenth=tenths(swarm.seated, began), steady=figures, rss=fleet[1].rss(),
        )  # fmt: skip
        assert sum(room["daemonConnected"] for room in fleet[1].state()) == count + 3
        assert refused == []
        # One validation for each token: the other relay has not cached them.
        assert platform.validated - asked == count
        assert figures["told"] == figures["cut"] == figures["silent"] == 0, figures
        assert metric(fleet[1], "relay_admission_denied_total") == 0
        assert fleet[1].errors() == []


def _commands(redis: RedisServer) -> int:
    found: bytes = redis.ask("INFO", "stats")
    return int(found.partition(b"total_commands_processed:")[2].split()[0])


def _announced_by(redis: RedisServer, relay_id: str) -> int:
    """Number of presence entries that name this relay; those of a killed one stay until others overwrite them."""
    entries = redis.ask("MGET", *redis.ask("KEYS", "viewport:relay:presence:*"))
    return sum(json.loads(entry)["relayId"] == relay_id for entry in entries)
