"""One connection to Redis: commands with a time limit, and the exceptions for Redis's errors.

RESP is read and written by hiredis. Nothing here reconnects (see `redisconnection`) or knows what the commands are for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from socket import socket
from typing import Any, Final

import hiredis
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from viewport_relay.admission.httpwords import why
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.reasons import Reason

Command = tuple[str | bytes | memoryview | int | float, ...]

#: First words of errors of a server that does not serve this relay at all. All other errors refuse one command.
_NOT_SERVING: Final = frozenset({"NOAUTH", "WRONGPASS", "LOADING", "MASTERDOWN", "CLUSTERDOWN"})
#: First words of errors that concern one key, and say nothing about the next command.
_ONE_KEY: Final = frozenset({"WRONGTYPE"})
_LOGIN: Final = (
    "user and password are those of RELAY_REDIS_URL, a Sentinel's RELAY_REDIS_SENTINEL_USERNAME and _PASSWORD"
)
_CLUSTER: Final = "this is a Redis Cluster, which is not supported: use one primary, or Sentinels"
#: Advice to the operator: (a part of the error, advice). The first that fits is given.
_ADVICE: Final = (
    ("NOAUTH", _LOGIN),
    ("WRONGPASS", _LOGIN),
    ("READONLY", "this is a replica: RELAY_REDIS_URL must lead to the primary"),
    ("MOVED", _CLUSTER),
    ("CLUSTERDOWN", _CLUSTER),
    ("NOPERM", "allow the command and the keys in the ACL of the relay's user"),
    ("WRONGTYPE", "another program uses this key: delete it, or choose another RELAY_REDIS_KEY_PREFIX"),
    ("max number of clients", "raise maxclients: each relay keeps two connections"),
    ("NOREPLICAS", "see to the replicas, or lower min-replicas-to-write"),
    ("OOM", "raise maxmemory, or give the relay a Redis of its own"),
    ("MISCONF", "let Redis save again, or switch saving off: nothing of the relay needs it"),
    ("unknown command", "the command is renamed or switched off: give it its name back"),
    ("wrong number of arguments", "Redis 6.2 or later is needed"),
    ("syntax error", "Redis 6.2 or later is needed"),
    ("is not an integer", "Redis 6.2 or later is needed"),
)
#: In an error of an unknown command: what follows repeats its arguments, those of AUTH are a user and a password.
_ARGUMENTS: Final = ", with args beginning with:"
_LONGEST_ERROR: Final = 200
#: Bytes of answers to one `ask`: more than all elements of a pull that relays write.
MOST_BYTES: Final = 268_435_456
#: Parts of one `sendmsg` at most: no system takes fewer (POSIX, _XOPEN_IOV_MAX).
_MOST_PARTS: Final = 16


class RedisRefuses(CarrierFailed):
    """Redis answered with an error: it can be reached, and the next command would most likely fail too.

    `word` is the first one of the error, which tells its kind.
    """

    def __init__(self, why: str, *, word: str, **more: Any) -> None:
        super().__init__(why, **more)
        self.word = word


class _Asked:
    """The commands of one `ask`. `done` fires when all answers are there, or no more will come.

    `due` is when they are late, in the clock's seconds.
    """

    __slots__ = ("answers", "count", "done", "due")

    def __init__(self, count: int, due: float) -> None:
        self.count = count
        self.due = due
        self.answers: list[Any] = []
        self.done: Deferred[None] = Deferred()

    def finish(self) -> None:
        if not self.done.called:
            self.done.callback(None)


class RedisProtocol(Protocol):
    """A connection to the server that `server` names for operators. `lost` fires when the connection is lost."""

    def __init__(self, clock: IReactorTime, server: str) -> None:
        self.server = server
        self._late = f"{server} does not answer in time"
        #: why no more answers come
        self.failed = CarrierFailed(f"the connection to {server} was lost")
        self.lost: Deferred[None] = Deferred()
        self._asked: deque[_Asked] = deque()
        self._read = 0  # bytes since the latest answer to a whole `ask`
        self._replies = hiredis.Reader()
        self._socket: socket | None = None  # of plain TCP, while connected
        self._clock = clock
        self._alarm: IDelayedCall | None = None  # while commands may be unanswered

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpKeepAlive(True)
        # A batch's last segment would wait for the acknowledgement of those before it, up to 40 ms (RFC 1122, 4.2.3.2).
        transport.setTcpNoDelay(True)
        if not ISSLTransport.providedBy(transport):
            self._socket = transport.getHandle()
        else:  # a server without TLS waits for the end of a line, and says nothing
            self._late += " over TLS"

    def dataReceived(self, data: bytes) -> None:
        asked, next_reply = self._asked, self._replies.gets
        self._read += len(data)
        try:
            self._replies.feed(data)
            while (reply := next_reply()) is not False:
                if not asked:
                    raise hiredis.ProtocolError("a reply to no command")
                first = asked[0]
                first.answers.append(reply)
                if len(first.answers) == first.count:
                    asked.popleft()
                    self._read = 0
                    first.finish()
            if self._read > MOST_BYTES:
                self._fail(f"{self.server} answers with more than {MOST_BYTES >> 20} MiB")
        except hiredis.ProtocolError:
            self._fail(f"{self.server}: what answers does not speak Redis's protocol")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.value is not None and not reason.check(ConnectionClosed):  # but an error of TLS
            self.failed = connecting_failed(self.server, reason.value)
        if self._alarm is not None:
            self._alarm.cancel()
        self._socket = None
        self.connected = 0
        self.lost.callback(None)
        unanswered, self._asked = self._asked, deque()
        for asked in unanswered:
            asked.finish()

    @property
    def busy(self) -> bool:
        """Whether commands are not answered yet: their time limit finds out about a silent server."""
        return bool(self._asked)

    def abort(self) -> None:
        """Close at once: a server that is silent would not answer a close."""
        transport: Any = self.transport
        transport.abortConnection()

    def _fail(self, why: str) -> None:
        self.failed = CarrierFailed(why)
        self.abort()

    async def ask(self, commands: Sequence[Command], limit: float) -> list[Any]:
        """The answers to these commands, which leave together and are carried out in order, within `limit` seconds.

        The answer of a command that Redis refuses, or does not answer, is a CarrierFailed. After a time-out the
        connection is aborted: an answer that comes late would be taken for that of the next command.
        """
        if not self.connected:
            return [self.failed] * len(commands)
        asked = _Asked(len(commands), self._clock.seconds() + limit)
        # Where every command is answered, what was written before has left.
        self._write([part for command in commands for part in _packed(command)], at_once=not self._asked)
        self._asked.append(asked)
        if self._alarm is None:
            self._alarm = self._clock.callLater(limit, self._look)
        try:
            await asked.done
        except CancelledError:
            self.abort()
            raise
        answers = [
            self._refusal(str(command[0]), str(answer)) if isinstance(answer, hiredis.ReplyError) else answer
            for command, answer in zip(commands, asked.answers, strict=False)
        ]
        if len(answers) < len(commands):
            answers += [self.failed] * (len(commands) - len(answers))
        return answers

    def checked(self, answers: list[Any]) -> list[Any]:
        """Answers that all came. Raises the first CarrierFailed among them, and then the connection is aborted."""
        for answer in answers:
            if isinstance(answer, CarrierFailed):
                self.abort()
                raise answer
        return answers

    def _look(self, late: _Asked | None = None) -> None:
        """Abort the connection if the first command is late. `late` was so before the reactor has read once more."""
        self._alarm = None
        if not self._asked:
            return
        first = self._asked[0]
        if first is late:
            self._fail(self._late)
            return
        rest = first.due - self._clock.seconds()
        self._alarm = self._clock.callLater(max(rest, 0), self._look, None if rest > 0 else first)

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
            transport: Any = self.transport
            transport.write(b"".join(parts))

    def _refusal(self, command: str, said: str) -> RedisRefuses:
        """The exception for an error reply to a command."""
        said = said.partition(_ARGUMENTS)[0].strip().removeprefix("ERR ").strip()[:_LONGEST_ERROR]
        word = said.split(" ", 1)[0]
        advice = next((f" ({text})" for part, text in _ADVICE if part in said), "")
        if word in _NOT_SERVING:
            return RedisRefuses(f"{self.server} says: {said}{advice}", word=word)
        return RedisRefuses(
            f"{self.server} refuses {command}: {said}{advice}",
            reason=Reason.BACKPLANE_REFUSED,
            outage=word not in _ONE_KEY,
            word=word,
        )


def connecting_failed(server: str, error: BaseException) -> CarrierFailed:
    """The exception where no connection could be made: names, TCP and TLS raise many unrelated kinds of errors."""
    return CarrierFailed(f"cannot connect to {server}: {why(error)}")


def _packed(command: Command) -> Sequence[bytes | memoryview]:
    """A command in parts (RESP, bulk strings): a batch, which is its last item, is not copied."""
    pack: Any = hiredis.pack_command  # its annotation takes tuples of one item only
    *others, last = command
    if not isinstance(last, memoryview):
        return (pack(command),)
    head = pack((*others, b"")).removesuffix(b"$0\r\n\r\n")
    return head + b"$%d\r\n" % len(last), last, b"\r\n"
