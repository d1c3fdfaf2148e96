"""Two relays with one RELAY_ID on one Redis, and settings that other relays cannot reach."""

from __future__ import annotations

import json

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.fleet import Fleet, until
from tests.integration.relayprocess import RelayProcess
from viewport_relay import __version__
from viewport_relay.backplane.rediscommands import MOST_RELAYS, Commands
from viewport_relay.config import ConfigError, load

pytestmark = pytest.mark.redis

OFTEN = {"RELAY_PRESENCE_SYNC_INTERVAL_MS": "100"}


@pytest_twisted.ensureDeferred
async def test_two_relays_with_one_id_are_logged(fleet: Fleet, redis: RedisServer) -> None:
    a, b = await fleet.relays("same", "same", **OFTEN)
    await until(fleet.reactor, lambda: all("relay_id_shared" in relay.output() for relay in (a, b)))
    (entry, *_) = (e for e in await fleet.logs(a) if e["event"] == "relay_id_shared")
    assert entry["level"] == "error" and "RELAY_ID=same" in entry["message"]


@pytest_twisted.ensureDeferred
async def test_a_restart_and_other_ids_are_not_logged(fleet: Fleet, redis: RedisServer) -> None:
    first = await fleet.relay("one", **OFTEN)
    await deferToThread(first.process.kill)
    again, other = await fleet.relays("one", "other", **OFTEN)
    await deferLater(fleet.reactor, 1.0)
    for relay in (again, other):
        assert "relay_id_shared" not in relay.output()
    await gatherResults([deferToThread(relay.stop) for relay in (again, other)])


@pytest_twisted.ensureDeferred
async def test_operators_see_every_relay_before_the_first_frame(fleet: Fleet) -> None:
    a, b, c = await fleet.relays("a", "b", "c-w0", **OFTEN)

    async def seen(relay: RelayProcess) -> list[tuple[str, str, object]]:
        told = (await fleet.admin(relay, "/admin/api/overview")).json()["relays"]
        return [(row["relayId"], row["version"], row["seconds"]) for row in told]

    async def until_seen(relay: RelayProcess, *names: str) -> None:
        deadline = fleet.reactor.seconds() + 20
        while (found := await seen(relay)) != [(name, __version__, None) for name in names]:
            assert fleet.reactor.seconds() < deadline, found
            await deferLater(fleet.reactor, 0.2)

    await until_seen(a, "b", "c-w0")
    await until_seen(b, "a", "c-w0")
    await until_seen(c, "a", "b")


@pytest.mark.parametrize("mode", ["redis", "server"])
def test_port_0_needs_a_public_url(mode: str) -> None:
    environ = {
        "SERVER_URL": "http://127.0.0.1:9",
        "RELAY_INTERNAL_KEY": "some-internal-key-0123",
        "RELAY_BACKPLANE_MODE": mode,
        "RELAY_LISTEN_PORT": "0",
    }
    with pytest.raises(ConfigError) as error:
        load(environ)
    assert ["RELAY_PUBLIC_WS_BASE_URL" in problem for problem in error.value.errors] == [True]
    load(environ | {"RELAY_PUBLIC_WS_BASE_URL": "ws://relay.example"})
    load(environ | {"RELAY_BACKPLANE_MODE": "single"})


@pytest.mark.redis
def test_a_relay_is_listed_while_its_record_lives(redis: RedisServer) -> None:
    """Whatever its clock says, and whatever else stands in the list."""
    a, b, c = (Commands("p", name, 45_000, 10) for name in "abc")
    for found in ('{"b": 7}', "[", '[7, null, "a", "gone"]', '"b"'):
        redis.ask("FLUSHALL")
        redis.ask("SET", "p:relays", found)
        assert redis.ask(*a.relays()) == []
    for relay in (a, b, c):
        redis.ask(*relay.mark(b"{}"))
        redis.ask(*relay.relays())
    assert sorted(redis.ask(*a.relays())) == [b"b", b"c"]
    assert 0 < redis.ask("PTTL", "p:relays") <= 45_000
    redis.ask("DEL", "p:instance:b")
    assert redis.ask(*a.relays()) == [b"c"]
    redis.ask("SET", "p:relays", json.dumps([f"relay-{number}" for number in range(200)]))
    for number in range(200):
        redis.ask("SET", f"p:instance:relay-{number}", "{}")
    assert len(redis.ask(*a.relays())) == MOST_RELAYS
