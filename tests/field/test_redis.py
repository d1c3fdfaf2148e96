"""Redis servers as they occur in the field: refused commands, full, replicas, loading, passwords.

Each case is one server, with the place where it occurs, and what the relay must log.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import frozen
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

from tests.drill.certificates import Identity
from tests.drill.redisserver import RedisServer
from tests.integration.backplane import fleet as fleets
from tests.integration.backplane.fleet import Fleet, e2ee, init, session, until
from viewport_relay.cli import checks
from viewport_relay.config import load
from viewport_relay.devplatform import SigningKey

pytestmark = pytest.mark.redis
reactor: Any = _reactor

REFUSED = {"ok": True, "reason": "BACKPLANE_REFUSED"}
UNREACHABLE = {"ok": True, "reason": "BACKPLANE_UNREACHABLE"}
UP = {"ok": True}
SETTINGS = {"RELAY_PRESENCE_SYNC_INTERVAL_MS": "500", "RELAY_CLIENT_REDIRECT_ENABLED": "0"}
#: The longest wait between two attempts, and a margin for a busy machine.
A_RETRY = 15.0

Start = Callable[..., RedisServer]


@pytest.fixture(scope="module")
def signing_key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[RedisServer] = []

    def begin(*arguments: str, **how: str) -> RedisServer:
        folder = tmp_path / secrets.token_hex(4)
        folder.mkdir()
        server = RedisServer(folder, *arguments)
        servers.append(server)
        return server.start(**how)

    yield begin
    for server in reversed(servers):
        server.kill()


def fleet_on(
    redis: RedisServer | None, key: SigningKey, **settings: str
) -> AbstractAsyncContextManager[Fleet]:
    return fleets.fleet_on(reactor, key, redis, **SETTINGS | settings)


async def told(fleet: Fleet, relay: Any, event: str) -> list[str]:
    return [e["details"]["detail"] for e in await fleet.logs(relay) if e["event"] == event]


async def doctor(redis: RedisServer, **settings: str) -> list[str]:
    """doctor's findings about Redis."""
    environ = {
        "SERVER_URL": "http://127.0.0.1:1",
        "RELAY_BACKPLANE_MODE": "redis",
        "RELAY_INTERNAL_KEY": "an-internal-key-of-the-test",
        "RELAY_BUS_HMAC_KEY": "a-bus-key-of-the-test-0123456789",
        "RELAY_REDIS_URL": redis.url,
    }
    return [str(finding) for finding in await checks.redis(reactor, load(environ | settings), 5.0)]


@frozen
class Refusing:
    """A server that refuses one command. `by` are its arguments, `words` are expected in the finding."""

    met: str
    by: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return " ".join(self.by).split()


USER = "--user default on nopass ~* &* +@all"
REFUSING = {
    "acl without blocking commands": Refusing(
        "managed Redis whose default role leaves @blocking out", (USER, "-@blocking"), ("BLPOP", "NOPERM")
    ),
    "acl without scripting": Refusing(
        "hardening guides that take @scripting away", (USER, "-@scripting"), ("EVAL", "NOPERM")
    ),
    "acl without eval": Refusing("an ACL written for another program", (USER, "-eval"), ("EVAL", "NOPERM")),
    "acl that allows EVAL and no RPUSH": Refusing(
        "an ACL that lists commands one by one", (USER, "-rpush"), ("RPUSH", "NOPERM")
    ),
    "acl without a count for lpop": Refusing(
        "an ACL for readers of single items", (USER, "-lpop"), ("LPOP", "NOPERM")
    ),
    "acl for other keys": Refusing(
        "a Redis shared between programs, one prefix each",
        ("--user default on nopass ~other:* &* +@all",),
        ("NOPERM", "keys"),
    ),
    "blpop renamed": Refusing(
        "managed Redis that renames what may block", ("--rename-command BLPOP hidden",), ("BLPOP", "unknown command")
    ),
    "eval switched off": Refusing(
        "rename-command EVAL to nothing, as hardening guides say",
        ('--rename-command EVAL ""',),
        ("EVAL", "unknown command"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSING)
@pytest_twisted.ensureDeferred
async def test_a_command_is_refused(start: Start, signing_key: SigningKey, name: str) -> None:
    case = REFUSING[name]
    redis = start(*[word.strip('"') for word in case.arguments])
    async with fleet_on(redis, signing_key) as fleet:
        relay = await fleet.relay("a")
        await fleet.until_ready(relay, REFUSED)
        lines = await told(fleet, relay, "backplane_refused")
        assert len(lines) == 1
        for word in case.words:
            assert word.lower() in lines[0].lower(), lines[0]
        assert await fleet.metric(relay, "relay_backplane_up") == 0
        assert await fleet.metric(relay, "relay_backplane_refused_total") >= 1
        client = await fleet.join(relay, "client")
        client.say(init())
        assert (await client.hear_json())["code"] == "DAEMON_UNAVAILABLE"
    found = await doctor(redis)
    assert any(all(word.lower() in line.lower() for word in case.words) for line in found), found
    assert "7." in found[0] or "6." in found[0], found  # the version


@pytest_twisted.ensureDeferred
async def test_doctor_reports_the_version_and_the_commands(start: Start) -> None:
    [line] = await doctor(start())
    for word in ("answers PING", "Redis ", "SET", "GET", "EVAL", "LPOP", "BLPOP"):
        assert word in line
    assert line.startswith("✓")


@pytest_twisted.ensureDeferred
async def test_doctor_without_permission_for_the_version(start: Start) -> None:
    """Occurs where an ACL denies INFO as dangerous."""
    [line] = await doctor(start(*f"{USER} -info".split()))
    assert line.startswith("✓") and "does not tell its version" in line


@pytest_twisted.ensureDeferred
async def test_no_popped_frame_is_lost_when_the_second_command_is_refused(
    start: Start, signing_key: SigningKey
) -> None:
    """Occurs when an operator changes the ACL of a running relay."""
    redis = start()
    async with fleet_on(redis, signing_key) as fleet:
        a, b = await fleet.relays("a", "b")
        daemon = await fleet.join(a, "workspace-daemon")
        await fleet.announced("a")
        client = await fleet.join(b, "client")
        await session(client, daemon)
        redis.ask("ACL", "SETUSER", "default", "-lpop")
        said = client.say(e2ee())
        assert await daemon.hear() == said  # the frame that BLPOP has removed is delivered
        await fleet.until_ready(a, REFUSED)
        [line] = await told(fleet, a, "backplane_refused")
        assert "LPOP" in line and "NOPERM" in line
        redis.ask("ACL", "SETUSER", "default", "+lpop")
        await fleet.until_ready(a, UP, A_RETRY)


def connects(redis: RedisServer) -> int:
    """Number of connections that Redis has accepted so far, the one of this query included."""
    lines = redis.ask("INFO", "stats").decode().splitlines()
    return int(
        next(line for line in lines if line.startswith("total_connections_received:")).partition(":")[2]
    )


async def stays_refused(
    fleet: Fleet, relay: Any, redis: RedisServer, ready: dict[str, Any], event: str, word: str
) -> None:
    """For some seconds: few connections, one log line, no recovery."""
    await fleet.until_ready(relay, ready)
    before = connects(redis)
    await deferLater(reactor, 6.0)
    # Two connections (commands, bus), each at most at 0.2, 0.4, 0.8, 1.6, 3 s …, and those of this test's queries.
    assert connects(redis) - before <= 14
    lines = await told(fleet, relay, event)
    assert len(lines) == 1 and word in lines[0], lines
    assert [e for e in await fleet.logs(relay) if e["event"] == "backplane_recovered"] == []
    assert await fleet.ready(relay) == ready


@pytest_twisted.ensureDeferred
async def test_a_replica_refuses_writes(start: Start, signing_key: SigningKey) -> None:
    """Occurs where RELAY_REDIS_URL names the reader endpoint of a managed Redis."""
    primary = start()
    replica = start("--replicaof", "127.0.0.1", str(primary.port))
    async with fleet_on(replica, signing_key) as fleet:
        relay = await fleet.relay("a")
        await stays_refused(fleet, relay, replica, REFUSED, "backplane_refused", "READONLY")
        assert "replica" in (await told(fleet, relay, "backplane_refused"))[0]
        replica.ask("REPLICAOF", "NO", "ONE")
        await fleet.until_ready(relay, UP, A_RETRY)
        recovered = [e for e in await fleet.logs(relay) if e["event"] == "backplane_recovered"]
        assert len(recovered) == 1
    [line] = await doctor(start("--replicaof", "127.0.0.1", str(primary.port)))
    assert "refuses SET: READONLY" in line and "; the same for DEL, LPOP, EVAL" in line


@pytest_twisted.ensureDeferred
async def test_a_full_redis(start: Start, signing_key: SigningKey) -> None:
    """Occurs where a cache is shared and maxmemory-policy is noeviction: reads succeed, writes fail."""
    redis = start()
    async with fleet_on(redis, signing_key) as fleet:
        relay = await fleet.relay("a")
        await fleet.until_ready(relay, UP)
        redis.ask("CONFIG", "SET", "maxmemory", "1")
        await fleet.join(relay, "workspace-daemon")
        await stays_refused(fleet, relay, redis, REFUSED, "backplane_refused", "OOM")
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        await fleet.until_ready(relay, UP, A_RETRY)
        await fleet.announced("a")


@pytest_twisted.ensureDeferred
async def test_a_redis_that_cannot_save(start: Start, signing_key: SigningKey, tmp_path: Path) -> None:
    """Occurs when the disk of a Redis with snapshots is full or read-only: Redis answers MISCONF to each write."""
    redis = start()
    redis.ask("CONFIG", "SET", "save", "3600 1")
    (Path(redis.folder) / "dump.rdb").mkdir()  # a folder, which the snapshot's file cannot replace
    redis.ask("SET", "one", "1")
    redis.ask("BGSAVE")

    def failed() -> bool:
        return b"rdb_last_bgsave_status:err" in redis.ask("INFO", "persistence")

    await until(reactor, failed)
    async with fleet_on(redis, signing_key) as fleet:
        relay = await fleet.relay("a")
        await stays_refused(fleet, relay, redis, REFUSED, "backplane_refused", "MISCONF")


@pytest.mark.parametrize(
    ("user", "word"), [("", "NOAUTH"), (":wrong-password-of-a-test@", "WRONGPASS")], ids=["none", "wrong"]
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_password(start: Start, signing_key: SigningKey, user: str, word: str) -> None:
    """Occurs after a rotation of the password."""
    redis = start()
    url = redis.url.replace("//", f"//{user}")
    # A user without password for the queries of this test.
    redis.ask("ACL", "SETUSER", "observer", "on", "nopass", "~*", "+@all")
    async with fleet_on(redis, signing_key, RELAY_REDIS_URL=url) as fleet:
        redis.ask("CONFIG", "SET", "requirepass", "the-right-password")
        relay = await fleet.relay("a")
        await fleet.until_ready(relay, UNREACHABLE)
        await deferLater(reactor, 3.0)
        lines = await told(fleet, relay, "backplane_unreachable")
        assert len(lines) == 1 and word in lines[0], lines
        assert "password-of-a-test" not in relay.output()


@pytest_twisted.ensureDeferred
async def test_a_cluster(start: Start, signing_key: SigningKey) -> None:
    """Occurs where a managed Redis is a cluster: Redis answers MOVED or CLUSTERDOWN."""
    redis = start("--cluster-enabled", "yes")
    async with fleet_on(redis, signing_key) as fleet:
        relay = await fleet.relay("a")
        await stays_refused(fleet, relay, redis, UNREACHABLE, "backplane_unreachable", "CLUSTERDOWN")
    other = start("--cluster-enabled", "yes")
    other.ask("CLUSTER", "ADDSLOTSRANGE", 0, 5)
    other.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    lines = await doctor(other)
    assert any("CLUSTERDOWN" in line or "MOVED" in line for line in lines)
    wrong = [line for line in lines if "is a Redis Cluster, which is not supported" in line]
    assert 1 <= len(wrong) <= 2, "one line for each kind of error, and not for each command"


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_redis(start: Start, signing_key: SigningKey) -> None:
    """Occurs when the port belongs to a web server, which answers HTTP/1.1 400."""
    async with fleet_on(None, signing_key) as fleet:
        url = f"redis://127.0.0.1:{fleet.platform.port}"
        relay = await fleet.relay("a", RELAY_BACKPLANE_MODE="redis", RELAY_REDIS_URL=url)
        await fleet.until_ready(relay, UNREACHABLE)
        await deferLater(reactor, 2.0)
        lines = await told(fleet, relay, "backplane_unreachable")
        assert len(lines) == 1 and "does not speak Redis's protocol" in lines[0], lines
        assert [e for e in await fleet.logs(relay) if e["event"] == "internal_error"] == []


# -- Sentinels ---------------------------------------------------------------------------------------------

SENTINEL_PASSWORD = "password-of-the-sentinels"


def sentinel(start: Start, folder: Path, redis: RedisServer, *lines: str, **how: str) -> RedisServer:
    conf = folder / f"sentinel-{secrets.token_hex(4)}.conf"
    text = ["sentinel resolve-hostnames yes", f"sentinel monitor main localhost {redis.port} 1", *lines]
    conf.write_text("\n".join(text) + "\n")
    return start("--sentinel", config=str(conf), **how)


def by_sentinel(found: RedisServer, **more: str) -> dict[str, str]:
    where = {"RELAY_REDIS_SENTINELS": f"localhost:{found.port}", "RELAY_REDIS_SENTINEL_MASTER": "main"}
    return where | more


SIGNED_IN = {
    "password": (["requirepass " + SENTINEL_PASSWORD], {"RELAY_REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD}),
    "ACL user": (
        ["user default off", f"user relay on >{SENTINEL_PASSWORD} +auth +sentinel|get-master-addr-by-name"],
        {"RELAY_REDIS_SENTINEL_USERNAME": "relay", "RELAY_REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD},
    ),
}


@pytest.mark.parametrize("name", SIGNED_IN)
@pytest_twisted.ensureDeferred
async def test_sentinels_with_a_password(
    start: Start, signing_key: SigningKey, tmp_path: Path, name: str
) -> None:
    """Occurs with charts that give Sentinels and servers separate passwords."""
    lines, settings = SIGNED_IN[name]
    redis = start()
    found = sentinel(start, tmp_path, redis, *lines)
    async with fleet_on(redis, signing_key, **by_sentinel(found)) as fleet:
        without = await fleet.relay("a")
        await fleet.until_ready(without, UNREACHABLE)
        [line] = await told(fleet, without, "backplane_unreachable")
        assert "Sentinel localhost" in line and "NOAUTH" in line
        relay = await fleet.relay("b", **settings)
        await fleet.until_ready(relay, UP)
        assert SENTINEL_PASSWORD not in relay.output()
        wrong = {"RELAY_REDIS_SENTINEL_PASSWORD": "wrong-" + SENTINEL_PASSWORD}
        third = await fleet.relay("c", **settings | wrong)
        await fleet.until_ready(third, UNREACHABLE)
        assert SENTINEL_PASSWORD not in third.output()


@pytest.mark.parametrize("tls_there", ["sentinel", "redis"])
@pytest_twisted.ensureDeferred
async def test_tls_for_sentinels_apart_from_redis(
    start: Start, signing_key: SigningKey, tmp_path: Path, tls_there: str
) -> None:
    """Occurs where a mesh encrypts one of the two, or each has its own CA."""
    ca = Identity.self_signed("a CA of its own")
    path = ca.write(tmp_path, "ca").cert
    files = ca.issue("server", "localhost", "127.0.0.1").write(tmp_path, "server")
    tls = [
        "--tls-cert-file",
        files.cert,
        "--tls-key-file",
        files.key,
        "--tls-auth-clients",
        "no",
        "--port",
        "0",
    ]
    if tls_there == "sentinel":
        redis = start()
        conf = tmp_path / "tls-sentinel.conf"
        conf.write_text(f"sentinel resolve-hostnames yes\nsentinel monitor main localhost {redis.port} 1\n")
        found = start("--sentinel", *tls, config=str(conf), port="--tls-port")
        settings = {"RELAY_REDIS_SENTINEL_TLS": "1", "RELAY_REDIS_SENTINEL_CA_CERT_PATH": path}
    else:
        redis = start(*tls, port="--tls-port")
        found = sentinel(start, tmp_path, redis, "sentinel announce-hostnames yes")
        settings = {
            "RELAY_REDIS_URL": "rediss://localhost",
            "RELAY_REDIS_SENTINEL_TLS": "0",
            "RELAY_REDIS_CA_CERT_PATH": path,
        }
    async with fleet_on(redis, signing_key, **by_sentinel(found, **settings)) as fleet:
        relay = await fleet.relay("a")
        await fleet.until_ready(relay, UP)


# -- a queue that no relay reads ---------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_queue_of_a_relay_that_does_not_read_keeps_the_newest(
    start: Start, signing_key: SigningKey
) -> None:
    """Occurs when a relay hangs, or is gone and its presence has not expired yet."""
    redis = start()
    async with fleet_on(redis, signing_key, RELAY_REDIS_QUEUE_MAX="10") as fleet:
        b = await fleet.relay("b")
        entry = {"relayId": "gone", "relayWsBaseUrl": "ws://gone.example", "daemonConnected": True}
        redis.ask("SET", f"viewport:relay:presence:{fleet.workspace}:{fleet.target}", json.dumps(entry))
        client = await fleet.join(b, "client")
        for number in range(1, 41):
            client.say(e2ee("s", number))
            await deferLater(reactor, 0.01)
        queue = "viewport:relay:queue:gone"

        async def all_sent() -> None:
            for _ in range(200):
                if await fleet.metric(b, "relay_bus_queue_trimmed_total") == 30:
                    return
                await deferLater(reactor, 0.05)
            raise AssertionError(await fleet.metric(b, "relay_bus_queue_trimmed_total"))

        await all_sent()
        kept = [
            json.loads(json.loads(frame)["payload"])["seq"] for frame in redis.ask("LRANGE", queue, 0, -1)
        ]
        assert kept == list(range(31, 41))
        assert 0 < redis.ask("PTTL", queue) <= 120_000
        assert client.heard_so_far() == []


@pytest_twisted.ensureDeferred
async def test_a_frame_dropped_from_the_queue_is_answered(start: Start, signing_key: SigningKey) -> None:
    """Occurs when Redis is slow: the queue exceeds its limit, and the oldest frame is dropped."""
    redis = start()
    async with fleet_on(redis, signing_key, RELAY_REDIS_QUEUE_MAX="10") as fleet:
        b = await fleet.relay("b")
        entry = {"relayId": "gone", "relayWsBaseUrl": "ws://gone.example", "daemonConnected": True}
        redis.ask("SET", f"viewport:relay:presence:{fleet.workspace}:{fleet.target}", json.dumps(entry))
        client = await fleet.join(b, "client")
        client.say(e2ee("s", 1))
        await deferLater(reactor, 0.3)  # the look-up has ended
        redis.freeze()
        for number in range(2, 42):
            client.say(e2ee("s", number))
        await deferLater(reactor, 0.5)
        codes = [json.loads(text)["code"] for text in client.heard_so_far()]
        redis.thaw()
        assert set(codes) == {"DAEMON_UNAVAILABLE"}
        dropped = await fleet.metric(b, "relay_bus_queue_dropped_total")
        assert dropped == len(codes) >= 20
        await deferLater(reactor, 0.5)
        frames = redis.ask("LRANGE", "viewport:relay:queue:gone", 0, -1)
        assert json.loads(json.loads(frames[-1])["payload"])["seq"] == 41  # the newest frame was sent


DOCUMENTED_ACL = (
    "resetkeys ~viewport:relay:* resetchannels -@all +auth +select +ping +info +get +mget +set +del +eval +rpush "
    "+pexpire +blpop +lpop +lrange +lrem"
)


@pytest_twisted.ensureDeferred
async def test_the_documented_acl_is_enough(start: Start, signing_key: SigningKey) -> None:
    """Occurs where every program has its own user with the fewest rights."""
    page = Path(__file__).parents[2] / "docs" / "topics" / "backplane.md"
    assert f"user relay on >PASSWORD {DOCUMENTED_ACL}\n" in page.read_text()
    redis = start(*f"--user relay on >of-the-relay {DOCUMENTED_ACL}".split())
    url = redis.url.replace("//", "//relay:of-the-relay@") + "/0"
    async with fleet_on(redis, signing_key, RELAY_REDIS_URL=url) as fleet:
        a, b = await fleet.relays("a", "b")
        daemon = await fleet.join(a, "workspace-daemon")
        await fleet.announced("a")
        await session(await fleet.join(b, "client"), daemon)
        daemon.connection.close()
        await until(
            reactor,
            lambda: redis.ask("EXISTS", f"viewport:relay:presence:{fleet.workspace}:{fleet.target}") == 0,
        )
        for relay in (a, b):
            assert await fleet.ready(relay) == UP
    [line] = await doctor(redis, RELAY_REDIS_URL=url)
    assert line.startswith("✓"), line
