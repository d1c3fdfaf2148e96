"""Redis in trouble while relays use it: what the operator reads, and whether each relay recovers by itself."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as real_reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.fleet import Fleet, session

pytestmark = pytest.mark.redis
reactor: Any = real_reactor

UP = {"ok": True}
#: Announcements are made often, so that trouble is met soon.
SOON = {"RELAY_PRESENCE_SYNC_INTERVAL_MS": "500", "RELAY_CLIENT_REDIRECT_ENABLED": "0"}
#: The longest pause between two attempts, and a margin for a busy machine.
A_RETRY = 15.0
QUEUE = "viewport:relay:queue:a"


async def texts(fleet: Fleet, relay: Any, event: str) -> list[str]:
    found = [entry for entry in await fleet.logs(relay) if entry["event"] == event]
    return [entry["details"].get("detail") or entry["message"] for entry in found]


async def logged(fleet: Fleet, relay: Any, event: str, seconds: float = A_RETRY) -> str:
    """The text of the first entry of this event, once there is one."""
    deadline = reactor.seconds() + seconds
    while not (found := await texts(fleet, relay, event)):
        assert reactor.seconds() < deadline, await fleet.logs(relay)
        await deferLater(reactor, 0.05)
    return found[0]


@pytest_twisted.ensureDeferred
async def test_a_long_pull_is_no_silent_redis(fleet: Fleet, redis: RedisServer) -> None:
    """Redis answers no PING on a connection that waits in BLPOP."""
    relay = await fleet.relay("a", RELAY_BUS_PULL_WAIT_MS="20000", **SOON)
    await fleet.until_ready(relay, UP)
    await deferLater(reactor, 8.0)  # a PING is due after 5 s, and late 2 s after that
    assert await texts(fleet, relay, "backplane_unreachable") == []


@pytest_twisted.ensureDeferred
async def test_a_primary_becomes_a_replica(fleet: Fleet, redis: RedisServer) -> None:
    """Occurs at a failover behind one name. Redis first ends each connection that waits in BLPOP."""
    relay = await fleet.relay("a", **SOON)
    await fleet.until_ready(relay, UP)
    await deferLater(reactor, 0.5)
    redis.ask("REPLICAOF", "127.0.0.1", 1)
    line = await logged(fleet, relay, "backplane_refused")
    assert f"Redis 127.0.0.1:{redis.port} refuses " in line and "READONLY" in line
    assert "this is a replica: RELAY_REDIS_URL must lead to the primary" in line
    redis.ask("REPLICAOF", "NO", "ONE")
    await fleet.until_ready(relay, UP, A_RETRY)


@pytest_twisted.ensureDeferred
async def test_the_script_of_another_program_blocks_redis(fleet: Fleet, redis: RedisServer) -> None:
    redis.ask("CONFIG", "SET", "busy-reply-threshold", 100)
    relay = await fleet.relay("a", **SOON)
    await fleet.until_ready(relay, UP)

    def block() -> None:
        with suppress(AssertionError):  # the script is killed
            redis.ask("EVAL", "while true do end", 0)

    blocked = deferToThread(block)
    line = await logged(fleet, relay, "backplane_refused")
    assert f"Redis 127.0.0.1:{redis.port} refuses " in line and "SCRIPT KILL" in line
    redis.ask("SCRIPT", "KILL")
    await blocked
    await fleet.until_ready(relay, UP, A_RETRY)


@pytest_twisted.ensureDeferred
async def test_redis_has_no_free_connection(fleet: Fleet, redis: RedisServer) -> None:
    redis.ask("CONFIG", "SET", "maxclients", 3)
    with ExitStack() as others:
        for _ in range(2):
            other = others.enter_context(socket.create_connection(("127.0.0.1", redis.port)))
            other.sendall(b"PING\r\n")
            assert other.recv(7) == b"+PONG\r\n"
        relay = await fleet.relay("a", **SOON)  # it needs two
        line = await logged(fleet, relay, "backplane_refused")
        assert f"Redis 127.0.0.1:{redis.port} refuses " in line and "raise maxclients" in line
    await fleet.until_ready(relay, UP, A_RETRY)


@pytest_twisted.ensureDeferred
async def test_another_program_uses_a_key_of_the_relay(fleet: Fleet, redis: RedisServer) -> None:
    a, b, daemon = await fleet.split(**SOON)
    client = await fleet.join(b, "client")
    await session(client, daemon)
    redis.ask("SET", QUEUE, "text")
    line = await logged(fleet, a, "bus_pull_failed")
    assert f"Redis 127.0.0.1:{redis.port} refuses " in line and "POP: WRONGTYPE" in line
    assert "delete it, or choose another RELAY_REDIS_KEY_PREFIX" in line
    await deferLater(reactor, 3.0)
    told = Counter(await texts(fleet, a, "bus_pull_failed"))  # of BLPOP, and of the LPOP behind it
    assert len(told) <= 2 and max(told.values()) <= 5  # the others are folded
    redis.ask("DEL", QUEUE)
    await fleet.reaches(client, daemon)
