"""Both ends of the two channels between the parent and a worker (see `messages` for what they carry).

Packets go to the worker and carry file descriptors (SCM_RIGHTS, unix(7)). The worker receives its own copy of a descriptor.
The parent closes its copy without `shutdown`, so that the connection stays open. Packets that the socket does not take at
once wait in order, up to a bound. Reports go to the parent, one line of JSON each.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer, IReactorFDSet
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.workers.messages import (
    MAX_LINE,
    MAX_PACKET,
    Logged,
    Order,
    Report,
    decode_order,
    decode_report,
    encode,
)

#: Most packets that wait for a worker that is starting or busy. The peers behind them wait too.
MAX_WAITING: Final = 4096

#: Most bytes of reports that wait for the parent. Log entries beyond are dropped and counted.
_MOST_UNREAD: Final = 8_388_608

#: Most packets that a worker reads in one reactor turn, so that frames of its peers are not delayed.
_PER_WAKE_UP: Final = 16

#: The kernel has no room now: for the packet, or for more descriptors in flight (`ETOOMANYREFS`).
_LATER: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ETOOMANYREFS})


# -- packets: parent -> worker -----------------------------------------------------------------------------------


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A SOCK_SEQPACKET pair: the parent's end, the worker's end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class _PacketSocket(FileDescriptor):
    """One end of a packet channel, as a descriptor in the reactor."""

    def __init__(self, sock: socket.socket, reactor: IReactorFDSet) -> None:
        FileDescriptor.__init__(self, reactor)
        sock.setblocking(False)
        self._sock = sock

    def close(self) -> None:
        """Close the channel. Later calls have no effect."""
        if not self.disconnected:
            self.connectionLost(Failure(CONNECTION_DONE))

    def connectionLost(self, reason: Failure) -> None:
        FileDescriptor.connectionLost(self, reason)
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()


class PacketSender(_PacketSocket):
    """The parent's end. It owns the `socks` of each order that `send` accepted."""

    def __init__(self, sock: socket.socket, reactor: IReactorFDSet) -> None:
        _PacketSocket.__init__(self, sock, reactor)
        self._waiting: deque[tuple[bytes, Sequence[socket.socket]]] = deque()

    def send(self, order: Order, socks: Sequence[socket.socket] = (), data: bytes = b"") -> bool:
        """Send `order`, or queue it. False: the queue is full or the worker has exited, and the caller still owns `socks`."""
        packet = encode(order) + b"\n" + data if data else encode(order)
        if self.disconnected or len(packet) > MAX_PACKET:
            return False
        if socks and len(self._waiting) >= MAX_WAITING:
            return False
        try:
            if self._waiting or not self._put(packet, socks):
                self._waiting.append((packet, socks))
        except OSError:
            self.close()
            return False
        return True

    def doWrite(self) -> None:
        """Write queued packets until the socket would block."""
        try:
            while self._waiting and self._put(*self._waiting[0]):
                self._waiting.popleft()
        except OSError:
            self.close()
        if not self._waiting:
            self.reactor.removeWriter(self)

    def _put(self, packet: bytes, socks: Sequence[socket.socket]) -> bool:
        """Write a packet, and close its `socks`, of which the worker has copies. False: the kernel has no room now.

        Raises OSError when the worker has exited; `Worker.processEnded` comes later.
        """
        try:
            if socks:
                socket.send_fds(self._sock, [packet], [sock.fileno() for sock in socks])
            else:
                self._sock.send(packet)
        except OSError as error:
            if error.errno not in _LATER:
                raise
            self.reactor.addWriter(self)
            return False
        for sock in socks:
            sock.close()
        return True

    def connectionLost(self, reason: Failure) -> None:
        """Close the channel and the queued connections."""
        _PacketSocket.connectionLost(self, reason)
        for _, socks in self._waiting:
            for sock in socks:
                sock.close()
        self._waiting.clear()


class PacketReader(_PacketSocket):
    """The worker's end: calls `take(order, descriptors, data)` for each packet, and `gone()` at end of file."""

    def __init__(
        self,
        sock: socket.socket,
        reactor: IReactorFDSet,
        take: Callable[[Order, list[int], bytes], None],
        gone: Callable[[], None],
    ) -> None:
        _PacketSocket.__init__(self, sock, reactor)
        self._take = take
        self._gone = gone
        self.reactor.addReader(self)

    def doRead(self) -> None:
        """Read packets. `take` owns the descriptors and must close them."""
        for _ in range(_PER_WAKE_UP):
            if self.disconnected:
                return
            try:
                packet, descriptors, _flags, _address = socket.recv_fds(self._sock, MAX_PACKET, 2)
            except BlockingIOError:
                return
            except OSError:
                packet, descriptors = b"", []
            if not packet:
                self.close()
                self._gone()
                return
            head, _, data = packet.partition(b"\n")
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self._take(decode_order(head), descriptors, data)


# -- reports: worker -> parent -----------------------------------------------------------------------------------


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


class OneProtocol(Factory):
    """A protocol factory that gives the one protocol that it was made with."""

    noisy = False

    def __init__(self, protocol: Any) -> None:
        self._one = protocol

    def buildProtocol(self, address: IAddress | None) -> Any:
        return self._one


def connect(reactor: Any, sock: socket.socket, protocol: Any) -> Any:
    """Run `protocol` over a socket of the report channel; returns the transport. `sock` may be closed afterwards."""
    sock.setblocking(False)
    return reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, OneProtocol(protocol))
