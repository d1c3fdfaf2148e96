"""Both ends of the report channel from a worker to the parent: one line of JSON for each report (see `messages`)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.observe.ring import Record
from viewport_relay.workers.messages import MAX_LINE, Logged, Report, decode_report, encode
from viewport_relay.workers.oneprotocol import OneProtocol

#: Most bytes that wait for the parent. Log entries beyond are dropped and counted.
_MOST_UNREAD: Final = 8_388_608


@implementer(IPushProducer)
class ReportSender(Protocol):
    """The worker's end. Log entries are dropped and counted while the parent does not read."""

    transport: Any

    def __init__(self) -> None:
        self._unread = 0
        #: log entries dropped since the start
        self.lost = 0
        self._paused = False
        self._over: Deferred[None] | None = Deferred()

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    def send(self, report: Report) -> None:
        if self._over is None:
            return
        line = encode(report) + b"\n"
        if self._paused:
            if isinstance(report, Logged) and self._unread > _MOST_UNREAD:
                self.lost += 1
                return
            self._unread += len(line)
        self.transport.write(line)

    def send_record(self, record: Record) -> None:
        self.send(Logged(record))

    def finish(self) -> Deferred[None]:
        """Fire when everything was written, or the channel is closed."""
        if self._over is None:
            return succeed(None)
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        return self._over

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        over, self._over = self._over, None
        if over is not None:
            over.callback(None)

    # -- IPushProducer -------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused, self._unread = False, 0

    def stopProducing(self) -> None:
        """No-op: the packet channel reports the parent's end too."""


class ReportReader(LineOnlyReceiver):
    """The parent's end: calls `take(report)` for each report, and `failed(why)` for a line that is too long."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE

    def __init__(self, take: Callable[[Report], None], failed: Callable[[str], None]) -> None:
        self._take = take
        self._failed = failed

    def lineReceived(self, line: bytes) -> None:
        self._take(decode_report(line))

    def lineLengthExceeded(self, line: bytes) -> None:
        self._failed(f"a report was longer than {MAX_LINE} bytes")


def connect(reactor: Any, sock: socket.socket, protocol: Any) -> Any:
    """Run `protocol` over a socket of the report channel; returns the transport. `sock` may be closed afterwards."""
    sock.setblocking(False)
    return reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, OneProtocol(protocol))
