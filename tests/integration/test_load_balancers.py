"""The configurations of docs/how-to/load-balancers.md in the real proxies, with three relays and Redis."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.drill.balancer import CHECK, PAGE, balanced
from tests.drill.fleet import report
from tests.drill.platform import FaultyPlatform
from tests.drill.redisserver import RedisServer
from tests.pages import blocks, text_of

PROGRAMS = [
    pytest.param("haproxy", marks=pytest.mark.haproxy),
    pytest.param("nginx", marks=pytest.mark.nginx),
    pytest.param("envoy", marks=pytest.mark.envoy),
]
PAIRS = 24


@pytest.mark.redis
@pytest.mark.parametrize("program", PROGRAMS)
def test_peers_of_a_workspace_meet_on_one_relay(
    program: str, platform: FaultyPlatform, redis: RedisServer, tmp_path: Path
) -> None:
    with balanced(program, tmp_path, platform, redis.url) as (balancer, fleet, swarm):
        swarm.add(PAIRS, daemon=lambda n: [balancer.port], client=lambda n: [balancer.port])
        swarm.until_talking()
        homes = [[room for room in relay.state() if room["daemonConnected"]] for relay in fleet.relays]
        assert all(homes) and sum(map(len, homes)) == PAIRS
        assert all(room["clientCount"] == 1 for rooms in homes for room in rooms)
        swarm.mark()
        share = fleet.bus_share(0.75)
        assert swarm.followed == 0 and share < 0.01

        # One relay stops and starts. Its workspaces' daemons stay at the relay that they moved to; clients that are
        # hashed to the restarted relay are redirected to the daemon's relay.
        assert fleet[0].stop() == 0
        swarm.until_talking()
        fleet.restart(0).wait()
        time.sleep(3 * CHECK)
        swarm.reconnect_clients()
        swarm.until_talking()
        time.sleep(0.5)
        after = fleet.bus_share(0.75)
        report(program, bus_share=share, after_a_restart=after, redirects=swarm.followed)
        assert swarm.refused == []
        assert swarm.followed >= 1 and after < 0.01
        assert fleet.errors() == []


def test_the_sample_has_the_configuration_of_the_page() -> None:
    [block] = blocks(PAGE, "haproxy")
    sample = text_of("deploy/haproxy.cfg").partition("backend relays\n")[2]
    lines = [line for line in sample.splitlines() if line and not line.strip().startswith("server ")]
    assert lines and [line for line in lines if line not in block.text.splitlines()] == []
