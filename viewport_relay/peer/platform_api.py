"""HTTP client of the peers: fetches tokens from the platform and the link key from the relay, before a connection.

Small requests with small JSON answers, each under one time limit that covers the body too, each answer
bounded. Credentials and tokens stay out of exceptions; what the platform gives as its reason is kept.

Nothing is cached or retried, and no connection is kept. The development platform serves the same API (`devplatform`).
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from attrs import frozen
from treq.client import HTTPClient
from twisted.internet.defer import TimeoutError, ensureDeferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.web import client
from twisted.web.client import ResponseFailed

from viewport_relay.peer import frames
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.frames import Members

ANSWER_MAX_BYTES = 262_144
LIMIT_SECONDS = 5.0


class PlatformError(Exception):
    """The platform or relay refused a request or gave no valid answer; `status` is 0 when there was no answer at all.

    `reason` is the server's (`WORKSPACE_NOT_FOUND`), or one of this module: `UNREACHABLE`, `TIMEOUT`,
    `ANSWER_TOO_LARGE`, `ANSWER_INVALID`.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}" if status else reason)
        self.status = status
        self.reason = reason


class JsonHttp:
    """JSON requests with limits. `tls` (an `IPolicyForHTTPS`) replaces Twisted's policy for https."""

    def __init__(self, reactor: Any, tls: Any = None, limit_seconds: float = LIMIT_SECONDS) -> None:
        self._reactor = reactor
        self._limit = limit_seconds
        # twisted.web.client's classes have no types.
        untyped: Any = client
        policy = tls or untyped.BrowserLikePolicyForHTTPS()
        self._http = HTTPClient(untyped.Agent(reactor, policy, connectTimeout=limit_seconds))

    async def request(
        self, method: str, url: str, body: Members | None = None, bearer: str | None = None
    ) -> Members:
        """The JSON object in a 2xx answer. Raises PlatformError."""
        try:
            waiting = ensureDeferred(self._request(method, url, body, bearer))
            status, content = await waiting.addTimeout(self._limit, self._reactor)
        except TimeoutError:
            raise PlatformError(0, "TIMEOUT") from None
        except (ConnectError, DNSLookupError, ResponseFailed):
            raise PlatformError(0, "UNREACHABLE") from None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not 200 <= status < 300:
            reason = value.get("reason") or value.get("error") if isinstance(value, dict) else None
            raise PlatformError(status, reason if isinstance(reason, str) else "no reason given")
        if not isinstance(value, dict):
            raise PlatformError(status, "ANSWER_INVALID")
        return value

    async def _request(
        self, method: str, url: str, body: Members | None, bearer: str | None
    ) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers: dict[bytes | str, bytes | str] = {"accept-encoding": "identity"}
        if data is not None:
            headers["content-type"] = "application/json"
        if bearer is not None:
            headers["authorization"] = f"Bearer {bearer}"
        response = await self._http.request(method, url, data=data, headers=headers, allow_redirects=False)
        content = bytearray()

        def collect(piece: bytes) -> None:
            content.extend(piece)
            if len(content) > ANSWER_MAX_BYTES:
                raise PlatformError(response.code, "ANSWER_TOO_LARGE")

        await response.collect(collect)
        return int(response.code), bytes(content)


@frozen(repr=False)
class RelayToken:
    """A relay token with the claims the platform put into it. No repr: both may hold secrets."""

    token: str
    claims: Members

    @property
    def pairing_secret(self) -> bytes | None:
        """The grant's 32-byte pairing secret, None when it has none of use."""
        try:
            return frames.binary(self.claims, "pairingSecret", 32)
        except PeerError:
            return None


class PlatformApi:
    """The part of the control plane's API that peers need. `base_url` is http(s) with host, no path."""

    def __init__(self, http: JsonHttp, base_url: str) -> None:
        self._http = http
        self._base = base_url.rstrip("/")

    async def daemon_issue_token(self, workspace_id: str, **body: object) -> str:
        """Register a daemon in a workspace; the credential with which it gets relay tokens.

        `body` holds further members, as the credential of the caller. Raises PlatformError.
        """
        url = f"{self._base}/api/runtime/workspaces/{quote(workspace_id, safe='')}/daemon-key"
        return _text(await self._http.request("POST", url, body), "daemonIssueToken")

    async def relay_token(
        self, role: str, workspace_id: str, target_id: str, credential: str, **body: object
    ) -> RelayToken:
        """A fresh relay token. `credential` is the daemon's issue token, or the client's own.

        Raises PlatformError.
        """
        body.update(role=role, workspaceId=workspace_id, runtimeTargetId=target_id, credential=credential)
        answer = await self._http.request("POST", f"{self._base}/api/runtime/relay-token", body)
        claims = answer.get("claims")
        return RelayToken(_text(answer, "relayToken"), claims if isinstance(claims, dict) else {})


def _text(answer: Members, name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise PlatformError(200, "ANSWER_INVALID")
    return value


async def fetch_link_key(http: JsonHttp, ws_url: str) -> bytes | None:
    """The static X25519 key of the relay behind a ws(s) URL, from its discovery document; None: it has no link.

    Raises PlatformError, or PeerError for a key of a wrong form.
    """
    parts = urlsplit(ws_url)
    scheme = "https" if parts.scheme in ("wss", "https") else "http"
    url = urlunsplit((scheme, parts.netloc, "/.well-known/viewport-relay.json", "", ""))
    document = await http.request("GET", url)
    return None if document.get("noisePublicKey") is None else frames.binary(document, "noisePublicKey", 32)
