"""An HTTP connection before it is a WebSocket: how long it may take, how much it may send, how many there may be.

    accepted -> (TLS) -> request's head and body -> answered, and the next one | handed over to `Connection`

Twisted's channel does the parsing, but for the usual upgrade that comes first and whole (`head.py`), which goes to
`upgrades` at once: Twisted's request with all that belongs to it would be an eighth of the upgrade. This one adds bounds
that a hostile peer meets: one time limit for a whole request with its TLS handshake (bytes that drip do not renew it),
no long bodies, an end to closes that the peer does not answer. `HttpConnections` bounds their number; who has sat longest
without asking anything goes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request

from viewport_relay.admission.addresses import counted_as
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason
from viewport_relay.wire.head import Head, read_upgrade

#: Seconds for a request to be complete, from the connection or the last answer on.
REQUEST_TIMEOUT: Final = 15

#: Seconds that a closing connection has, for what is still to be sent and the peer's good-bye.
LINGER: Final = 15

#: Longest body of a request, bytes. Operators' requests are far shorter.
MAX_BODY: Final = 65_536


class _Host:
    """The connections of one address."""

    __slots__ = ("number", "waiting")

    def __init__(self) -> None:
        self.number = 0
        self.waiting: dict[RelayChannel, None] = {}


class HttpConnections:
    """The HTTP connections of one listener, bounded in all and per address. Upgraded ones are not among them."""

    def __init__(
        self,
        most: Callable[[], int],
        most_per_address: int = 0,
        exempt: Callable[[str], bool] = lambda host: False,
        log: EventSink | None = None,
    ) -> None:
        """`most` is asked at each new connection. 0 per address: no limit; `exempt` addresses have none."""
        self._most = most
        self._most_per_address = most_per_address
        self._exempt = exempt
        self._log = log
        self._host: dict[RelayChannel, str] = {}  # as it is counted
        self._hosts: dict[str, _Host] = {}
        # Those in which no request is being answered, in the order in which they began to wait.
        self._waiting: dict[RelayChannel, None] = {}

    def __len__(self) -> int:
        return len(self._host)

    def enter(self, channel: RelayChannel, address: str) -> None:
        """A new connection: room is made for it, or it is dropped."""
        name = counted_as(address)
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
        host.number += 1
        self._host[channel] = name
        self.waits(channel)
        if 0 < self._most_per_address < host.number and not self._exempt(address):
            self._drop(next(iter(host.waiting)), Reason.TOO_MANY_CONNECTIONS_PER_IP)
        elif len(self._host) > self._most():
            self._drop(next(iter(self._waiting)), Reason.TOO_MANY_CONNECTIONS)

    def busy(self, channel: RelayChannel) -> None:
        """A request is being answered: the connection is not dropped now."""
        if self._waiting.pop(channel, self) is None:
            del self._hosts[self._host[channel]].waiting[channel]

    def waits(self, channel: RelayChannel) -> None:
        """For a request, or for its end."""
        name = self._host.get(channel)
        if name is not None and channel not in self._waiting:
            self._waiting[channel] = self._hosts[name].waiting[channel] = None

    def leave(self, channel: RelayChannel) -> None:
        """The connection is lost, or no longer HTTP."""
        self.busy(channel)
        name = self._host.pop(channel, None)
        if name is not None:
            host = self._hosts[name]
            host.number -= 1
            if not host.number:
                del self._hosts[name]

    def close(self) -> None:
        """At the end of the relay."""
        for channel in tuple(self._host):
            channel.drop()

    def _drop(self, channel: RelayChannel, reason: Reason) -> None:
        name = self._host[channel]
        self.leave(channel)
        if self._log is not None:
            self._log.event("http_dropped", reason=reason, ip=name)
        channel.drop()


class RelayChannel(HTTPChannel):
    """Twisted's HTTP/1.1 channel with our bounds. Its factory is the site, which sets `connections`."""

    connections: HttpConnections | None = None
    #: who answers upgrades; None: nobody here
    upgrades: Callable[[Head, RelayChannel], None] | None = None
    #: the client's address where somebody in front of us has worked it out (the parent of several workers)
    given_ip: str | None = None
    transport: Any
    callLater: Callable[[float, Callable[[], None]], IDelayedCall]  # the site's

    def __init__(self) -> None:
        HTTPChannel.__init__(self)
        self._linger: IDelayedCall | None = None
        self._refused = False
        self._fresh = True  # nothing was received yet
        self._when_gone: Callable[[], None] | None = None
        self.gone = False  # the connection is lost

    # -- its life --------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        if self.connections is not None:
            self.connections.enter(self, self.peer_host())

    def peer_host(self) -> str:
        """The address at the other end of the TCP connection, or what PROXY protocol has said by now that it is."""
        return str(getattr(self.transport.getPeer(), "host", None) or "unknown")

    def dataReceived(self, data: bytes) -> None:
        # HTTPChannel's own would renew the time limit with every byte.
        if self._refused:
            return
        if self._fresh:
            self._fresh = False
            read = None if self.upgrades is None else read_upgrade(data)
            if read is not None:
                self._upgrade(read[0], data[read[1] :])
                return
        LineReceiver.dataReceived(self, data)

    def _upgrade(self, head: Head, early: bytes) -> None:
        """A request without a body was read to its end: leave the channel as Twisted's own does then."""
        assert self.upgrades is not None
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self._handlingRequest = True
        self.setRawMode()  # type: ignore[no-untyped-call]
        if self.connections is not None:
            self.connections.busy(self)
        if early:
            HTTPChannel.rawDataReceived(self, early)
        self.upgrades(head, self)

    # -- what an upgrade asks of it --------------------------------------------------------------------------

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call this if the peer goes away before it was answered."""
        self._when_gone = call

    @property
    def early(self) -> bytes:
        """What came behind the request: in the line receiver if we are still in its loop, else kept by the channel."""
        return b"".join(self._dataBuffer) + self._buffer

    def answer_last(self, answer: bytes) -> None:
        """Write a whole response and end the connection."""
        self._when_gone = None
        if self.transport is not None and not self.gone and not self._refused:
            self.transport.write(answer)
            self.loseConnection()

    def hand_over(self) -> tuple[Any, bytes]:
        """Give up the transport, which carries something else from now on, and what was received on it early."""
        self._when_gone = None
        self._stop_timers()
        if self.connections is not None:
            self.connections.leave(self)
        early, self._dataBuffer, self._buffer = self.early, [], b""
        transport, self.transport = self.transport, None
        return transport, early

    # -- its end -----------------------------------------------------------------------------------------------

    def timeoutConnection(self) -> None:
        """The request did not come in time, or none came at all: then there is nothing to answer."""
        if self._receivedHeaderSize or self._buffer or self.length != 0:
            self._say(b"408 Request Timeout")
        self.loseConnection()

    def loseConnection(self) -> None:
        if self._linger is not None:
            return
        self._refused = True
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self._linger = self.callLater(LINGER, self.drop)
        if self.connections is not None:
            self.connections.waits(self)
        HTTPChannel.loseConnection(self)

    def drop(self) -> None:
        """End it now, whatever is under way."""
        self._stop_timers()
        if self.transport is not None:
            self.transport.abortConnection()

    def peer_gone(self) -> None:
        """Cancel the upgrade that waits: TLS is over. The TLS transport ends the TCP connection."""
        self.gone = True
        call, self._when_gone = self._when_gone, None
        if call is not None:
            call()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._stop_timers()
        if self.connections is not None:
            self.connections.leave(self)
        self.peer_gone()
        HTTPChannel.connectionLost(self, reason)

    def _stop_timers(self) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        if self._linger is not None and self._linger.active():
            self._linger.cancel()

    # -- requests ----------------------------------------------------------------------------------------------

    def lineReceived(self, line: bytes) -> None:
        if not self._refused:  # the rest of what came in one piece with it
            HTTPChannel.lineReceived(self, line)

    def headerReceived(self, line: bytes) -> bool:
        if line[:14].lower() == b"content-length" and len(line) > 64:
            # Python turns no number of thousands of digits into an integer, and nobody needs one.
            self._refuse(b"400 Bad Request")
            return False
        taken: bool = HTTPChannel.headerReceived(self, line)
        return taken

    def allHeadersReceived(self) -> None:
        if self.length is None:
            self._refuse(b"411 Length Required")
        elif self.length > MAX_BODY:
            self._refuse(b"413 Content Too Large")
        else:
            HTTPChannel.allHeadersReceived(self)

    def _refuse(self, status: bytes) -> None:
        """Answer without reading what follows; Twisted would write it to a file."""
        self.length = None  # so that the channel does not take the request for complete
        self._say(status)
        self.loseConnection()

    def _say(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)

    def rawDataReceived(self, data: bytes) -> None:
        if not self._refused:
            HTTPChannel.rawDataReceived(self, data)

    def allContentReceived(self) -> None:
        if self.connections is not None:
            self.connections.busy(self)
        HTTPChannel.allContentReceived(self)

    def requestDone(self, request: Request) -> None:
        if self.persistent and self.connections is not None:
            self.connections.waits(self)
        if self._waitingForTransport and self.persistent:
            # The answers are not read. Twisted's own goes on answering what is already here, and reading more.
            self.paused = True
            self._networkProducer.pauseProducing()
        HTTPChannel.requestDone(self, request)

    def resumeProducing(self) -> None:
        HTTPChannel.resumeProducing(self)
        if self.paused:
            self.paused = False
            self.dataReceived(b"")
