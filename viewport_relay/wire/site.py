"""The web site of one listener: `/ws`, the well-known document, and the operator's door behind everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web.http import Request as HttpRequest
from twisted.web.http import datetimeToString
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from viewport_relay.wire.channel import REQUEST_TIMEOUT, HttpConnections, RelayChannel
from viewport_relay.wire.upgrade import UpgradeResource, is_upgrade


class RelayRequest(Request):
    """A request for the root, which matches paths whole; its query and body are read by who needs them.

    Twisted's own splits the path, answers `*` itself, parses forms and multipart bodies of anybody, and tells its
    version.
    """

    channel: Any

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Called by the channel when the body is complete."""
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.args = {}
        assert self.content is not None  # the channel has said how long it is
        self.content.seek(0)
        self.process()

    def process(self) -> None:
        self.site = self.channel.site
        self.responseHeaders.setRawHeaders(b"Date", [datetimeToString()])
        try:
            self.render(self.site.resource)  # type: ignore[no-untyped-call]
        except Exception:  # as Twisted does: a fault in one answer is logged and ends this one connection
            self.processingFailed(Failure())  # type: ignore[no-untyped-call]


class RelaySite(Site):
    """Twisted's site without what would leak or surprise: no access log (it prints queries), no HTTP/2."""

    protocol = RelayChannel  # type: ignore[assignment]  # without Twisted's wrapper that chooses HTTP/2
    displayTracebacks = False

    def __init__(self, root: Root, connections: HttpConnections | None = None) -> None:
        Site.__init__(self, root, RelayRequest, timeout=REQUEST_TIMEOUT)
        self._connections = connections
        self._upgrades = None if root.upgrade is None else root.upgrade.upgrade

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = Site.buildProtocol(self, addr)
        channel.connections = self._connections
        channel.upgrades = self._upgrades
        return channel

    def log(self, request: HttpRequest) -> None:
        """Upgrades and refusals are logged where they are decided, without their query."""

    def acceptableProtocols(self) -> list[bytes]:
        """For TLS (ALPN): an upgrade needs HTTP/1.1."""
        return [b"http/1.1"]


class Root(Resource):
    """Decides by path and by the Upgrade header who answers; every path is matched whole."""

    isLeaf = True

    def __init__(
        self,
        upgrade: UpgradeResource | None,
        door: Resource,
        documents: Mapping[bytes, Callable[[Request], bytes]] | None = None,
    ) -> None:
        Resource.__init__(self)
        self.upgrade = upgrade
        self._door = door
        self._documents = documents or {}

    def render(self, request: Request) -> Any:
        if self.upgrade is not None and (
            (request.path == b"/ws" and request.method == b"GET")
            or is_upgrade(request.requestHeaders.getRawHeaders(b"upgrade", ()))
        ):
            return self.upgrade.render(request)
        document = self._documents.get(request.path) if request.method == b"GET" else None
        if document is not None:
            return document(request)
        return self._door.render(request)
