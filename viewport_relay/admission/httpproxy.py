"""Connections to the platform through a company's HTTP proxy: CONNECT (RFC 9110 section 9.3.6), Basic (RFC 7617), NO_PROXY.

Only https:// URLs go through it: the proxy sees host and port, and TLS is the platform's from end to end.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.config import Config, is_loopback

#: Most header lines of a proxy's answer.
_LINES_MAX: Final = 100
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?")


class ProxyFailed(Exception):
    """The proxy could not be reached, or did not open a tunnel. `said` is in words, `cause` what connecting raised."""

    def __init__(self, where: str, said: str = "", cause: BaseException | None = None) -> None:
        super().__init__(where)
        self.where = where
        self.said = said
        self.cause = cause


@frozen
class HttpProxy:
    """An HTTP proxy, and the hosts that are reached without it. `credentials` are the value of Proxy-Authorization."""

    host: str
    port: int
    credentials: bytes | None = field(repr=False)
    direct: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Config) -> HttpProxy | None:
        """The proxy of RELAY_HTTP_PROXY or HTTPS_PROXY; None if there is none."""
        if config.http_proxy is None:
            return None
        parts = urlsplit(config.http_proxy)
        credentials = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            credentials = b"Basic " + b64encode(pair.encode("utf-8"))
        return cls(parts.hostname or "", parts.port or 80, credentials, config.no_proxy)

    def serves(self, host: str, port: int) -> bool:
        """Whether a host is reached through the proxy: neither loopback nor named by NO_PROXY."""
        host = host.lower().rstrip(".")
        return not is_loopback(host) and not any(_names(entry, host, port) for entry in self.direct)

    def tunnel(self, reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
        """An endpoint that leads to `host` through the proxy."""
        return _TunnelEndpoint(HostnameEndpoint(reactor, self.host, self.port), self, host, port)


def _names(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY (`*`, a name, `.suffix`, an address, a CIDR, each with or without a port) fits."""
    entry = entry.lower()
    if found := re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]+)", entry):
        entry = found[1]
        if int(found[2]) != port:
            return False
    entry = entry.strip("[]")
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith("." + name))


@implementer(IStreamClientEndpoint)
class _TunnelEndpoint:
    """Connects to the proxy, asks for a tunnel, and connects the protocol to that."""

    def __init__(self, to_proxy: IStreamClientEndpoint, proxy: HttpProxy, host: str, port: int) -> None:
        self._to_proxy = to_proxy
        self._proxy = proxy
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """The connected protocol. Fails with ProxyFailed."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, inner: IProtocolFactory) -> Any:
        where = f"{self._proxy.host}:{self._proxy.port}"
        factory = Factory.forProtocol(lambda: _Tunnel(where, self._request(), inner))
        factory.noisy = False
        try:
            tunnel: Any = await self._to_proxy.connect(factory)
        except CancelledError:
            raise
        except Exception as error:
            # Names and TCP raise many unrelated kinds; all mean that there is no proxy.
            raise ProxyFailed(where, cause=error) from None
        return await tunnel.opened

    def _request(self) -> bytes:
        lines = [
            f"CONNECT {self._authority} HTTP/1.1",
            f"Host: {self._authority}",
            "User-Agent: viewport-relay",
        ]
        head = "\r\n".join(lines).encode("ascii")
        if self._proxy.credentials is not None:
            head += b"\r\nProxy-Authorization: " + self._proxy.credentials
        return head + b"\r\n\r\n"


class _Tunnel(LineReceiver):
    """The connection to the proxy: until its answer lines of HTTP, then the bytes of the protocol inside."""

    def __init__(self, where: str, request: bytes, factory: IProtocolFactory) -> None:
        self.opened: Deferred[Any] = Deferred(lambda _: self._abort())
        self._where = where
        self._request = request
        self._factory = factory
        self._status = 0
        self._lines = 0
        self._over = False
        self._inner: Any = None

    def connectionMade(self) -> None:
        """Ask for the tunnel."""
        assert self.transport is not None
        self.transport.write(self._request)

    def lineReceived(self, line: bytes) -> None:
        """Called by LineReceiver for each line of the answer's head."""
        self._lines += 1
        if self._lines > _LINES_MAX:
            self._fail("the answer is too long")
        elif not self._status:
            found = _STATUS.fullmatch(line)
            if found is None:
                self._fail("the answer is not HTTP")
            else:
                self._status = int(found[1])
        elif not line:
            self._answered()

    def _answered(self) -> None:
        if 100 <= self._status < 200:  # RFC 9110 section 15.2: the answer follows
            self._status = 0
        elif self._status == 407:
            self._fail("another user and password are needed (HTTP 407)")
        elif not 200 <= self._status < 300:
            self._fail(f"CONNECT is refused with HTTP {self._status}")
        else:
            assert self.transport is not None
            self._inner = self._factory.buildProtocol(self.transport.getPeer())
            self.setRawMode()  # type: ignore[no-untyped-call]
            self._inner.makeConnection(self.transport)
            self._over = True
            self.opened.callback(self._inner)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Called by LineReceiver."""
        self._fail("the answer is too long")

    def rawDataReceived(self, data: bytes) -> None:
        """Called by LineReceiver with bytes of the tunnel."""
        if self._inner is not None:
            self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self._over:
            closed = reason.check(ConnectionClosed) is not None
            self._fail("the connection was closed" if closed else "the connection was lost")

    def _fail(self, said: str) -> None:
        if not self._over:
            self._over = True
            self.opened.errback(ProxyFailed(self._where, said))
            self._abort()

    def _abort(self) -> None:
        self._over = True
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]
