"""One connection to Redis: signing in, commands with a time limit, and what Redis's errors mean.

RESP is read by hiredis and written by txredisapi. Nothing here reconnects (see `redisconnection`) or knows what the
commands are for.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import hiredis
import txredisapi
from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from viewport_relay.admission.http import why
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.reasons import Reason

Command = tuple[object, ...]

#: First words of errors of a server that does not serve this relay at all. All other errors refuse one command.
_NOT_SERVING: Final = frozenset({"NOAUTH", "WRONGPASS", "LOADING", "MASTERDOWN", "CLUSTERDOWN"})
#: First words of errors that concern one key, and say nothing about the next command.
_ONE_KEY: Final = frozenset({"WRONGTYPE"})
#: What an operator does about an error: (a part of the error, advice). The first that fits is told.
_ADVICE: Final = (
    ("READONLY", "this is a replica: RELAY_REDIS_URL must lead to the primary"),
    ("MOVED", "this is a Redis Cluster, which is not supported: use one primary, or Sentinels"),
    ("NOPERM", "allow the command and the keys in the ACL of the relay's user"),
    ("OOM", "raise maxmemory, or give the relay a Redis of its own"),
    ("MISCONF", "let Redis save again, or switch saving off: nothing of the relay needs it"),
    ("unknown command", "the command is renamed or switched off: give it its name back"),
    ("wrong number of arguments", "Redis 6.2 or later is needed"),
    ("syntax error", "Redis 6.2 or later is needed"),
    ("is not an integer", "Redis 6.2 or later is needed"),
)
_LONGEST_ERROR: Final = 200


@frozen
class Credentials:
    """What a server is signed in to with: an ACL user, or the password of the default user; a database's number."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int | None = None


class RedisProtocol(txredisapi.HiredisProtocol):  # type: ignore[misc]  # it is not typed
    """txredisapi's protocol, which also tells why a connection was lost."""

    lost_by: BaseException | None = None

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        try:
            super().dataReceived(data, unpause)
        except (hiredis.ProtocolError, txredisapi.InvalidData):
            self.lost_by = CarrierFailed("what answers does not speak Redis's protocol")
            self.transport.abortConnection()

    def connectionLost(self, why: Failure) -> None:
        if self.lost_by is None:
            self.lost_by = why.value
        super().connectionLost(why)

    async def sign_in(self, clock: IReactorTime, limit: float) -> Deferred[Any]:
        """Wait at most `limit` seconds until user, password and database are accepted.

        Gives a Deferred that fires when the connection is lost. Raises CarrierFailed.
        """
        self.transport.setTcpKeepAlive(True)
        ready: Deferred[Any] = self.whenConnected()
        lost: Deferred[Any] = self.whenDisconnected()

        def too_early(_: object) -> None:
            if not ready.called:
                ready.errback(CarrierFailed(self.factory.refused or _words(self.lost_by)))

        lost.addCallback(too_early)
        ready.addTimeout(limit, clock, _expired)
        await ready
        return lost

    async def ask(self, clock: IReactorTime, commands: tuple[Command, ...], limit: float) -> list[Any]:
        """The answers to these commands, which leave together and are carried out in order, within `limit` seconds.

        The answer of a command that Redis refuses, or does not answer, is a CarrierFailed. After a time-out the
        connection is aborted: an answer that comes late would be taken for that of the next command.
        """
        try:
            waiting = [self.execute_command(*command) for command in commands]
        except txredisapi.ConnectionError:
            return [CarrierFailed(_LOST)] * len(commands)
        for answer, command in zip(waiting, commands, strict=True):
            answer.addErrback(self._refused, command)
        last = waiting[-1]
        last.addTimeout(limit, clock, _expired)
        failed: list[CarrierFailed] = []
        last.addErrback(_trap, failed)
        try:
            await last
        except CancelledError:
            self.transport.abortConnection()
            raise
        if not failed:
            return [answer.result for answer in waiting]
        self.transport.abortConnection()
        return [answer.result if answer.called and answer is not last else failed[0] for answer in waiting]

    def _refused(self, failure: Failure, command: Command) -> object:
        """A command's error as its answer. Time-outs and cancellation stay failures."""
        if failure.check(txredisapi.ResponseError):
            return refusal(str(command[0]), str(failure.value))
        if not failure.check(txredisapi.RedisError):
            return failure
        if self.lost_by is None or isinstance(self.lost_by, ConnectionClosed):
            return CarrierFailed(_LOST)
        return connecting_failed(self.lost_by)


class RedisFactory(Factory):
    """Makes connections with these credentials; the rest is what txredisapi calls on its factory."""

    noisy = False
    isLazy = False

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.refused = ""

    def buildProtocol(self, addr: object) -> RedisProtocol:
        self.refused = ""
        protocol = RedisProtocol(
            charset=None,
            password=self._credentials.password,
            username=self._credentials.username,
            dbid=self._credentials.database,
            convertNumbers=False,
        )
        protocol.factory = self
        return protocol

    def stopTrying(self) -> None:
        """Called when password or database are refused. Trying goes on: they may be corrected at the server."""

    def connectionError(self, message: str) -> None:
        if "Lost connection" not in message:
            self.refused = message.removeprefix("Redis error: ")[:_LONGEST_ERROR]


_LOST: Final = "the connection to Redis was lost"


def connecting_failed(error: BaseException) -> CarrierFailed:
    """What is told when no connection could be made: names, TCP and TLS raise many unrelated kinds of errors."""
    return error if isinstance(error, CarrierFailed) else CarrierFailed(_words(error))


def refusal(command: str, said: str) -> CarrierFailed:
    """What an error reply of Redis to a command means."""
    said = said.strip().removeprefix("ERR ").strip()[:_LONGEST_ERROR]
    word = said.split(" ", 1)[0]
    if word in _NOT_SERVING:
        return CarrierFailed(f"Redis says: {said}")
    advice = next((f" ({text})" for part, text in _ADVICE if part in said), "")
    return CarrierFailed(
        f"Redis refuses {command}: {said}{advice}",
        reason=Reason.BACKPLANE_REFUSED,
        outage=word not in _ONE_KEY,
    )


def _trap(failure: Failure, failed: list[CarrierFailed]) -> None:
    failure.trap(CarrierFailed)
    assert isinstance(failure.value, CarrierFailed)
    failed.append(failure.value)


def _expired(result: object, limit: float) -> NoReturn:
    raise CarrierFailed("Redis does not answer in time")


def _words(error: BaseException | None) -> str:
    if isinstance(error, CarrierFailed):
        return error.why
    return f"cannot connect to Redis: {'' if error is None else why(error)}"
