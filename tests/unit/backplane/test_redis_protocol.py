"""One connection to Redis in memory: late, odd and endless answers."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from viewport_relay.backplane import redisprotocol
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisprotocol import RedisProtocol

PING = ("PING",)


class Transport(StringTransport):
    """A transport whose connection is lost as soon as it is aborted."""

    protocol: Any

    def getHandle(self) -> None:
        """No socket: all is written through the transport."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """A no-op, as `setTcpNoDelay`."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """A no-op: nothing is sent over TCP."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.protocol.connectionLost(Failure(ConnectionDone()))


class TurnsClock(Clock):
    """A clock that, as a reactor, makes a call that is set in a turn in the next turn at the earliest."""

    def callLater(self, when: float, *call: Any, **arguments: Any) -> Any:
        return super().callLater(max(when, 1e-6), *call, **arguments)


class Connected:
    def __init__(self) -> None:
        self.clock = TurnsClock()
        self.redis = RedisProtocol(self.clock, "Redis db.example:6379")
        self.transport = Transport()
        self.transport.protocol = self.redis
        self.redis.makeConnection(self.transport)

    def ask(self, *commands: Any, limit: float = 2.0) -> list[Any]:
        """The answers, as soon as they are there."""
        found: list[Any] = []
        Deferred.fromCoroutine(self.redis.ask(commands, limit)).addCallback(found.extend)
        return found

    def wait(self, seconds: float) -> None:
        """Let the time go by, and one turn more."""
        self.clock.advance(seconds)
        self.clock.advance(0.001)


def test_answers_come_in_order_and_leave_no_timer_behind() -> None:
    parts = Connected()
    first, second = parts.ask(PING, PING), parts.ask(("GET", "key"))
    parts.redis.dataReceived(b"+PONG\r\n+PONG\r\n$3\r\nab")
    assert (first, second, parts.redis.busy) == ([b"PONG", b"PONG"], [], True)
    parts.redis.dataReceived(b"c\r\n")
    assert (second, parts.redis.busy) == ([b"abc"], False)
    parts.wait(2.0)
    assert not parts.clock.getDelayedCalls() and not parts.transport.disconnecting


@pytest.mark.parametrize("answered", [0, 3])
def test_a_late_answer_ends_the_connection(answered: int) -> None:
    parts = Connected()
    for _ in range(answered):
        parts.ask(PING)
        parts.wait(0.5)
        parts.redis.dataReceived(b"+PONG\r\n")
    found = parts.ask(PING, PING)
    parts.wait(1.8)
    parts.redis.dataReceived(b"+PONG\r\n")
    assert not found
    parts.wait(0.2)
    [pong, late] = found
    assert pong == b"PONG" and late.why == "Redis db.example:6379 does not answer in time"
    assert not parts.clock.getDelayedCalls()


def test_an_answer_that_arrived_during_a_long_turn_is_in_time() -> None:
    parts = Connected()
    found = parts.ask(PING)
    parts.clock.advance(30.0)  # the limit is over; the reactor reads before it makes the next call
    parts.redis.dataReceived(b"+PONG\r\n")
    parts.wait(0.0)
    assert found == [b"PONG"] and not parts.transport.disconnecting


@pytest.mark.parametrize("answer", [b"+one too many\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
def test_what_answers_is_no_redis(answer: bytes) -> None:
    parts = Connected()
    found = parts.ask(PING)
    parts.redis.dataReceived(b"+PONG\r\n" * answer.startswith(b"+") + answer)
    assert parts.transport.disconnecting
    assert parts.redis.failed.why == "Redis db.example:6379: what answers does not speak Redis's protocol"
    assert found[0] in (b"PONG", parts.redis.failed)


@pytest.mark.parametrize("head", [b"$500000000\r\n", b"*2\r\n$5\r\nqueue\r\n$500000000\r\n", b"*500000\r\n"])
def test_an_answer_without_an_end_is_not_kept(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redisprotocol, "MOST_BYTES", 1 << 20)
    parts = Connected()
    for _ in range(3):  # what was answered does not count
        found = parts.ask(("GET", "key"))
        parts.redis.dataReceived(b"$%d\r\n%b\r\n" % (1 << 19, bytes(1 << 19)))
        assert len(found[0]) == 1 << 19
    found = parts.ask(("GET", "key"))
    parts.redis.dataReceived(head)
    for _ in range(16):
        assert not found
        parts.redis.dataReceived(b"$65526\r\n%b\r\n" % bytes(65_526))
    [failed] = found
    assert isinstance(failed, CarrierFailed) and failed.outage
    assert failed.why == "Redis db.example:6379 answers with more than 1 MiB"


def test_odd_answers_are_values_and_no_errors() -> None:
    parts = Connected()
    found = parts.ask(*[PING] * 5)
    parts.redis.dataReceived(b"*-1\r\n$-1\r\n*2\r\n:1\r\n-ERR inside\r\n:-7\r\n*0\r\n")
    assert found[:2] == [None, None] and found[3:] == [-7, []]
