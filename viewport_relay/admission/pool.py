"""The connections to servers that are kept: Twisted's pool with bounds on heads, on the number kept and on the time of a close."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection as TCPConnection
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IResponse
from zope.interface import implementer

from viewport_relay.timelimit import TimeLimits

#: Most bytes that may come before the head of a response is complete.
HEAD_MAX: Final = 131_072
#: Connections kept for each origin, and seconds for which an idle one may be used again: less than what servers and
#: NATs usually allow, so that few requests meet a dropped connection.
IDLE_MAX: Final = 32
IDLE_SECONDS: Final = 30
#: Seconds that a peer may delay the end of a connection.
CLOSE_LIMIT: Final = 1.0


class HeadTooLong(Exception):
    """The head of a response has more than `HEAD_MAX` bytes."""


class Pool(HTTPConnectionPool):
    """The connections that are kept, with a bound on the head of each response.

    Twisted's own retry is off: it leaves out POST, and takes the next kept connection where only a new one is sure to help.
    """

    maxPersistentPerHost = IDLE_MAX
    cachedConnectionTimeout = IDLE_SECONDS
    retryAutomatically = False

    def getConnection(self, key: Any, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """A wrapper that sends one request, as the documentation of Twisted's pool allows."""
        return super().getConnection(key, endpoint).addCallback(_bounded)

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._limits = TimeLimits(clock)
        self.connections: dict[_Connection, int] = {}  # all that are open; `WrappingFactory` keeps it
        self._closed: list[Deferred[None]] = []
        super().__init__(self._limits)  # type: ignore[no-untyped-call]  # asks it for nothing but callLater

    def drop_idle(self) -> None:
        """Close the connections that no request uses."""
        self.closeCachedConnections()  # type: ignore[no-untyped-call]

    def close(self) -> Deferred[None]:
        """Close every connection; fires when none is left, after `CLOSE_LIMIT` at the latest. A later request makes a new one."""
        self.drop_idle()
        self._limits.stop()
        for connection in tuple(self.connections):
            connection.loseConnection()
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        self.tell_closed()
        return closed

    def tell_closed(self) -> None:
        """Called when a connection is lost."""
        while self._closed and not self.connections:
            self._closed.pop().callback(None)


def _bounded(protocol: Any) -> Any:
    """The `_Connection` under a protocol of the pool; once that is lost, the protocol, whose methods then report the loss."""
    connection = protocol.transport
    return connection if isinstance(connection, _Connection) else protocol


class _Connection(ProtocolWrapper):
    """A connection to a server, whose heads are bounded and whose end cannot be delayed for long."""

    _head_left: int | None = None  # bytes, while the head of a response is awaited
    _cut: IDelayedCall | None = None
    _too_long = False
    _receiving = False
    _pauses = False
    _gathered: list[bytes] | None = None
    _at_once = True  # whether the transport holds nothing that is still to be sent

    def request(self, request: Any) -> Deferred[IResponse]:
        """Called by the agent."""
        self._head_left = HEAD_MAX
        self._gathered = []
        protocol: Any = self.wrappedProtocol
        response: Deferred[IResponse] = protocol.request(request)
        self._send_gathered()
        return response.addCallback(self._head_complete)

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport."""
        self._receiving = True
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        self._receiving = False
        if self._pauses:
            self._pauses = False
            self.pauseProducing()
        if self._head_left is not None:
            self._head_left -= len(data)
            if self._head_left < 0 and not self._too_long:
                self._too_long = True
                self.stopProducing()

    # Head and body of a request leave in one `send` without another turn of the reactor, and (plain TCP) without a change of what
    # the kernel is asked to watch.

    def write(self, data: bytes) -> None:
        """Called by Twisted's request."""
        self.writeSequence([data])

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Called by Twisted's request."""
        if self._gathered is not None:
            self._gathered.extend(data)
        else:
            self._at_once = False
            super().writeSequence(data)  # type: ignore[no-untyped-call]

    def _send_gathered(self) -> None:
        """Send what was kept; what the socket does not take now is the transport's to send."""
        data, self._gathered = b"".join(self._gathered or ()), None
        transport = self.transport
        if self._at_once and isinstance(transport, TCPConnection) and transport.connected:
            sent = transport.writeSomeData(data)
            if isinstance(sent, int):  # else the transport finds out what is wrong
                data = data[sent:]
        if data:
            self.writeSequence([data])

    # Twisted pauses a connection behind each head and resumes it when the body has a reader, which is at once: two system
    # calls for nothing.

    def pauseProducing(self) -> None:
        """Read no more: not before what is being received was handled."""
        if self._receiving:
            self._pauses = True
        elif self.wrappedProtocol is not None:
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def resumeProducing(self) -> None:
        """Read on."""
        if self._pauses:
            self._pauses = False
        elif self.wrappedProtocol is not None:
            self.transport.resumeProducing()  # type: ignore[union-attr]

    def _head_complete(self, response: IResponse) -> IResponse:
        """End the bound on the head, which has come; the reader of the body has a bound of its own."""
        self._head_left = None
        return response

    def loseConnection(self) -> None:
        """Close the connection, and abort it after `CLOSE_LIMIT`: a TLS peer may not answer close_notify."""
        super().loseConnection()  # type: ignore[no-untyped-call]
        if self._cut is None and self.wrappedProtocol is not None:
            assert isinstance(self.factory, _ConnectionFactory)
            self._cut = self.factory.pool.clock.callLater(CLOSE_LIMIT, self.stopProducing)

    def stopProducing(self) -> None:
        """Abort the connection: further input is not wanted."""
        if self.wrappedProtocol is not None:
            self.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        cut, self._cut = self._cut, None
        if cut is not None and cut.active():
            cut.cancel()
        why = Failure(HeadTooLong()) if self._too_long else reason
        super().connectionLost(why)  # type: ignore[no-untyped-call]
        assert isinstance(self.factory, _ConnectionFactory)
        self.factory.pool.tell_closed()


class _ConnectionFactory(WrappingFactory):
    protocol = _Connection
    noisy = False

    def __init__(self, wrapped: IProtocolFactory, pool: Pool) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.pool = pool
        self.protocols = pool.connections  # those of all factories


@implementer(IStreamClientEndpoint)
class BoundedEndpoint:
    """An endpoint whose connections are `_Connection`s."""

    def __init__(self, pool: Pool, endpoint: IStreamClientEndpoint) -> None:
        self._pool = pool
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """The protocol of `protocolFactory`, connected."""
        wrapper: Deferred[Any] = self._endpoint.connect(_ConnectionFactory(protocolFactory, self._pool))
        return wrapper.addCallback(lambda connection: connection.wrappedProtocol)
