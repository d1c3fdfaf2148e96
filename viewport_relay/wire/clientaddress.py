"""The client's address of an HTTP request."""

from __future__ import annotations

from typing import Any

from twisted.web.http import Request

from viewport_relay.admission.addresses import UNIX_PEER, TrustedProxies


class ClientAddress:
    """Finds the client's address of a request, by the relay's rule for trusted proxies.

    `trusted` may be replaced while the relay runs.
    """

    def __init__(self, trusted: TrustedProxies) -> None:
        self.trusted = trusted

    def trusts(self, peer: str) -> bool:
        """Whether the socket's peer is a trusted proxy."""
        return self.trusted.trusts(peer)

    def __call__(self, request: Request) -> str:
        """The address as text: of the client, "unix" or "unknown"."""
        channel: Any = request.channel
        if channel.given_ip is not None:
            return str(channel.given_ip)
        forwarded = request.requestHeaders.getRawHeaders(b"x-forwarded-for", ())
        return self.trusted.client(channel.peer_host, [value.decode("latin-1") for value in forwarded])

    def distrusted_proxy(self, request: Request) -> dict[str, str]:
        """Details for a log entry where a proxy that is not trusted forwarded the request: all its clients share one address."""
        channel: Any = request.channel
        peer = channel.peer_host
        headers = request.requestHeaders
        forwarded = headers.hasHeader(b"x-forwarded-for") or headers.hasHeader(b"forwarded")
        if not forwarded or channel.given_ip is not None or self.trusted.trusts(peer):
            return {}
        name = "unix:" if peer == UNIX_PEER else peer
        hint = f"peers come through a proxy at {peer} that is not trusted: set RELAY_TRUSTED_PROXIES={name}"
        return {"forwardedBy": peer, "hint": hint}
