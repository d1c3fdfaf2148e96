"""The web site of one listener: upgrades, and all other requests."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request as HttpRequest
from twisted.web.http import datetimeToString
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from viewport_relay.timelimit import TimeLimits
from viewport_relay.wire.channel import REQUEST_TIMEOUT, RelayChannel
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.handshake import is_upgrade
from viewport_relay.wire.httpconnections import HttpConnections


def origin_form(target: bytes) -> bytes:
    """A request target in origin-form: that of an absolute-form target without scheme and authority (RFC 9112 section 3.2)."""
    if target.startswith(b"/"):
        return target
    try:
        parts = urlsplit(target)
    except ValueError:
        return target
    if parts.scheme not in (b"http", b"https") or not parts.netloc:
        return target
    return (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")


class RelayRequest(Request):
    """A request for the root resource, which matches whole paths and reads queries and bodies where they are needed.

    Twisted's own splits the path, answers `*` itself, parses forms and multipart bodies of strangers, and names its
    version in the answer.
    """

    channel: Any

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Called by the channel when the body is complete."""
        self.method, self.uri, self.clientproto = command, origin_form(path), version
        self.path = self.uri.partition(b"?")[0]
        self.args = {}
        assert self.content is not None  # the channel has told the body's length
        self.content.seek(0)
        self.process()

    def write(self, data: bytes) -> None:
        if not self.startedWriting:
            self.responseHeaders.setRawHeaders(b"Date", [datetimeToString()])
        super().write(data)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        self.site = self.channel.site
        try:
            self.render(self.site.resource)  # type: ignore[no-untyped-call]
        except Exception:  # as Twisted does: a fault in one answer is logged and ends this one connection
            self.processingFailed(Failure())  # type: ignore[no-untyped-call]


class RelaySite(Site):
    """Twisted's site without an access log (it prints queries) and without HTTP/2 (upgrades need HTTP/1.1)."""

    protocol = RelayChannel  # type: ignore[assignment]  # without Twisted's wrapper that chooses HTTP/2
    displayTracebacks = False

    def __init__(
        self,
        root: Root,
        reactor: IReactorTime,
        queue: FairQueue,
        connections: HttpConnections,
        keep_alive: float = REQUEST_TIMEOUT,
    ) -> None:
        """Requests are read in turn, in `queue`. `keep_alive`: seconds that an idle connection is kept after an answer."""
        Site.__init__(self, root, RelayRequest, timeout=REQUEST_TIMEOUT, reactor=reactor)
        self._limits = TimeLimits(reactor)
        self.queue = queue
        self.connections = connections
        self._keep_alive = keep_alive

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = Site.buildProtocol(self, addr)
        channel.queue = self.queue
        channel.connections = self.connections
        channel.keep_alive = self._keep_alive
        channel.callLater = self._limits.callLater
        return channel

    def stopFactory(self) -> None:
        """Called when the listener is closed; the time limits of connections that are still open stay."""
        self._limits.stop()
        Site.stopFactory(self)

    def log(self, request: HttpRequest) -> None:
        """No-op: upgrades and refusals are logged where they are decided, without their query."""

    def acceptableProtocols(self) -> list[bytes]:
        """The protocols that TLS offers (ALPN)."""
        return [b"http/1.1"]


class Root(Resource):
    """Tells upgrade attempts, on whatever path, from plain HTTP. `upgrade` None: this listener upgrades nothing."""

    isLeaf = True

    def __init__(self, upgrade: Resource | None, plain: Resource) -> None:
        Resource.__init__(self)
        self._upgrade = upgrade
        self._plain = plain

    def render(self, request: Request) -> Any:
        if self._upgrade is not None and is_upgrade(request.requestHeaders.getRawHeaders(b"upgrade", ())):
            return self._upgrade.render(request)
        return self._plain.render(request)
