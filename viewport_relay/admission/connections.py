"""Kept-alive connections to the platform, behind treq's interface.

`DirectTreq.request` is called like `treq.client.HTTPClient.request` and either can stand where the other
does. What is left out is what the relay never wants and what made a request costly: each URL is parsed once,
a request leaves in one write, and there are no cookies, no redirects and no unpacking. HTTP/1.1 itself
(RFC 9112) is Twisted's. Time limits, the size of bodies and retries are `http.py`'s.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

from attrs import frozen
from hyperlink import URL
from twisted.internet import tcp
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

# What HTTPConnectionPool.getConnection hands out; the module is private by name only.
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IClientRequest, IPolicyForHTTPS, IResponse
from zope.interface import implementer

#: Most bytes that may come before a response's head is complete.
HEAD_MAX: Final = 131_072
#: Connections kept for each origin, and for how many seconds one that nobody used may be used again. Shorter
#: than what servers and NATs usually allow, so that few requests meet a dropped one.
IDLE_MAX: Final = 32
IDLE_SECONDS: Final = 30.0
#: URLs whose parsing is remembered.
PLACES_MAX: Final = 256

_URL = re.compile(
    r"(?P<scheme>(?i:https?))://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::(?P<port>[0-9]{1,5})?)?"
    r"(?P<target>(?:[/?][\x21-\x22\x24-\x7e]*)?)(?:#[\x21-\x7e]*)?"
)
_METHOD = re.compile(r"[A-Z]+")


@frozen
class Place:
    """Where a URL leads: the origin, and what the request says there."""

    scheme: str
    host: str  # without brackets
    port: int
    host_header: bytes
    target: bytes  # origin-form, RFC 9112 section 3.2.1

    @property
    def origin(self) -> tuple[str, str, int]:
        """What connections are shared by."""
        return (self.scheme, self.host, self.port)


def place_of(url: str) -> Place:
    """Parse an absolute http or https URL. Raises ValueError for any other, and for one with user info.

    Path and query are sent as they stand; a name or path that is not ASCII is encoded first (RFC 3987).
    """
    if not url.isascii():
        url = URL.from_text(url).to_uri().to_text()
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("takes an absolute http or https URL without user info")
    scheme, host, digits, target = (
        found["scheme"].lower(),
        found["host"].lower(),
        found["port"],
        found["target"],
    )
    usual = 443 if scheme == "https" else 80
    port = int(digits or usual)
    if not 0 < port < 65536:
        raise ValueError("takes a port from 1 to 65535")
    header = host if port == usual else f"{host}:{port}"
    target = target if target.startswith("/") else "/" + target
    return Place(scheme, host.strip("[]"), port, header.encode("ascii"), target.encode("ascii"))


@implementer(IClientRequest)
class _Request:
    """A request as Twisted's client protocol takes it, already in the bytes of the wire."""

    persistent = True
    absoluteURI = None

    def __init__(self, method: bytes, headers: Headers, wire: bytes) -> None:
        self.method = method
        self.headers = headers
        self._wire = wire

    def writeTo(self, transport: Any) -> Deferred[None]:
        """Everything in one write; at once, if the socket takes it: that saves a turn of the reactor."""
        rest = self._wire
        if isinstance(transport, tcp.Connection) and not (
            transport.TLS or transport.dataBuffer or transport._tempDataBuffer
        ):
            with suppress(OSError):  # full, or broken: the transport finds out which
                rest = rest[transport.socket.send(rest) :]
        if rest:
            transport.write(rest)
        return succeed(None)

    def stopWriting(self) -> None:
        """Nothing: it is written at once."""


class _Connection(HTTP11ClientProtocol):
    """One connection; it is dropped when a response's head grows without end."""

    used_before = False
    idle_since = 0.0
    head_left: int | None = None  # bytes, while a response's head is awaited

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport."""
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        if self.head_left is not None:
            self.head_left -= len(data)
            if self.head_left < 0:
                self.drop()

    def drop(self) -> None:
        """End the connection at once; unlike `abort`, a peer that reads nothing cannot delay it."""
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]


@implementer(IResponse)
class DirectResponse:
    """Twisted's response, and a way to be rid of it."""

    previousResponse = None
    request = None

    def __init__(self, response: Any, connection: _Connection) -> None:
        self._response = response
        self._connection = connection
        self.version: tuple[bytes, int, int] = response.version
        self.code: int = response.code
        self.phrase: bytes = response.phrase
        self.headers: Headers = response.headers
        self.length: int | str = response.length

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to `protocol`; its end is `connectionLost` (ResponseDone when it is whole)."""
        self._response.deliverBody(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        """Never called: there are no redirects."""

    def abort(self) -> None:
        """Drop the connection that it comes from, if it is still coming."""
        self._connection.drop()


class DirectTreq:
    """Requests over kept-alive connections, at most `IDLE_MAX` idle ones for each origin.

    How many requests run at once is the caller's: each has a connection of its own.
    """

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS) -> None:
        self._reactor = reactor
        self._policy = policy
        self._places: dict[str, Place] = {}
        self._endpoints: dict[tuple[str, str, int], IStreamClientEndpoint] = {}
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers,
        data: bytes | None = None,
        allow_redirects: bool = False,
        unbuffered: bool = True,
    ) -> Deferred[IResponse]:
        """The response when its head has come. `headers` has neither Host nor Content-Length.

        Fails with what treq fails with: errors of connecting, ResponseNeverReceived, ResponseFailed, and
        ValueError for a URL or method that is none. `allow_redirects` and `unbuffered` must stay as they are.
        """
        if allow_redirects or not unbuffered:
            raise ValueError("redirects are not followed and bodies are not buffered here")
        try:
            place = self._places.get(url) or self._place(url)
            request = _Request(method.encode("ascii"), headers, _wire(method, place, headers, data))
        except ValueError:
            return fail()
        connection = self._take_idle(place)
        if connection is not None:
            return self._send(request, place, connection)
        return Deferred.fromCoroutine(self._connect(place)).addCallback(
            lambda connection: self._send(request, place, connection)
        )

    def close(self) -> None:
        """Drop the idle connections; a later request makes new ones."""
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.drop()

    def _send(self, request: _Request, place: Place, connection: _Connection) -> Deferred[IResponse]:
        connection.head_left = HEAD_MAX

        def responded(response: IResponse) -> IResponse:
            connection.head_left = None
            return DirectResponse(response, connection)

        def failed(failure: Failure) -> Failure:
            if connection.used_before and failure.check(ResponseNeverReceived, ResponseFailed):
                # The server has closed what it kept; the other idle ones are as old, so a retry gets a new one.
                for other in self._idle.pop(place.origin, ()):
                    other.drop()
            return failure

        return connection.request(request).addCallbacks(responded, failed)  # type: ignore[arg-type]

    def _place(self, url: str) -> Place:
        place = place_of(url)
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        self._places[url] = place
        return place

    def _take_idle(self, place: Place) -> _Connection | None:
        idle = self._idle.get(place.origin)
        latest = self._reactor.seconds() - IDLE_SECONDS
        while idle:
            connection = idle.pop()  # the one used last lives longest
            if connection.state == "QUIESCENT" and connection.idle_since > latest:
                return connection
            connection.drop()
        return None

    async def _connect(self, place: Place) -> _Connection:
        endpoint = self._endpoints.get(place.origin) or self._endpoint(place)
        untyped: Any = _Connection
        factory = Factory.forProtocol(lambda: untyped(lambda connection: self._rest(place, connection)))
        factory.noisy = False
        connection = await endpoint.connect(factory)
        assert isinstance(connection, _Connection)
        return connection

    def _endpoint(self, place: Place) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(self._reactor, place.host, place.port)
        if place.scheme == "https":
            creator = self._policy.creatorForNetloc(place.host.encode("ascii"), place.port)
            endpoint = wrapClientTLS(creator, endpoint)
        if len(self._endpoints) >= PLACES_MAX:
            self._endpoints.clear()
        self._endpoints[place.origin] = endpoint
        return endpoint

    def _rest(self, place: Place, connection: _Connection) -> None:
        """A response is complete and the connection may be used again."""
        connection.used_before = True
        connection.idle_since = self._reactor.seconds()
        idle = self._idle.setdefault(place.origin, [])
        if len(idle) >= IDLE_MAX:
            idle.pop(0).drop()
        idle.append(connection)


def _wire(method: str, place: Place, headers: Headers, data: bytes | None) -> bytes:
    if not _METHOD.fullmatch(method):
        raise ValueError("method is not one of HTTP")
    lines = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method.encode("ascii"), place.target, place.host_header)]
    for name, values in headers.getAllRawHeaders():  # Headers has taken line breaks out
        lines += [b"%b: %b\r\n" % (name, value) for value in values]
    if data is None:
        lines.append(b"\r\n")
    else:
        lines.append(b"Content-Length: %d\r\n\r\n" % len(data))
        lines.append(data)
    return b"".join(lines)
