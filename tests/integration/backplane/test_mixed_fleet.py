"""This relay and one that implements only section 12 of the wire protocol, over a real Redis.

`PlainRelay` stands for existing relays: JSON bus frames signed with HMAC-SHA256, unsigned presence, no batches. It
reads and writes Redis directly, with its own implementation of the signature.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.busframes import bus_frame, signed
from tests.integration.backplane.fleet import Fleet, e2ee, init, response, until

pytestmark = pytest.mark.redis

#: The load balancer reaches every relay, so clients are not redirected; presence is looked up twice a second.
SETTINGS = {"RELAY_CLIENT_REDIRECT_ENABLED": "0", "RELAY_PRESENCE_SYNC_INTERVAL_MS": "500"}

#: The other relay's instance record: none, that of version 0.1, or of one without batches.
RECORDS = {"no record": None, "of 0.1": "4f1d0c6a9be2735d08aa11bb", "without batches": '{"instance":"x"}'}

MEMBERS = {
    "workspaceId", "runtimeTargetId", "sourceRelayId", "targetRelayId", "direction", "payload", "issuedAtMs", "signature",
}  # fmt: skip


class PlainRelay:
    """The other relay. `say` queues a frame for this relay, `hear` takes the next frame that this relay queued for it."""

    def __init__(self, fleet: Fleet, redis: RedisServer, record: str | None = None) -> None:
        self._fleet, self._redis = fleet, redis
        if record is not None:
            redis.ask("SET", "viewport:relay:instance:plain", record)

    def say(self, direction: str, payload: str, to: str = "ours") -> None:
        frame = bus_frame(self._fleet, direction, payload, source="plain", target_relay=to)
        self._redis.ask("RPUSH", f"viewport:relay:queue:{to}", json.dumps(frame))

    async def hear(self) -> dict[str, Any]:
        """The next bus frame; checks members, signature and age by section 12."""
        queue = "viewport:relay:queue:plain"
        await until(self._fleet.reactor, lambda: self._redis.ask("LLEN", queue) > 0)
        frame: dict[str, Any] = json.loads(self._redis.ask("LPOP", queue))
        assert set(frame) in (MEMBERS, MEMBERS | {"machineId"})
        assert signed({k: v for k, v in frame.items() if k != "signature"})["signature"] == frame["signature"]
        assert abs(time.time() * 1000 - frame["issuedAtMs"]) < 15_000
        assert (frame["sourceRelayId"], frame["targetRelayId"]) == ("ours", "plain")
        assert (frame["workspaceId"], frame["runtimeTargetId"]) == (self._fleet.workspace, self._fleet.target)
        return frame

    def announce(self) -> None:
        """Write presence of a daemon that joined this relay."""
        entry = {
            "relayId": "plain", "relayWsBaseUrl": "ws://plain.example", "daemonConnected": True,
            "runtimeTargetId": self._fleet.target, "updatedAtMs": int(time.time() * 1000),
        }  # fmt: skip
        self._redis.ask("SET", self._fleet.presence_key(), json.dumps(entry), "PX", 45_000)

    def withdraw(self) -> None:
        self._redis.ask("DEL", self._fleet.presence_key())

    def resolve(self) -> dict[str, Any] | None:
        """Look up the daemon's relay."""
        text = self._redis.ask("GET", self._fleet.presence_key())
        return None if text is None else dict(json.loads(text))

    def presence_ttl(self) -> int:
        """In milliseconds."""
        return int(self._redis.ask("PTTL", self._fleet.presence_key()))


@pytest.fixture(params=RECORDS)
def plain(request: pytest.FixtureRequest, fleet: Fleet, redis: RedisServer) -> PlainRelay:
    return PlainRelay(fleet, redis, RECORDS[request.param])


@pytest_twisted.ensureDeferred
async def test_client_on_the_other_relay_and_daemon_here(fleet: Fleet, plain: PlainRelay) -> None:
    ours = await fleet.relay("ours", **SETTINGS)
    daemon = await fleet.join(ours, "workspace-daemon", machineId="machine-1")
    await until(fleet.reactor, lambda: plain.resolve() is not None)
    entry = plain.resolve()
    assert entry is not None
    assert set(entry) == {
        "relayId", "relayWsBaseUrl", "daemonConnected", "runtimeTargetId", "machineId", "updatedAtMs",
    }  # fmt: skip
    assert (entry["relayId"], entry["daemonConnected"], entry["machineId"]) == ("ours", True, "machine-1")
    assert 40_000 < plain.presence_ttl() <= 45_000

    asked = json.dumps(init("r-1"))
    plain.say("client_to_daemon", asked)
    assert await daemon.hear() == asked
    answer = daemon.say(response("r-1", "s-1"))
    frame = await plain.hear()
    assert (frame["direction"], frame["payload"]) == ("daemon_to_clients", answer)
    for number in range(1, 101):
        plain.say("client_to_daemon", json.dumps(e2ee("s-1", number, ciphertext="äöü 🙂")))
    assert [json.loads(await daemon.hear())["seq"] for _ in range(100)] == list(range(1, 101))
    said = [daemon.say(e2ee("s-1", number)) for number in range(1, 101)]
    assert [(await plain.hear())["payload"] for _ in said] == said
    daemon.connection.close()
    await until(fleet.reactor, lambda: plain.resolve() is None)


@pytest_twisted.ensureDeferred
async def test_client_here_and_daemon_on_the_other_relay(fleet: Fleet, plain: PlainRelay) -> None:
    ours = await fleet.relay("ours", **SETTINGS)
    plain.announce()
    client = await fleet.join(ours, "client")
    asked = client.say(init("r-1"))
    frame = await plain.hear()
    assert (frame["direction"], frame["payload"]) == ("client_to_daemon", asked)
    answer = json.dumps(response("r-1", "s-1"))
    plain.say("daemon_to_clients", answer)
    assert await client.hear() == answer
    said = [client.say(e2ee("s-1", number, ciphertext="äöü 🙂")) for number in range(1, 101)]
    assert [(await plain.hear())["payload"] for _ in said] == said
    for number in range(1, 101):
        plain.say("daemon_to_clients", json.dumps(e2ee("s-1", number)))
    assert [json.loads(await client.hear())["seq"] for _ in range(100)] == list(range(1, 101))

    plain.withdraw()
    await deferLater(fleet.reactor, 2.2)  # resolved entries are cached for 2 s
    client.say(e2ee("s-1", 101))
    assert (await client.hear_json())["code"] == "DAEMON_UNAVAILABLE"


@pytest_twisted.ensureDeferred
async def test_a_client_is_redirected_to_the_other_relay(fleet: Fleet, redis: RedisServer) -> None:
    ours = await fleet.relay("ours", RELAY_PRESENCE_SYNC_INTERVAL_MS="500")
    PlainRelay(fleet, redis).announce()
    client = await fleet.join(ours, "client")
    told = await client.hear_json()
    assert (told["code"], told["relayWsBaseUrl"]) == ("RELAY_REDIRECT", "ws://plain.example")


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_moves_there_and_back(fleet: Fleet, plain: PlainRelay) -> None:
    ours = await fleet.relay("ours", **SETTINGS)
    daemon = await fleet.join(ours, "workspace-daemon")
    await until(fleet.reactor, lambda: plain.resolve() is not None)
    plain.announce()
    end = await daemon.ended()
    assert (end.code, end.reason) == (4008, "replaced by newer daemon")
    entry = plain.resolve()
    assert entry is not None and entry["relayId"] == "plain", "the close withdraws our own entry only"
    await fleet.join(ours, "workspace-daemon")
    await until(fleet.reactor, lambda: (plain.resolve() or {}).get("relayId") == "ours")


@pytest_twisted.ensureDeferred
async def test_frames_signed_with_another_key_are_refused_and_logged(
    fleet: Fleet, redis: RedisServer
) -> None:
    """The most frequent mistake of a migration: the new relay has another RELAY_BUS_HMAC_KEY."""
    ours = await fleet.relay("ours", **SETTINGS)
    daemon = await fleet.join(ours, "workspace-daemon")
    frame = bus_frame(
        fleet,
        "client_to_daemon",
        json.dumps(init("r")),
        source="plain",
        target_relay="ours",
        key="another-key-0123456789",
    )
    redis.ask("RPUSH", "viewport:relay:queue:ours", json.dumps(frame))
    await daemon.quiet()

    async def said() -> list[dict[str, Any]]:
        return [e for e in await fleet.logs(ours) if e.get("reason") == "BUS_SIGNATURE_INVALID"]

    (entry,) = await said()
    assert entry["level"] == "error" and entry["details"]["sourceRelayId"] == "plain"
