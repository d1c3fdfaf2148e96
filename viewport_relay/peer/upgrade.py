"""The destination of a peer's connection, and the ways in which a connection can end.

Values and exceptions only; `connection` does the connecting.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from attrs import field, frozen

from viewport_relay.peer.link import LinkSettings


@frozen
class Closed:
    """The end of a connection.

    The close code and reason (RFC 6455, section 7.1), 1006 when no close frame came.
    """

    code: int
    reason: str


class UpgradeRefused(Exception):
    """The relay answered the upgrade with an HTTP status; `reason` is its X-Relay-Reason, or empty."""

    def __init__(self, status: int, reason: str, body: str) -> None:
        super().__init__(f"upgrade refused: HTTP {status} {reason}".rstrip())
        self.status = status
        self.reason = reason
        self.body = body

    @property
    def message(self) -> str:
        """The relay's own explanation in the JSON body, or an empty text."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        text = value.get("message") if isinstance(value, dict) else None
        return text if isinstance(text, str) else ""


class ClosedEarly(Exception):
    """The connection ended before it could carry frames: no answer, a bad one, or a failed link."""

    def __init__(self, closed: Closed) -> None:
        super().__init__(f"closed before it was open: {closed.code} {closed.reason}".rstrip())
        self.closed = closed


@frozen
class Destination:
    """The target of a connection: URL, role and token.

    `base_url` is `ws://` or `wss://` with host and, if not `/ws`, path. `token_in` is `header` or
    `subprotocol`, the latter as browsers do. `subprotocols` are offered besides. `tls` (an
    `IPolicyForHTTPS`) replaces Twisted's policy for wss.
    """

    base_url: str
    role: str
    workspace_id: str
    target_id: str = ""
    token_in: str = "header"
    link: LinkSettings | None = None
    subprotocols: tuple[str, ...] = ()
    tls: Any = None
    headers: dict[str, str] = field(factory=dict)

    @property
    def url(self) -> str:
        """The full URL of the upgrade; it never holds the token."""
        parts = urlsplit(self.base_url)
        query = {"role": self.role, "workspaceId": self.workspace_id}
        if self.target_id:
            query["runtimeTargetId"] = self.target_id
        path = parts.path if parts.path not in ("", "/") else "/ws"
        return urlunsplit((parts.scheme, parts.netloc, path, urlencode(query), ""))
