"""Outages of Redis: effects on peers, log entries, and recovery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

from tests.drill.certificates import Identity
from tests.drill.redisserver import RedisServer, start_sentinel
from tests.integration.backplane.fleet import Fleet, e2ee, fleet_on, init, session, until
from viewport_relay.devplatform import SigningKey

pytestmark = pytest.mark.redis

DOWN = {"ok": True, "reason": "BACKPLANE_UNREACHABLE"}
UP = {"ok": True}
QUICK = {"RELAY_PRESENCE_SYNC_INTERVAL_MS": "500", "RELAY_CLIENT_REDIRECT_ENABLED": "0"}


@asynccontextmanager
async def on(redis: RedisServer, signing_key: SigningKey, **settings: str) -> AsyncIterator[Fleet]:
    """A fleet with this Redis; both end with the block."""
    try:
        async with fleet_on(_reactor, signing_key, redis, **settings) as fleet:
            yield fleet
    finally:
        redis.kill()


@pytest_twisted.ensureDeferred
async def test_redis_is_killed_and_restarted_mid_stream(fleet: Fleet, redis: RedisServer) -> None:
    a, b, daemon = await fleet.split(**QUICK)
    remote, local = await fleet.join(b, "client"), await fleet.join(a, "client")
    await session(local, daemon, "s-local")
    await session(remote, daemon, "s-remote")
    for number in range(1, 101):
        remote.say(e2ee("s-remote", number))
    redis.kill()
    await fleet.until_ready(b, DOWN)
    await fleet.until_ready(a, DOWN)
    daemon.heard_so_far()
    remote.heard_so_far()

    said = local.say(e2ee("s-local", 1))  # frames between local peers still arrive
    assert await daemon.hear() == said
    answered = daemon.say(e2ee("s-local", 1))
    assert await local.hear() == answered
    remote.say(e2ee("s-remote", 200))
    refused = await remote.hear_json(1)  # at once, not after a time-out
    assert (refused["code"], refused["retryable"]) == ("DAEMON_UNAVAILABLE", True)
    assert await fleet.metric(b, "relay_backplane_up") == 0

    redis.start()
    await fleet.until_ready(a, UP)
    await fleet.until_ready(b, UP)
    await fleet.announced("a")  # announced again, though no daemon joined
    await fleet.reaches(remote, daemon)
    for relay in (a, b):
        events = [entry["event"] for entry in await fleet.logs(relay)]
        assert events.count("backplane_unreachable") == 1
        assert events.count("backplane_recovered") == 1
    assert await fleet.metric(b, "relay_backplane_up") == 1
    assert (remote.closed, local.closed, daemon.closed) == (None, None, None)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_does_not_answer_is_an_outage_too(fleet: Fleet, redis: RedisServer) -> None:
    a, b, daemon = await fleet.split(**QUICK)
    client = await fleet.join(b, "client")
    await session(client, daemon)
    redis.freeze()
    try:
        await fleet.until_ready(b, DOWN, 20)
        await fleet.until_ready(a, DOWN, 20)
        client.heard_so_far()
        client.say(e2ee())
        assert (await client.hear_json(3))["code"] == "DAEMON_UNAVAILABLE"
    finally:
        redis.thaw()
    await fleet.until_ready(a, UP, 20)
    await fleet.until_ready(b, UP, 20)
    daemon.heard_so_far()
    await fleet.reaches(client, daemon)


@pytest_twisted.ensureDeferred
async def test_a_relay_that_starts_without_redis_serves_and_joins_later(
    signing_key: SigningKey, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path)
    async with on(redis, signing_key, **QUICK) as fleet:
        a, b = await fleet.relays("a", "b")
        daemon, local = await fleet.join(a, "workspace-daemon"), await fleet.join(a, "client")
        await session(local, daemon)
        remote = await fleet.join(b, "client")
        remote.say(init())
        assert (await remote.hear_json(3))["code"] == "DAEMON_UNAVAILABLE"
        assert await fleet.ready(a) == DOWN
        redis.start()
        await fleet.until_ready(a, UP)
        await fleet.announced("a")
        await fleet.until_ready(b, UP)
        await fleet.reaches(remote, daemon)


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_logged_and_can_be_corrected(
    signing_key: SigningKey, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path, "--requirepass", "first-password").start()
    url = redis.url.replace("//", "//:right%20password@")
    async with on(redis, signing_key, RELAY_REDIS_URL=url) as fleet:
        a = await fleet.relay("a")
        assert await fleet.ready(a) == DOWN
        told = [e for e in await fleet.logs(a) if e["event"] == "backplane_unreachable"]
        assert "password" in told[0]["details"]["detail"]
        assert "right" not in a.output()
        redis.kill()
        redis.arguments = ("--requirepass", "right password")
        redis.start()
        await fleet.until_ready(a, UP)


@pytest_twisted.ensureDeferred
async def test_a_missing_password_is_logged(signing_key: SigningKey, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, "--requirepass", "first-password").start()
    async with on(redis, signing_key) as fleet:
        a = await fleet.relay("a")
        await fleet.until_ready(a, DOWN)
        told = [e for e in await fleet.logs(a) if e["event"] == "backplane_unreachable"]
        assert "NOAUTH" in told[0]["details"]["detail"]


@pytest_twisted.ensureDeferred
async def test_a_database_number_and_a_user(signing_key: SigningKey, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, *"--user relay on >its-password ~relays:* +@all".split()).start()
    settings = {
        "RELAY_REDIS_URL": redis.url.replace("//", "//relay:its-password@") + "/3",
        "RELAY_REDIS_KEY_PREFIX": "relays",
        "RELAY_CLIENT_REDIRECT_ENABLED": "0",
    }
    async with on(redis, signing_key, **settings) as fleet:
        a, b = await fleet.relays("a", "b")
        daemon = await fleet.join(a, "workspace-daemon")
        await deferLater(fleet.reactor, 0.5)
        await session(await fleet.join(b, "client"), daemon)
        assert redis.ask("DBSIZE") == 0  # database 0


@pytest_twisted.ensureDeferred
async def test_redis_over_tls(signing_key: SigningKey, tmp_path: Path) -> None:
    ca = Identity.self_signed("test CA")
    trusted = {"RELAY_REDIS_CA_CERT_PATH": ca.write(tmp_path, "ca").cert}
    mine = ca.issue("redis", "127.0.0.1").write(tmp_path, "redis")
    files = ["--tls-cert-file", mine.cert, "--tls-key-file", mine.key]
    redis = RedisServer(tmp_path, *files, "--tls-auth-clients", "no", "--port", "0").start(port="--tls-port")
    settings = {
        "RELAY_REDIS_URL": f"rediss://127.0.0.1:{redis.port}",
        "RELAY_CLIENT_REDIRECT_ENABLED": "0",
    }
    async with on(redis, signing_key, **settings) as fleet:
        a, b = await fleet.relays("a", "b", **trusted)
        await fleet.until_ready(a, UP)
        await fleet.until_ready(b, UP)
        daemon = await fleet.join(a, "workspace-daemon")
        await deferLater(fleet.reactor, 0.5)
        await session(await fleet.join(b, "client"), daemon)
        untrusting = await fleet.relay("c")  # the system's CAs do not include the test's CA
        await fleet.until_ready(untrusting, DOWN)
        told = [e for e in await fleet.logs(untrusting) if e["event"] == "backplane_unreachable"]
        assert "certificate" in told[0]["details"]["detail"]


@pytest_twisted.ensureDeferred
async def test_sentinels_name_the_master_also_after_a_failover(
    signing_key: SigningKey, tmp_path: Path
) -> None:
    first = RedisServer(tmp_path).start()
    second = RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(first.port)).start()
    sentinel = start_sentinel(tmp_path, first, 1)
    settings = {
        "RELAY_REDIS_SENTINELS": f"127.0.0.1:1, 127.0.0.1:{sentinel.port}",
        "RELAY_REDIS_SENTINEL_MASTER": "main",
        **QUICK,
    }
    try:
        async with fleet_on(_reactor, signing_key, first, **settings) as fleet:
            a, b = await fleet.relays("a", "b")
            daemon = await fleet.join(a, "workspace-daemon")
            await fleet.announced("a")
            client = await fleet.join(b, "client")
            await session(client, daemon)
            await until(fleet.reactor, lambda: bool(sentinel.ask("SENTINEL", "REPLICAS", "main")))
            first.kill()
            fleet.redis = second
            await fleet.until_ready(a, DOWN)
            await fleet.until_ready(a, UP, 30)
            await fleet.until_ready(b, UP, 30)
            await fleet.announced("a")
            client.heard_so_far()
            daemon.heard_so_far()
            await fleet.reaches(client, daemon)
    finally:
        for server in (sentinel, second, first):
            server.kill()
