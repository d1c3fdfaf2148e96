"""One connection to Redis: signing in, commands with a time limit, and what Redis's errors mean.

RESP is read by hiredis and written by txredisapi. Nothing here reconnects (see `redisconnection`) or knows what the
commands are for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from socket import socket
from typing import Any, Final, NoReturn

import hiredis
import txredisapi
from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.internet.protocol import Factory as TwistedFactory
from twisted.python.failure import Failure

from viewport_relay.admission.httpwords import why
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.reasons import Reason
from viewport_relay.timelimit import add_time_limit

Command = tuple[str | bytes | memoryview | int | float, ...]

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
#: Parts of one `sendmsg` at most: no system takes fewer (POSIX, _XOPEN_IOV_MAX).
_MOST_PARTS: Final = 16


@frozen
class Credentials:
    """What a server is signed in to with: an ACL user, or the password of the default user; a database's number."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int | None = None


class _Asked:
    """Commands that left together. `done` fires when all answers are there, or no more will come."""

    __slots__ = ("answers", "count", "done", "due")

    def __init__(self, count: int, due: float) -> None:
        self.count = count
        self.due = due
        self.answers: list[Any] = []
        self.done: Deferred[None] = Deferred()

    def finish(self) -> None:
        if not self.done.called:
            self.done.callback(None)


class RedisProtocol(txredisapi.HiredisProtocol):  # type: ignore[misc]  # it is not typed
    """txredisapi's protocol, which also tells why a connection was lost, and costs less for commands in one write.

    txredisapi signs in. From then on replies are read here, all of one read together, and do not pass its queue of one
    Deferred for each reply. One timer watches all commands that are not answered yet.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.lost_by: BaseException | None = None
        self._asked: deque[_Asked] = deque()
        self._replies = hiredis.Reader(
            protocolError=txredisapi.InvalidData, replyError=txredisapi.ResponseError
        )
        self._signed_in = False
        self._socket: socket | None = None  # of plain TCP, while connected
        self._clock: IReactorTime
        self._alarm: IDelayedCall | None = None

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        try:
            if self._signed_in:
                self._read(data)
            else:
                super().dataReceived(data, unpause)
        except (hiredis.ProtocolError, txredisapi.InvalidData):
            self.lost_by = CarrierFailed("what answers does not speak Redis's protocol")
            self.transport.abortConnection()

    def _read(self, data: bytes) -> None:
        asked, next_reply = self._asked, self._replies.gets
        self._replies.feed(data)
        while (reply := next_reply()) is not False:
            if not asked:
                raise txredisapi.InvalidData("a reply to no command")
            first = asked[0]
            first.answers.append(reply)
            if len(first.answers) == first.count:
                asked.popleft()
                first.finish()

    def connectionLost(self, why: Failure) -> None:
        if self.lost_by is None:
            self.lost_by = why.value
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._socket = None
        unanswered, self._asked = self._asked, deque()
        super().connectionLost(why)
        for asked in unanswered:
            asked.finish()

    async def sign_in(self, clock: IReactorTime, limit: float) -> Deferred[Any]:
        """Wait at most `limit` seconds until user, password and database are accepted.

        Gives a Deferred that fires when the connection is lost. Raises CarrierFailed.
        """
        self._clock = clock
        self.transport.setTcpKeepAlive(True)
        # A batch's last segment would wait for the acknowledgement of those before it, up to 40 ms (RFC 1122, 4.2.3.2).
        self.transport.setTcpNoDelay(True)
        ready: Deferred[Any] = self.whenConnected()
        lost: Deferred[Any] = self.whenDisconnected()

        def too_early(_: object) -> None:
            if not ready.called:
                refused = self.factory.refused
                ready.errback(CarrierFailed(refused) if refused else connecting_failed(self.lost_by))

        lost.addCallback(too_early)
        add_time_limit(ready, limit, clock, _expired)
        await ready
        self._signed_in = True
        if not ISSLTransport.providedBy(self.transport):
            self._socket = self.transport.getHandle()
        return lost

    async def ask(self, commands: tuple[Command, ...], limit: float) -> list[Any]:
        """The answers to these commands, which leave together and are carried out in order, within `limit` seconds.

        The answer of a command that Redis refuses, or does not answer, is a CarrierFailed. After a time-out the
        connection is aborted: an answer that comes late would be taken for that of the next command.
        """
        if not self.connected:
            return [CarrierFailed(_LOST)] * len(commands)
        asked = _Asked(len(commands), self._clock.seconds() + limit)
        # Where every command is answered, what was written before has left.
        self._write([part for command in commands for part in _packed(command)], at_once=not self._asked)
        self._asked.append(asked)
        self._watch(asked.due)
        try:
            await asked.done
        except CancelledError:
            self.transport.abortConnection()
            raise
        answers = [
            refusal(str(command[0]), str(answer)) if isinstance(answer, txredisapi.ResponseError) else answer
            for command, answer in zip(commands, asked.answers, strict=False)
        ]
        if len(answers) < len(commands):
            answers += [self._lost()] * (len(commands) - len(answers))
        return answers

    def _write(self, parts: list[bytes | memoryview], *, at_once: bool) -> None:
        """Write, without waiting for the reactor's next turn where nothing waits before."""
        if at_once and self._socket is not None:
            try:
                sent = self._socket.sendmsg(parts[:_MOST_PARTS])
            except OSError:  # full, or broken: the transport finds out which
                sent = 0
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]
        if parts:
            self.transport.write(b"".join(parts))

    def _watch(self, due: float) -> None:
        """Look again at this time at the latest."""
        alarm = self._alarm
        if alarm is None:
            self._alarm = self._clock.callLater(due - self._clock.seconds(), self._look)
        elif due < alarm.getTime():
            alarm.reset(due - self._clock.seconds())

    def _look(self) -> None:
        """Abort the connection if a command has not been answered in time: after the reactor has read once more."""
        self._alarm = None
        if self._is_late():
            self._alarm = self._clock.callLater(0, self._look_again)

    def _is_late(self) -> bool:
        if not self._asked:
            return False
        due = min(asked.due for asked in self._asked)
        if due > self._clock.seconds():
            self._watch(due)
            return False
        return True

    def _look_again(self) -> None:
        self._alarm = None
        if not self._is_late():
            return
        self.lost_by = CarrierFailed(_LATE)
        self.transport.abortConnection()

    def _lost(self) -> CarrierFailed:
        if self.lost_by is None or isinstance(self.lost_by, ConnectionClosed):
            return CarrierFailed(_LOST)
        return connecting_failed(self.lost_by)


def _packed(command: Command) -> Sequence[bytes | memoryview]:
    """A command in parts (RESP, bulk strings): a batch, which is its last item, is not copied."""
    pack: Any = hiredis.pack_command  # its annotation takes tuples of one item only
    *others, last = command
    if not isinstance(last, memoryview):
        return (pack(command),)
    head = pack((*others, b"")).removesuffix(b"$0\r\n\r\n")
    return head + b"$%d\r\n" % len(last), last, b"\r\n"


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
_LATE: Final = "Redis does not answer in time"


def connecting_failed(error: BaseException | None) -> CarrierFailed:
    """What is told when no connection could be made: names, TCP and TLS raise many unrelated kinds of errors."""
    if isinstance(error, CarrierFailed):
        return error
    return CarrierFailed(f"cannot connect to Redis: {'' if error is None else why(error)}")


class RedisRefuses(CarrierFailed):
    """Redis answered with an error: it can be reached, and the next command would most likely fare no better."""


def refusal(command: str, said: str) -> RedisRefuses:
    """What an error reply of Redis to a command means."""
    said = said.strip().removeprefix("ERR ").strip()[:_LONGEST_ERROR]
    word = said.split(" ", 1)[0]
    if word in _NOT_SERVING:
        return RedisRefuses(f"Redis says: {said}")
    advice = next((f" ({text})" for part, text in _ADVICE if part in said), "")
    return RedisRefuses(
        f"Redis refuses {command}: {said}{advice}",
        reason=Reason.BACKPLANE_REFUSED,
        outage=word not in _ONE_KEY,
    )


def _expired(result: object, limit: float) -> NoReturn:
    raise CarrierFailed(_LATE)
