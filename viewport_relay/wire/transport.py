"""TCP and Unix transports that read straight into the arena, and notice FIN or RST of a peer that is not read.

They are Twisted's own server transports, made by `RelayReactor` for whatever it listens on or adopts. Until `read_into` is
called they behave as Twisted's do.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable
from socket import socket
from typing import Any, Final, Protocol

from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from viewport_relay.wire.lowpriority import LowPrioritySet

#: Most bytes that are read at once of a peer that is not admitted yet. A request fits. Full of the smallest TLS records, of
#: which each costs 5 µs, they are 2 ms of work.
STRANGERS_READ: Final = 8192

#: Most bytes that the kernel keeps for a daemon beyond what is already on its way to it.
KERNEL_QUEUE: Final = 131_072


def limit_kernel_queue(transport: Any) -> None:
    """Limit the data that the kernel queues for a TCP connection, and has not sent yet, to `KERNEL_QUEUE` bytes.

    Data in the kernel have left the lanes: one client's flood would be megabytes ahead of all the others.
    """
    sock = getattr(transport, "socket", None)  # of TLS too
    if sock is not None and sock.family != sockets.AF_UNIX and hasattr(sockets, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NOTSENT_LOWAT, KERNEL_QUEUE)


class Sink(Protocol):
    """Takes what was read: `space` is where the next bytes go, `received` says how many there are."""

    space: memoryview

    def received(self, size: int) -> None: ...


class Sender(Protocol):
    """Sends what it can at once, as a socket does."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int: ...


def read_nothing(space: memoryview) -> int:
    """Reads no more: nothing can be read at once, or the connection is lost."""
    return 0


class DirectAccess:
    """A transport that reads into the reader's memory and, while it holds nothing to send, writes without a turn of the reactor."""

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        """Give everything that is read from now on to `sink`; what is returned reads more, at once or with OSError."""
        raise NotImplementedError

    @property
    def sender(self) -> Sender:
        raise NotImplementedError

    @property
    def sent_everything(self) -> bool:
        """Whether the transport holds nothing that is still to be sent, and `sender` may be used."""
        raise NotImplementedError


def promote(transport: Any) -> None:
    """Serve the socket of a peer that was admitted before the sockets of those that are not (`LowPrioritySet`)."""
    while isinstance(transport, ProtocolWrapper):  # TLS, PROXY protocol
        transport = transport.transport
    if isinstance(transport, DirectTransport):
        transport.promote()


class DirectTransport(DirectAccess):
    """A transport whose socket may be read and written without it. It is mixed into Twisted's server transports."""

    socket: socket
    reactor: Any
    protocol: Any
    dataBuffer: bytes
    _tempDataLen: int
    write: Callable[[bytes], None]
    stopReading: Callable[[], None]
    stopWriting: Callable[[], None]
    connected: int
    disconnected: int
    _receive: Callable[[memoryview], int]
    _sink: Sink | None = None
    _watched = False
    _hung_up = False

    def promote(self) -> None:
        """Leave the `LowPrioritySet`, if it is there."""
        if isinstance(self.reactor, LowPrioritySet):
            self.reactor = self.reactor.promote(self)

    def give_away(self) -> None:
        """Drop the connection without `shutdown`: another process has a copy of its socket. Twisted's own methods shut it down."""
        self.stopReading()
        self.stopWriting()
        self.connected, self.disconnected = 0, 1
        self.socket.close()

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        self._sink = sink
        self._receive = self.socket.recv_into
        return self._receive

    @property
    def sender(self) -> Sender:
        return self.socket

    @property
    def sent_everything(self) -> bool:
        return not self.dataBuffer and not self._tempDataLen

    def send_now(self, data: bytes | memoryview) -> None:
        """Send bytes at once, or as soon as the socket takes them."""
        if not self.dataBuffer and not self._tempDataLen:
            try:
                sent = self.socket.send(data)
            except OSError:
                sent = 0  # full, or broken: the reactor finds out which
            if sent == len(data):
                return
            data = data[sent:]
        self.write(bytes(data))

    def doRead(self) -> Any:
        sink = self._sink
        if sink is None:
            if isinstance(self.reactor, LowPrioritySet):
                return self._read_stranger()
            return super().doRead()  # type: ignore[misc]  # Twisted's, behind this mixin
        try:
            size = self._receive(sink.space)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if not size:
            return CONNECTION_DONE
        sink.received(size)
        return None

    def _read_stranger(self) -> Any:
        """Twisted's `doRead` with fewer bytes. Its `bufferSize` is also the mark above which a producer is paused."""
        try:
            data = self.socket.recv(STRANGERS_READ)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    # A paused transport is in no epoll set, so its peer's FIN or RST would wait for the producer.

    def pauseProducing(self) -> None:
        if self.connected and not self._hung_up:  # its last input may be handled when it is lost already
            super().pauseProducing()  # type: ignore[misc]
            self._watched = True
            self.reactor.watch_hang_up(self)

    def resumeProducing(self) -> None:
        if self._watched:
            self._unwatch()
        super().resumeProducing()  # type: ignore[misc]

    def hung_up(self) -> None:
        """Read to the end, even while paused: the peer has sent FIN or RST, so what is left is what the kernel holds."""
        self._unwatch()
        self._hung_up = True
        super().resumeProducing()  # type: ignore[misc]

    def _unwatch(self) -> None:
        self._watched = False
        self.reactor.unwatch_hang_up(self)

    def connectionLost(self, reason: Failure) -> None:
        if self._watched:
            self._unwatch()
        self._sink = None
        self._receive = read_nothing
        super().connectionLost(reason)  # type: ignore[misc]


class TCPTransport(DirectTransport, tcp.Server):
    """A TCP connection of a peer."""


class UnixTransport(DirectTransport, unix.Server):
    """A connection of a peer (a proxy) through a Unix-domain socket."""
