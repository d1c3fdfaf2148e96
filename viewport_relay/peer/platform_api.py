"""What a peer asks over HTTP before it can connect: tokens from the platform, the link key from the relay.

Small requests with small JSON answers, each under one time limit that covers the body too, each answer
bounded. Credentials and tokens stay out of exceptions; what the platform gives as its reason is kept.

What it does not do: serve any of this (`devplatform`), cache, retry (other than once on a connection that
the server dropped while idle).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.ssl import optionsForClientTLS
from twisted.web import client
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from viewport_relay.peer import base64url
from viewport_relay.peer.errors import PeerError

ANSWER_MAX_BYTES = 262_144
LIMIT_SECONDS = 5.0


class PlatformError(Exception):
    """The platform or relay did not give what was asked; `status` is 0 when there was no answer at all.

    `reason` is the server's own word (`WORKSPACE_NOT_FOUND`), or ours: `UNREACHABLE`, `TIMEOUT`,
    `ANSWER_TOO_LARGE`, `ANSWER_INVALID`.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}" if status else reason)
        self.status = status
        self.reason = reason


@implementer(IPolicyForHTTPS)
class _TrustPolicy:
    """https with a trust root of the caller's instead of the system's."""

    def __init__(self, trust_root: Any) -> None:
        self._trust_root = trust_root

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return optionsForClientTLS(hostname.decode("ascii"), trustRoot=self._trust_root)


class JsonHttp:
    """JSON requests with limits. `trust_root` as `optionsForClientTLS` takes it; None means the system's."""

    def __init__(self, reactor: Any, trust_root: Any = None, limit_seconds: float = LIMIT_SECONDS) -> None:
        self._reactor = reactor
        self._limit = limit_seconds
        # twisted.web.client's classes have no types.
        untyped: Any = client
        self._pool = untyped.HTTPConnectionPool(reactor)
        policy = untyped.BrowserLikePolicyForHTTPS() if trust_root is None else _TrustPolicy(trust_root)
        agent = untyped.Agent(reactor, contextFactory=policy, connectTimeout=limit_seconds, pool=self._pool)
        self._http = HTTPClient(agent)

    async def request(
        self, method: str, url: str, body: dict[str, object] | None = None
    ) -> dict[str, object]:
        """The JSON object in a 2xx answer. Raises PlatformError."""
        try:
            waiting = ensureDeferred(self._request(method, url, body))
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

    async def _request(self, method: str, url: str, body: dict[str, object] | None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers: dict[bytes | str, bytes | str] = {"accept-encoding": "identity"}
        if data is not None:
            headers["content-type"] = "application/json"
        for attempt in (1, 2):
            try:
                response = await self._http.request(
                    method, url, data=data, headers=headers, allow_redirects=False
                )
                break
            except ResponseNeverReceived:
                # A kept-alive connection that the server had dropped meanwhile; a fresh one decides.
                if attempt == 2:
                    raise
        content = bytearray()

        def collect(piece: bytes) -> None:
            content.extend(piece)
            if len(content) > ANSWER_MAX_BYTES:
                raise PlatformError(response.code, "ANSWER_TOO_LARGE")

        await response.collect(collect)
        return int(response.code), bytes(content)

    async def close(self) -> None:
        """Close the connections kept open."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        await closing


@dataclass(frozen=True, slots=True, repr=False)
class RelayToken:
    """A relay token with the claims the platform put into it. No repr: both may hold secrets."""

    token: str
    claims: dict[str, object]

    @property
    def pairing_secret(self) -> bytes | None:
        """The grant's 32-byte pairing secret, None when it has none of use."""
        try:
            return base64url.decode(self.claims.get("pairingSecret"), "pairingSecret", 32)
        except PeerError:
            return None


@dataclass(frozen=True, slots=True, repr=False)
class DaemonKey:
    """What lets a daemon ask for relay tokens. No repr: it holds a credential."""

    issue_token: str
    target_id: str


class PlatformApi:
    """The part of the control plane's API that peers need. `base_url` is http(s) with host, no path."""

    def __init__(self, http: JsonHttp, base_url: str) -> None:
        self._http = http
        self._base = base_url.rstrip("/")

    async def daemon_key(self, workspace_id: str, **body: object) -> DaemonKey:
        """Register a daemon in a workspace.

        `body` holds further members, as the credential. Raises PlatformError.
        """
        url = f"{self._base}/api/runtime/workspaces/{quote(workspace_id, safe='')}/daemon-key"
        answer = await self._http.request("POST", url, body)
        return DaemonKey(_text(answer, "daemonIssueToken"), _text(answer, "runtimeTargetId"))

    async def relay_token(
        self, role: str, workspace_id: str, target_id: str, credential: str, **body: object
    ) -> RelayToken:
        """A fresh relay token. `credential` is the daemon's issue token, or the client's own.

        Raises PlatformError.
        """
        asked: dict[str, object] = {
            "role": role,
            "workspaceId": workspace_id,
            "runtimeTargetId": target_id,
            "credential": credential,
            **body,
        }
        answer = await self._http.request("POST", f"{self._base}/api/runtime/relay-token", asked)
        claims = answer.get("claims")
        return RelayToken(_text(answer, "relayToken"), claims if isinstance(claims, dict) else {})


def _text(answer: dict[str, object], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise PlatformError(200, "ANSWER_INVALID")
    return value


@dataclass(frozen=True, slots=True)
class RelayIdentity:
    """What a relay says about itself; `noise_public` is its 32-byte X25519 link key, None without a link."""

    relay_id: str
    version: str
    subprotocols: tuple[str, ...]
    noise_public: bytes | None


async def fetch_relay_identity(http: JsonHttp, ws_url: str) -> RelayIdentity:
    """Fetch the discovery document of the relay behind a ws(s) URL.

    Raises PlatformError, or PeerError for a key of a wrong form.
    """
    parts = urlsplit(ws_url)
    scheme = "https" if parts.scheme in ("wss", "https") else "http"
    url = urlunsplit((scheme, parts.netloc, "/.well-known/viewport-relay.json", "", ""))
    answer = await http.request("GET", url)
    offered = answer.get("subprotocols")
    key = answer.get("noisePublicKey")
    return RelayIdentity(
        _text(answer, "relayId"),
        _text(answer, "version"),
        tuple(name for name in offered if isinstance(name, str)) if isinstance(offered, list) else (),
        None if key is None else base64url.decode(key, "noisePublicKey", 32),
    )
