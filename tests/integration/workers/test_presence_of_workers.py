"""Workers in a fleet: presence entries of an earlier process of the same relay."""

from __future__ import annotations

import json

import pytest

from tests.drill.peer import Peer, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.redisserver import RedisServer
from tests.drill.relay import Relay

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("leftover", ["edge", "edge-w0", "edge-w1", "edge-w5"])
def test_an_entry_of_an_earlier_process_is_no_other_relay(
    leftover: str, platform: FaultyPlatform, redis: RedisServer
) -> None:
    """A relay that was killed and started with another number of workers sent clients to itself."""
    settings = {
        "RELAY_WORKERS": "2", "RELAY_ID": "edge", "RELAY_BACKPLANE_MODE": "redis", "RELAY_REDIS_URL": redis.url,
        "RELAY_BUS_HMAC_KEY": "a-bus-key-of-the-test-0123456789",
    }  # fmt: skip
    entry = {
        "relayId": leftover, "relayWsBaseUrl": "ws://edge.example", "daemonConnected": True,
        "runtimeTargetId": "t", "updatedAtMs": 1,
    }  # fmt: skip
    with Relay(platform.environment() | settings) as relay:
        relay.wait()
        redis.ask("SET", "viewport:relay:presence:w:t", json.dumps(entry))
        redis.ask("SET", "viewport:relay:presence:w:u", json.dumps(entry | {"relayId": "other"}))
        client = Peer.client(relay, platform, "w", "t")
        client.send(e2ee("s"))
        assert json.loads(client.text())["code"] == "DAEMON_UNAVAILABLE"
        client = Peer.client(relay, platform, "w", "u")
        assert json.loads(client.text())["code"] == "RELAY_REDIRECT"
