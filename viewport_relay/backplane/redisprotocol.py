"""One connection to Redis: signing in, commands with a time limit, and what Redis's errors mean.

RESP is read by hiredis and written by txredisapi. Nothing here reconnects (see `redisconnection`) or knows what the
commands are for.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NoReturn

import hiredis
import txredisapi
from attrs import Factory, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory as TwistedFactory
from twisted.python.failure import Failure

from viewport_relay.admission.httpwords import why
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.reasons import Reason
from viewport_relay.timelimit import add_time_limit

Command = tuple[str | bytes | int | float, ...]

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


@define(eq=False)
class _Asked:
    """Commands that left together. `done` fires when all answers are there, or no more will come."""

    count: int
    answers: list[Any] = Factory(list)
    done: Deferred[None] = Factory(Deferred)


class RedisProtocol(txredisapi.HiredisProtocol):  # type: ignore[misc]  # it is not typed
    """txredisapi's protocol, which also tells why a connection was lost, and costs less for commands in one write.

    txredisapi signs in. Commands of `ask` do not pass its queue of one Deferred for each reply.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.lost_by: BaseException | None = None
        self._asked: deque[_Asked] = deque()

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        try:
            super().dataReceived(data, unpause)
        except (hiredis.ProtocolError, txredisapi.InvalidData):
            self.lost_by = CarrierFailed("what answers does not speak Redis's protocol")
            self.transport.abortConnection()

    def replyReceived(self, reply: Any) -> None:
        """Called by txredisapi for each complete reply."""
        if not self._asked:
            super().replyReceived(reply)
            return
        asked = self._asked[0]
        asked.answers.append(reply)
        if len(asked.answers) == asked.count:
            self._asked.popleft()
            if not asked.done.called:
                asked.done.callback(None)

    def connectionLost(self, why: Failure) -> None:
        if self.lost_by is None:
            self.lost_by = why.value
        unanswered, self._asked = self._asked, deque()
        super().connectionLost(why)
        for asked in unanswered:
            if not asked.done.called:
                asked.done.callback(None)

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
        add_time_limit(ready, limit, clock, _expired)
        await ready
        return lost

    async def ask(self, clock: IReactorTime, commands: tuple[Command, ...], limit: float) -> list[Any]:
        """The answers to these commands, which leave together and are carried out in order, within `limit` seconds.

        The answer of a command that Redis refuses, or does not answer, is a CarrierFailed. After a time-out the
        connection is aborted: an answer that comes late would be taken for that of the next command.
        """
        if not self.connected:
            return [CarrierFailed(_LOST)] * len(commands)
        asked = _Asked(len(commands))
        self._asked.append(asked)
        self.transport.write(_packed(commands))
        add_time_limit(asked.done, limit, clock, _expired)
        missing: CarrierFailed | None = None
        try:
            await asked.done
        except CancelledError:
            self.transport.abortConnection()
            raise
        except CarrierFailed as late:
            self.transport.abortConnection()
            missing = late
        answers = [
            refusal(str(command[0]), str(answer)) if isinstance(answer, txredisapi.ResponseError) else answer
            for command, answer in zip(commands, asked.answers, strict=False)
        ]
        if len(answers) < len(commands):
            answers += [missing or self._lost()] * (len(commands) - len(answers))
        return answers

    def _lost(self) -> CarrierFailed:
        if self.lost_by is None or isinstance(self.lost_by, ConnectionClosed):
            return CarrierFailed(_LOST)
        return connecting_failed(self.lost_by)


def _packed(commands: tuple[Command, ...]) -> bytes:
    pack: Any = hiredis.pack_command  # its annotation takes tuples of one item only
    return b"".join([pack(command) for command in commands])


class RedisFactory(TwistedFactory):
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


def _expired(result: object, limit: float) -> NoReturn:
    raise CarrierFailed("Redis does not answer in time")


def _words(error: BaseException | None) -> str:
    if isinstance(error, CarrierFailed):
        return error.why
    return f"cannot connect to Redis: {'' if error is None else why(error)}"
