"""Upgrade requests of browsers, libraries, proxies and CDNs, byte for byte, to a real relay.

The first column of each row is the place where the input occurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.drill.peer import dial
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running

ORIGINS = "https://app.example,http://localhost:5173,null,capacitor://localhost"
QUERY = "role=client&workspaceId=ws&runtimeTargetId=t"


class Site(NamedTuple):
    relay: Relay
    platform: FaultyPlatform


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        FaultyPlatform() as platform,
        running(platform.environment() | {"RELAY_ALLOWED_ORIGINS": ORIGINS}) as relay,
    ):
        yield Site(relay, platform)


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    return site.platform.token("client", "ws", "t", clientId="c")


USUAL = {
    "Host": "Host: relay.example",
    "Upgrade": "Upgrade: websocket",
    "Connection": "Connection: Upgrade",
    "Version": "Sec-WebSocket-Version: 13",
    "Key": "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Token": "Authorization: Bearer TOKEN",
}


def request(*more: str, target: str = f"/ws?{QUERY}", version: str = "HTTP/1.1", **changed: str) -> str:
    """An upgrade request; `changed` replaces a default header ("" removes it); TOKEN stands for the token."""
    lines = {**USUAL, **changed}
    return "\r\n".join((f"GET {target} {version}", *(line for line in lines.values() if line), *more, "", ""))


def answer(site: Site, token: str, text: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response."""
    with dial(site.relay.port, timeout=5) as sock:
        sock.sendall(text.replace("TOKEN", token).encode("latin-1"))
        received = b""
        while b"\r\n\r\n" not in received:
            piece = sock.recv(65_536)
            if not piece:
                break
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        pairs = (field.partition(":") for field in fields)
        return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, body


MANY = "\r\n".join(f"X-Trace-{n}: {n}" for n in range(60))

#: (place, request, sub-protocol that the relay selects)
ADMITTED: list[tuple[str, str, str | None]] = [
    ("Chrome", request("Origin: https://app.example", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
     "Pragma: no-cache", "Cache-Control: no-cache", "Accept-Encoding: gzip, deflate, br, zstd",
     Token="Sec-WebSocket-Protocol: viewport.v1, auth.TOKEN"), "viewport.v1"),
    ("Firefox", request("Origin: https://app.example", "Sec-WebSocket-Extensions: permessage-deflate", "Sec-Fetch-Mode: websocket",
     "Sec-Fetch-Dest: empty", Connection="Connection: keep-alive, Upgrade", Token="Sec-WebSocket-Protocol: viewport.v1, auth.TOKEN"), "viewport.v1"),
    ("Safari of old", request("Origin: https://app.example", "Sec-WebSocket-Extensions: x-webkit-deflate-frame"), None),
    ("a sandboxed frame, where `null` is allowed", request("Origin: null"), None),
    ("an app in Capacitor", request("Origin: capacitor://localhost"), None),
    ("an old browser that keeps the case of the host", request("Origin: https://APP.Example"), None),
    ("a development server on its own port", request("Origin: http://localhost:5173"), None),
    ("a native app without Origin", request(), None),
    ("a browser that offers the token alone", request(Token="Sec-WebSocket-Protocol: auth.TOKEN"), "auth.TOKEN"),
    ("a list without spaces", request(Token="Sec-WebSocket-Protocol: viewport.v1,auth.TOKEN"), "viewport.v1"),
    ("a list in two headers, as some proxies split it",
     request(Token="Sec-WebSocket-Protocol: viewport.v1\r\nSec-WebSocket-Protocol: auth.TOKEN"), "viewport.v1"),
    ("tabs and an empty element", request(Token="Sec-WebSocket-Protocol:\tviewport.v1 ,,\tauth.TOKEN "), "viewport.v1"),
    ("nginx: `Connection: upgrade` in lower case", request(Connection="Connection: upgrade"), None),
    ("HAProxy and Envoy: names in lower case",
     request(Upgrade="upgrade: websocket", Connection="connection: upgrade", Key="sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
             Version="sec-websocket-version: 13", Token="authorization: bearer TOKEN", Host="host: relay.example"), None),
    ("a proxy that keeps `keep-alive`", request(Connection="Connection: Upgrade, keep-alive"), None),
    ("two Connection headers", request(Connection="Connection: keep-alive\r\nConnection: Upgrade"), None),
    ("IIS and .NET: `WebSocket` with capitals", request(Upgrade="Upgrade: WebSocket"), None),
    ("Google's balancer, Varnish, Cloudflare in a row",
     request("Via: 1.1 google, 1.1 varnish", "X-Cloud-Trace-Context: a/1;o=1", "CF-Ray: 7", "CF-Connecting-IP: 198.51.100.7",
             "CDN-Loop: cloudflare", "X-Forwarded-Proto: https", "X-Forwarded-Port: 443", "Forwarded: for=198.51.100.7;proto=https"), None),
    ("OpenTelemetry", request("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "baggage: a=b"), None),
    ("cookies of 8 KB, of a site on the same domain", request("Cookie: sso=" + "x" * 8000), None),
    ("sixty headers of a service mesh", request(MANY), None),
    ("Content-Length: 0, from a Java client", request("Content-Length: 0"), None),
    ("a host in capitals with the dot of DNS", request(Host="Host: RELAY.EXAMPLE."), None),
    ("a percent-encoded letter, from a URL builder", request(target="/ws?role=client&workspaceId=w%73&runtimeTargetId=t"), None),
    ("parameters of a campaign behind ours, one of them broken", request(target=f"/ws?{QUERY}&utm_source=a&x=%zz"), None),
    ("Basic credentials of a staging gate beside the token", request("Authorization: Basic eDp5"), None),
    ("Basic credentials in front, the token as sub-protocol",
     request("Sec-WebSocket-Protocol: viewport.v1, auth.TOKEN", Token="Authorization: Basic eDp5"), "viewport.v1"),
    ("Proxy-Connection, of an old HTTP library", request("Proxy-Connection: keep-alive"), None),
    ("invalid parameters, and a broken list", request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=99, ;;"), None),
]  # fmt: skip


@pytest.mark.parametrize(("where", "text", "selected"), ADMITTED, ids=[row[0] for row in ADMITTED])
def test_upgrades_as_clients_and_proxies_write_them_are_admitted(
    site: Site, token: str, where: str, text: str, selected: str | None
) -> None:
    status, fields, _ = answer(site, token, text)
    assert status == 101
    assert fields["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert fields.get("sec-websocket-protocol") == (
        None if selected is None else selected.replace("TOKEN", token)
    )
    assert "sec-websocket-extensions" not in fields, "frames are forwarded as they are: nothing is compressed"


#: (place, request, status, reason, words of the body)
REFUSED: list[tuple[str, str, int, str, str]] = [
    ("nginx without proxy_http_version 1.1", request(version="HTTP/1.0"), 400, "UPGRADE_MALFORMED", "not HTTP/1.1"),
    ("nginx without the two headers", request(Upgrade="", Connection="Connection: close"), 426, "UPGRADE_REQUIRED", "upgrade required"),
    ("a proxy that drops Connection alone", request(Connection="Connection: close"), 400, "UPGRADE_MALFORMED", "Connection does not name Upgrade"),
    ("a client of the draft", request(Version="Sec-WebSocket-Version: 8"), 426, "UPGRADE_REQUIRED", "not 13"),
    ("a list of versions", request(Version="Sec-WebSocket-Version: 13, 8"), 426, "UPGRADE_REQUIRED", "not 13"),
    ("a test by hand without a key", request(Key=""), 400, "UPGRADE_MALFORMED", "Sec-WebSocket-Key"),
    ("a key that is too short", request(Key="Sec-WebSocket-Key: abc"), 400, "UPGRADE_MALFORMED", "Sec-WebSocket-Key"),
    ("no Host, by hand", request(Host=""), 400, "UPGRADE_MALFORMED", "Host"),
    ("two Hosts: smuggling", request("Host: other"), 400, "UPGRADE_MALFORMED", "Host"),
    ("a page of another site", request("Origin: https://app.example.evil"), 403, "ORIGIN_NOT_ALLOWED", "origin not allowed"),
    ("the same host over http", request("Origin: http://app.example"), 403, "ORIGIN_NOT_ALLOWED", "origin not allowed"),
    ("a page from disk", request("Origin: file://"), 403, "ORIGIN_NOT_ALLOWED", "origin not allowed"),
    ("HTML-escaped ampersands, from a template",
     request(target="/ws?role=client&amp;workspaceId=ws&amp;runtimeTargetId=t"), 400, "QUERY_INVALID", "workspaceId is missing"),
    ("semicolons between parameters", request(target=f"/ws?{QUERY.replace('&', ';')}"), 400, "QUERY_INVALID", "role"),
    ("a fragment that a client did not cut off", request(target=f"/ws?{QUERY}#x"), 400, "QUERY_INVALID", "runtimeTargetId"),
    ("a slash that a router adds", request(target=f"/ws/?{QUERY}"), 404, "NOT_FOUND", "not found"),
    ("a prefix that the ingress does not strip", request(target=f"/relay/ws?{QUERY}"), 404, "NOT_FOUND", "not found"),
    ("a role of another product", request(target="/ws?role=viewer&workspaceId=ws"), 400, "QUERY_INVALID", "role"),
    ("a sub-protocol that a library offers twice", request("Sec-WebSocket-Protocol: a, a"), 400, "UPGRADE_MALFORMED", "offered twice"),
    ("a gateway that strips Authorization", request(Token=""), 401, "TOKEN_MISSING", "no usable token: the request carries none"),
    ("two values joined into one header", request(Token="Authorization: Basic eDp5, Bearer TOKEN"), 401, "TOKEN_MISSING", "names no Bearer"),
    ("`undefined` of a script for the token", request(Token="Authorization: Bearer undefined"), 401, "TOKEN_MISSING", "the header's has 9 characters"),
    ("`[object Object]` for the token", request(Token="Authorization: Bearer [object Object]"), 401, "JWT_MALFORMED", ""),
    ("the token in quotes", request(Token='Authorization: Bearer "TOKEN"'), 401, "JWT_MALFORMED", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "text", "status", "reason", "words"), REFUSED, ids=[row[0] for row in REFUSED]
)
def test_irregular_upgrades_are_refused_with_their_reason(
    site: Site, token: str, where: str, text: str, status: int, reason: str, words: str
) -> None:
    found, fields, body = answer(site, token, text)
    assert (found, fields["x-relay-reason"]) == (status, reason)
    assert words in body.decode() and token not in body.decode()
