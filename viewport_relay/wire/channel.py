"""The relay's HTTP/1.1 channel: Twisted's `HTTPChannel` with bounds for hostile peers, and the hand-over to a WebSocket.

    accepted -> (TLS) -> head and body of a request -> answered -> the next request | handed over to `Connection`

Twisted reads every request. This class adds: one time limit for a whole request, its TLS handshake included (bytes that
drip do not renew it); short bodies only; requests of all connections in turn, in a `FairQueue`, however many are
pipelined; a bound on what is kept behind a request; a time limit for closing. Only public names of `HTTPChannel` and
`LineReceiver` are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.interfaces import IDelayedCall
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request

from viewport_relay.admission.addresses import counted_as, peer_host
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.httpconnections import HttpConnections

#: Seconds for a request to be complete, from the connection or from its first byte on.
REQUEST_TIMEOUT: Final = 15

#: Seconds that a closing connection has for its unsent bytes and the peer's FIN.
LINGER: Final = 15

#: Seconds between two reads of a closing connection, whose input is thrown away.
REST: Final = 0.25

#: Longest body of a request, bytes; the admin pages take no longer ones. It is kept before it is known who sends it.
MAX_BODY: Final = 16_384

#: Bytes behind a request that are kept while it is answered; then the transport is paused. One read comes on top.
MAX_KEPT: Final = 16_384

#: First byte of a TLS record that begins a handshake (RFC 8446 section 5.1). No HTTP request begins with it.
TLS_HANDSHAKE: Final = b"\x16"


def _is_plain_http(reason: Failure) -> bool:
    """Whether TLS ended because the peer sent an HTTP request instead of a handshake: OpenSSL knows its first letters."""
    return reason.check(SSL.Error) is not None and "http request" in str(reason.value)


class RelayChannel(HTTPChannel):
    """One HTTP connection. Its factory is `RelaySite`, which sets the attributes below."""

    queue: FairQueue
    connections: HttpConnections
    #: seconds that an idle connection is kept after an answer
    keep_alive: float
    #: the client's address where another process has determined it (the parent of several workers)
    given_ip: str | None = None
    #: the address of the connection's other end where another process ends TLS (a worker of the parent)
    given_peer: str | None = None
    transport: Any
    callLater: Callable[[float, Callable[[], None]], IDelayedCall]

    def __init__(self) -> None:
        HTTPChannel.__init__(self)
        self._peer_host: str | None = None
        self._linger: IDelayedCall | None = None
        self._resting: IDelayedCall | None = None
        self._waits = False  # for its turn in the queue
        self._closing = False
        self._answering = False
        self._begun = False  # a part of a request was received
        self._idle = False  # between two requests
        self._unread = False  # the peer does not read its answers
        self._kept = b""  # received behind the request that is being answered
        self.gone = False  # the connection is lost

    # -- the connection ----------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.connections.enter(self, self.given_peer or peer_host(self.transport))

    @property
    def peer_host(self) -> str:
        """The other end's address, or PROXY protocol's, known when the first bytes have come; "unix" or "unknown" without."""
        if self._peer_host is None:
            self._peer_host = self.given_peer or peer_host(self.transport)
        return self._peer_host

    def getHost(self) -> None:
        """None: the relay answers alike on each of its addresses, and to ask for it is a system call for each request."""

    def getPeer(self) -> None:
        """None: Twisted's request asks for the address, and nothing reads it there. `peer_host` is the address as text."""

    def timeoutConnection(self) -> None:
        """Called by TimeoutMixin: the request is late, or none came."""
        if self._begun:
            self._say(b"408 Request Timeout")
        self.loseConnection()

    def loseConnection(self) -> None:
        if self._linger is not None:
            return
        self._close()
        self._linger = self.callLater(LINGER, self.drop)
        self.connections.waits(self)
        HTTPChannel.loseConnection(self)

    def drop(self) -> None:
        """Abort the connection."""
        self._close()
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if not self._begun and not self.gone and _is_plain_http(reason):
            self._unreadable("a peer speaks plain HTTP to a port with TLS: let it use wss:// or https://")
        self.gone = True
        self._close()
        # Timers refer to this channel: only the collector would free the cycle.
        self._linger = self._resting = None
        self.connections.leave(self)
        HTTPChannel.connectionLost(self, reason)

    def _close(self) -> None:
        """Take no more requests, and forget what has come of them: lines behind the present one, up to 64 KiB, too."""
        self._closing = True
        self._stop_timers()
        self._kept = b""
        self.clearLineBuffer()  # type: ignore[no-untyped-call]

    def _stop_timers(self) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        for timer in (self._linger, self._resting):
            if timer is not None and timer.active():
                timer.cancel()

    # -- the hand-over -----------------------------------------------------------------------------------------

    @property
    def early(self) -> bytes:
        """The bytes received behind the request that is being answered."""
        self._kept += self.clearLineBuffer()  # type: ignore[no-untyped-call]  # where LineReceiver is still in its loop
        return self._kept

    def hand_over(self) -> tuple[Any, bytes]:
        """Give up the transport: returns it, without a producer, and what was received behind the upgrade request."""
        early, self._kept = self.early, b""
        self._closing = True
        self._stop_timers()
        self.connections.leave(self)
        self.requests.clear()
        transport, self.transport = self.transport, None
        transport.unregisterProducer()
        return transport, early

    # -- receiving -----------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            self._rest()
        else:
            self._kept += data
            self._go_on()

    def _rest(self) -> None:
        """Read a closing connection slowly: a peer that sends on over TLS would cost a decryption for each read."""
        if self._resting is None and not self.gone and self.transport is not None:
            self.transport.pauseProducing()
            self._resting = self.callLater(REST, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self.transport.resumeProducing()

    def _read(self, data: bytes) -> None:
        if not self._begun and data[:1] == TLS_HANDSHAKE:
            self._unreadable(
                "a peer speaks TLS to a port without TLS: let it use ws:// or http://, or set RELAY_TLS_CERT_PATH and "
                "RELAY_TLS_KEY_PATH"
            )
            self.drop()
            return
        self._begun = True
        if self._idle:
            self._idle = False
            self.setTimeout(REQUEST_TIMEOUT)  # type: ignore[no-untyped-call]
        # Not HTTPChannel's, which renews the time limit at each read.
        LineReceiver.dataReceived(self, data)

    def rawDataReceived(self, data: bytes) -> None:
        if self._answering:
            self._kept += data
            self._go_on()
        elif not self._closing:
            HTTPChannel.rawDataReceived(self, data)

    def headerReceived(self, line: bytes) -> bool:
        if len(line) > 64 and line[:14].lower() == b"content-length":
            # int() refuses thousands of digits with an exception of its own.
            self._refuse(b"400 Bad Request")
            return False
        taken: bool = HTTPChannel.headerReceived(self, line)
        return taken

    def lineLengthExceeded(self, line: bytes) -> None:
        """Called for a line that is longer than 16 KiB."""
        self._unreadable(
            "a request has a line of more than 16 KiB, mostly a cookie of another application on the same domain: serve the "
            "relay under a name of its own"
        )
        self._refuse(b"431 Request Header Fields Too Large")

    def allHeadersReceived(self) -> None:
        if self.length is None:
            self._refuse(b"411 Length Required")
        elif self.length > MAX_BODY:
            self._refuse(b"413 Content Too Large")
        else:
            HTTPChannel.allHeadersReceived(self)

    def _refuse(self, status: bytes) -> None:
        """Answer without reading the body, which Twisted would write to a file."""
        self.length = None  # so that the channel does not take the request for complete
        self._say(status)
        self.loseConnection()

    def _unreadable(self, message: str) -> None:
        self.connections.unreadable(self.peer_host, message)

    def _say(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)

    # -- one request at a time ---------------------------------------------------------------------------------

    def allContentReceived(self) -> None:
        self._answering = True
        self._begun = False
        self.connections.busy(self)
        HTTPChannel.allContentReceived(self)

    def requestDone(self, request: Request) -> None:
        """Called by the request when its answer is written. What is kept behind it waits for its turn."""
        if self._closing:
            return
        later, self._kept = self._kept, b""
        # Calls dataReceived with what was received behind the request's body.
        HTTPChannel.requestDone(self, request)
        self._answering = False
        if self._closing:
            return
        self._kept = self.early + later
        self.connections.waits(self)
        if not self._kept and not self._unread:
            self._idle = True
            self.setTimeout(self.keep_alive)  # type: ignore[no-untyped-call]
            self.connections.settled(self)
        self._go_on()

    def _go_on(self) -> None:
        """Take the next request in its turn, and pause the transport where there is no room for more."""
        if self._kept and not self._answering and not self._unread and not self._waits:
            self._waits = True
            self.queue.run(counted_as(self.peer_host), self._take_kept)
        if len(self._kept) > MAX_KEPT or (self._unread and not self._answering):
            self.transport.pauseProducing()

    def _take_kept(self) -> None:
        self._waits = False
        if self._closing:
            return
        data, self._kept = self._kept, b""
        self._read(data)
        if not self._closing and len(self._kept) <= MAX_KEPT and not self._unread:
            self.transport.resumeProducing()

    # -- IPushProducer, for the transport: the peer reads its answers, or does not ---------------------------------

    def pauseProducing(self) -> None:
        self._unread = True
        HTTPChannel.pauseProducing(self)

    def resumeProducing(self) -> None:
        self._unread = False
        HTTPChannel.resumeProducing(self)
        self._go_on()

    # -- for those who answer -----------------------------------------------------------------------------------------

    def may_be_dropped(self) -> None:
        """Let this connection make room for a newer one although its request is not answered yet."""
        self.connections.waits(self)
        self.connections.settled(self)

    def close_after_answer(self) -> None:
        """End the connection when the request that is being answered is done."""
        self.persistent = False
