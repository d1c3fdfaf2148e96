"""The web site of one listener: `/ws`, the well-known document, and the operator's door behind everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.web.http import Request as HttpRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from viewport_relay.wire.upgrade import UpgradeResource, is_upgrade

#: Seconds that a request's head may take, and that an idle HTTP connection is kept.
HTTP_TIMEOUT: Final = 15


class RelaySite(Site):
    """Twisted's site without what would leak or surprise: no access log (it prints queries), no HTTP/2."""

    displayTracebacks = False

    def __init__(self, root: IResource) -> None:
        Site.__init__(self, root, timeout=HTTP_TIMEOUT)

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
        self._upgrade = upgrade
        self._door = door
        self._documents = documents or {}

    def render(self, request: Request) -> Any:
        if self._upgrade is not None and (
            (request.path == b"/ws" and request.method == b"GET") or is_upgrade(request)
        ):
            return self._upgrade.render(request)
        document = self._documents.get(request.path) if request.method == b"GET" else None
        if document is not None:
            return document(request)
        return self._door.render(request)
