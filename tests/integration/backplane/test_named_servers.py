"""Each failure of a Redis, Sentinel or platform names its host and port, and never a user or a password."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from socket import socket
from typing import Any

import pytest
import pytest_twisted
from attrs import frozen
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tests.integration.backplane.fleet import Fleet
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisconnection import RedisConnection
from viewport_relay.backplane.redisserver import redis_of
from viewport_relay.config import load
from viewport_relay.reasons import Reason

reactor: Any = real_reactor
USER, PASSWORD = "user-of-the-relay", "password-of-the-relay"
_ECHO = f"-ERR unknown command 'AUTH', with args beginning with: '{USER}' '{PASSWORD}' \r\n"


class Answering(Protocol):
    """Answers whatever comes first; without an answer the connection is closed, with an empty one nothing happens."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer

    def connectionMade(self) -> None:
        if self._answer is None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._answer:
            self.transport.write(self._answer)


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """A server on loopback; its port."""
    port = reactor.listenTCP(0, Factory.forProtocol(lambda: Answering(answer)), interface="127.0.0.1")
    try:
        yield port.getHost().port
    finally:
        await port.stopListening()


async def failure_of(url: str, **settings: str) -> CarrierFailed:
    """What is told of the first attempt to connect."""
    environ = {
        "SERVER_URL": "http://127.0.0.1:1",
        "RELAY_BACKPLANE_MODE": "redis",
        "RELAY_INTERNAL_KEY": "an-internal-key-of-the-test",
        "RELAY_REDIS_URL": url,
    }
    failed: Deferred[CarrierFailed] = Deferred()

    def fails(why: CarrierFailed) -> None:
        if not failed.called:
            failed.callback(why)

    server = redis_of(reactor, load(environ | settings), 1.0)
    connection = RedisConnection(reactor, server, (("PING",),), lambda: None, fails, limit=1.0)
    connection.startService()
    try:
        told = await failed
    finally:
        await connection.stopService()
    assert USER not in told.why and PASSWORD not in told.why
    return told


@frozen
class Failing:
    """A server's answer to the first commands, and what is told; `answer` None: the connection is closed at once."""

    answer: bytes | None
    why: str
    scheme: str = "redis"
    reason: Reason = Reason.BACKPLANE_UNREACHABLE


FAILING = {
    "closes at once": Failing(None, "the connection to Redis {at} was lost"),
    "silent": Failing(b"", "Redis {at} does not answer in time"),
    "silent, as a Redis without TLS is": Failing(b"", "Redis {at} does not answer in time over TLS", "rediss"),
    "no Redis": Failing(
        b"HTTP/1.1 400 Bad Request\r\n\r\n", "Redis {at}: what answers does not speak Redis's protocol"
    ),
    "no TLS": Failing(
        b"-ERR Protocol error\r\n", "cannot connect to Redis {at}: TLS: wrong version number", "rediss"
    ),
    "wrong password": Failing(
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        "Redis {at} says: WRONGPASS invalid username-password pair or user is disabled. (user and password are those of "
        "RELAY_REDIS_URL, a Sentinel's RELAY_REDIS_SENTINEL_USERNAME and _PASSWORD)",
    ),
    "loading": Failing(b"+OK\r\n+OK\r\n-LOADING Redis is loading\r\n", "Redis {at} says: LOADING Redis is loading"),
    "no such database": Failing(
        b"+OK\r\n-ERR DB index is out of range\r\n+PONG\r\n",
        "Redis {at} refuses SELECT: DB index is out of range",
        reason=Reason.BACKPLANE_REFUSED,
    ),
    # Redis repeats the arguments of a command that is not known, and those of AUTH are secret.
    "AUTH renamed": Failing(
        _ECHO.encode(),
        "Redis {at} refuses AUTH: unknown command 'AUTH' (the command is renamed or switched off: give it its name back)",
        reason=Reason.BACKPLANE_REFUSED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
@pytest_twisted.ensureDeferred
async def test_a_failing_redis_is_named(name: str) -> None:
    case = FAILING[name]
    async with answering(case.answer) as port:
        told = await failure_of(f"{case.scheme}://{USER}:{PASSWORD}@127.0.0.1:{port}/1")
    assert (told.why, told.reason) == (case.why.format(at=f"127.0.0.1:{port}"), case.reason)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_does_not_run_is_named(free_port: int) -> None:
    told = await failure_of(f"redis://{USER}:{PASSWORD}@127.0.0.1:{free_port}")
    assert told.why == f"cannot connect to Redis 127.0.0.1:{free_port}: connection refused"


def naming_answer(port: int) -> bytes:
    """A Sentinel's answers to AUTH and to the question for the primary."""
    return b"+OK\r\n*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_no_packet_reaches_is_named() -> None:
    """A listener whose queue of connections is full: Linux drops each further SYN."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = sockets.enter_context(socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        told = await failure_of(f"redis://{USER}:{PASSWORD}@127.0.0.1:{port}")
    assert told.why == f"cannot connect to Redis 127.0.0.1:{port}: time out"


@pytest_twisted.ensureDeferred
async def test_sentinels_and_the_primary_are_named(free_port: int) -> None:
    def sentinels(*ports: int) -> dict[str, str]:
        return {
            "RELAY_REDIS_SENTINELS": ",".join(f"127.0.0.1:{port}" for port in ports),
            "RELAY_REDIS_SENTINEL_MASTER": "main",
            "RELAY_REDIS_SENTINEL_USERNAME": USER,
            "RELAY_REDIS_SENTINEL_PASSWORD": PASSWORD,
        }

    url = f"redis://{USER}:{PASSWORD}@not.used"
    async with (
        answering(b"+OK\r\n*-1\r\n") as without,
        answering(b"") as silent,
        answering(b"+OK\r\n*2\r\n$1\r\nh\r\n$1\r\nx\r\n") as broken,
        answering(naming_answer(free_port)) as naming,
    ):
        told = await failure_of(url, **sentinels(free_port, without, silent, broken))
        assert told.why == "; ".join(
            (
                f"cannot connect to Sentinel 127.0.0.1:{free_port}: connection refused",
                f"Sentinel 127.0.0.1:{without} knows no main (RELAY_REDIS_SENTINEL_MASTER)",
                f"Sentinel 127.0.0.1:{silent} does not answer in time",
                f"Sentinel 127.0.0.1:{broken} names no usable address",
            )
        )
        told = await failure_of(url, **sentinels(naming))
        assert told.why == f"cannot connect to Redis 127.0.0.1:{free_port}: connection refused"


@pytest_twisted.ensureDeferred
async def test_a_platform_that_is_gone_is_named(http_fleet: Fleet) -> None:
    relay = await http_fleet.relay("a", RELAY_CLIENT_REDIRECT_ENABLED="0")
    await http_fleet.join(relay, "workspace-daemon")
    port = http_fleet.platform.port
    await http_fleet.platform.close()
    await http_fleet.until_ready(relay, {"ok": True, "reason": "BACKPLANE_UNREACHABLE"}, 20)
    told = [entry for entry in await http_fleet.logs(relay) if entry["event"] == "backplane_unreachable"]
    assert f"the platform at 127.0.0.1:{port} cannot be reached: " in told[0]["details"]["detail"]
