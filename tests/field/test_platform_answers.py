"""Key sets and validation responses as real platforms, CDNs and proxies serve them, over real sockets.

The first column of each row is the place where the input occurs.
"""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.interfaces import IListeningPort

from tests.integration.http.servers import Server, reactor
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.platform import PlatformValidator, ValidationSettings
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.admission.token import TokenSource
from viewport_relay.cli import platformchecks
from viewport_relay.config import Config, load
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

KEY = SigningKey.generate("ES256", "k1")
RSA = SigningKey.generate("RS256", "k2")
Serve = Callable[[Callable[[bytes], bytes]], int]


@pytest.fixture
def serve(ports: list[IListeningPort]) -> Serve:
    """A server whose response to each request is `answer(head)`."""

    def start(answer: Callable[[bytes], bytes]) -> int:
        def script(connection: Any, head: bytes | None) -> None:
            if head is not None:
                connection.transport.write(answer(head))
                connection.transport.loseConnection()

        ports.append(reactor.listenTCP(0, Server(script), interface="127.0.0.1"))
        return int(ports[-1].getHost().port)  # type: ignore[attr-defined]

    return start


def wire(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


def config_for(port: int) -> Config:
    return load({"SERVER_URL": f"http://127.0.0.1:{port}", "RELAY_LISTEN_HOST": "127.0.0.1"})


def document(*members: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(members)}).encode()


def strict(head: bytes) -> bytes:
    accepted = [line for line in head.lower().split(b"\r\n") if line.startswith(b"accept:")]
    if not accepted or b"application/jwk-set+json" not in accepted[0]:
        return wire(b"", status=b"406 Not Acceptable")
    return wire(document(KEY.jwk()), b"Content-Type: application/jwk-set+json")


NULLS = {**KEY.jwk(), "use": None, "key_ops": [], "alg": "", "d": None, "x5u": None}

#: Place: (server, doctor's finding about the keys).
KEY_SETS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a framework that negotiates strictly (406 for application/json)": (strict, "1 usable: k1 (ES256)"),
    "a serializer that writes every member of a key, null or not": (
        lambda _: wire(document(NULLS)), "1 usable: k1 (ES256)",
    ),
    "a file that an editor on Windows saved": (
        lambda _: wire(codecs.BOM_UTF8 + document(KEY.jwk())),
        "1 usable: k1 (ES256); begins with a byte order mark, which is dropped",
    ),
    "a CDN that compresses in spite of Accept-Encoding: identity": (
        lambda _: wire(gzip.compress(document(KEY.jwk())), b"Content-Encoding: gzip"),
        "1 usable: k1 (ES256); gzip-coded although nothing was asked for, which is taken",
    ),
    "an identity provider with keys for encryption and other clients beside": (
        lambda _: wire(
            document(
                {**RSA.jwk(), "kid": "enc", "use": "enc"}, KEY.jwk(), {**RSA.jwk(), "kid": "ps", "alg": "PS256"},
                {"kty": "oct", "kid": "mac", "k": "c2VjcmV0"},
            )
        ),
        "1 usable: k1 (ES256); ignored: enc (for another use: enc), ps (for another algorithm: PS256), "
        "mac (of another type: oct)",
    ),
    "a set where one key is damaged": (
        lambda _: wire(document({**RSA.jwk(), "n": "!"}, KEY.jwk())), "1 usable: k1 (ES256); ignored: k2 (malformed)",
    ),
    "a cache in between": (
        lambda _: wire(document(KEY.jwk()), b"Age: 1200", b"Cache-Control: max-age=3600"),
        "1 usable: k1 (ES256); 1200 s old in a cache on the way",
    ),
    "a server that sends chunks": (
        lambda _: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
            % (len(document(KEY.jwk())), document(KEY.jwk()))
        ),
        "1 usable: k1 (ES256)",
    ),
    "a server of HTTP/1.0": (
        lambda _: b"HTTP/1.0 200 OK\r\n\r\n" + document(KEY.jwk()), "1 usable: k1 (ES256)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEY_SETS)
@pytest_twisted.ensureDeferred
async def test_key_sets(serve: Serve, name: str) -> None:
    server, words = KEY_SETS[name]
    config = config_for(serve(server))
    client = HttpClient.from_config(reactor, config)
    finding = (await platformchecks.jwks(client, config))[0]
    client.close()
    assert (finding.outcome, finding.found) == ("ok", words)


#: Place: (server, doctor's reason why there are no keys).
NO_KEY_SETS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a single-page app that answers every path": (
        lambda _: wire(b"<!doctype html><title>app</title>", b"Content-Type: text/html"), "the answer is not JSON",
    ),
    "a sign-in page in front": (
        lambda _: wire(b"", b"Location: https://login.example/?next=/jwks", status=b"302 Found"),
        "the answer is a redirect (HTTP 302) to https://login.example/, which is not followed",
    ),
    "the discovery document instead of the keys": (
        lambda _: wire(b'{"issuer":"https://idp.example","jwks_uri":"https://idp.example/keys"}'),
        "the answer is not a JWK set",
    ),
    "a tenant without keys yet": (lambda _: wire(b'{"keys":[]}'), "the set has no key"),
    "only keys of another kind": (
        lambda _: wire(document({"kty": "oct", "kid": "a", "k": "c2VjcmV0"})),
        "the set has no usable key: a (of another type: oct)",
    ),
    "a CDN with its own favourite coding": (
        lambda _: wire(b"\x0b\x02\x80", b"Content-Encoding: br"),
        "the answer has the content coding br, though none was asked for",
    ),
    "a bare array of keys": (lambda _: wire(json.dumps([KEY.jwk()]).encode()), "the answer is not a JWK set"),
    "a gateway whose backend is down": (
        lambda _: wire(b"<html>502</html>", status=b"502 Bad Gateway"), "the answer is HTTP 502, not 200",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_KEY_SETS)
@pytest_twisted.ensureDeferred
async def test_responses_without_a_key_set(serve: Serve, name: str) -> None:
    server, words = NO_KEY_SETS[name]
    config = config_for(serve(server))
    client = HttpClient.from_config(reactor, config)
    finding = (await platformchecks.jwks(client, config))[0]
    client.close()
    assert (finding.outcome, finding.found) == ("fail", words)


OK = b'{"ok":true,"claims":{"workspaceId":"ws-1"}}'
HTML = b"Content-Type: text/html; charset=utf-8"

#: Place: (response, reason or None if admitted, words of the detail).
ANSWERS: dict[str, tuple[bytes, Reason | None, str]] = {
    "JSON with a charset": (wire(OK, b"Content-Type: application/json; charset=utf-8"), None, ""),
    "a framework that answers POST with 201": (wire(OK, status=b"201 Created"), None, ""),
    "a load balancer without backends": (
        wire(b"<html>", HTML, status=b"503 Service Unavailable"), Reason.PLATFORM_UNREACHABLE, "the answer is HTTP 503",
    ),
    "a time-out of a gateway": (
        wire(b"", status=b"504 Gateway Timeout"), Reason.PLATFORM_UNREACHABLE, "the answer is HTTP 504",
    ),
    "a single-page app that answers every path": (
        wire(b"<!doctype html>", HTML), Reason.VALIDATION_RESPONSE_INVALID,
        "the answer (HTTP 200, text/html; charset=utf-8) is not a JSON object",
    ),
    "http:// where the platform wants https://": (
        wire(b"", b"Location: https://platform.example/validate?a=secret", status=b"308 Permanent Redirect"),
        Reason.VALIDATION_RESPONSE_INVALID,
        "the answer is a redirect (HTTP 308) to https://platform.example/validate, which is not followed",
    ),
    "a path that does not exist, as a page": (
        wire(b"<h1>Not Found</h1>", HTML, status=b"404 Not Found"), Reason.VALIDATION_RESPONSE_INVALID,
        "the answer (HTTP 404, text/html; charset=utf-8) is not a JSON object",
    ),
    "a firewall's challenge page": (
        wire(b"<title>Just a moment</title>", HTML, status=b"403 Forbidden"), Reason.INTERNAL_KEY_MISMATCH,
        "the answer is HTTP 403",
    ),
    "a rate limiter in front": (
        wire(b'{"message":"API rate limit exceeded"}', status=b"429 Too Many Requests"),
        Reason.VALIDATION_RESPONSE_INVALID, "the answer is HTTP 429 without ok:false",
    ),
    "an API that wraps its answers": (
        wire(b'{"data":' + OK + b"}"), Reason.VALIDATION_RESPONSE_INVALID, "ok is missing",
    ),
    "ok as text": (
        wire(b'{"ok":"true","claims":{}}'), Reason.VALIDATION_RESPONSE_INVALID, "ok is neither true nor false",
    ),
    "an empty body": (wire(b""), Reason.VALIDATION_RESPONSE_INVALID, "(HTTP 200, no content type) is not a JSON object"),
    "no content": (
        b"HTTP/1.1 204 No Content\r\n\r\n", Reason.VALIDATION_RESPONSE_INVALID, "(HTTP 204, no content type)",
    ),
    "gzip in spite of identity": (
        wire(gzip.compress(OK), b"Content-Encoding: gzip"), Reason.VALIDATION_RESPONSE_INVALID,
        "the answer has the content coding gzip, though none was asked for",
    ),
    "an answer in chunks, without a length": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(OK), OK), None, "",
    ),
    "an answer that ends with the connection, from HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n" + OK, None, ""),
    "a line end behind the JSON, as echo and templates leave it": (wire(OK + b"\r\n"), None, ""),
    "indented JSON of a debug build": (wire(json.dumps(json.loads(OK), indent=4).encode()), None, ""),
    "text/plain, from a framework without a JSON type": (wire(OK, b"Content-Type: text/plain"), None, ""),
    "text/html around good JSON, from PHP": (wire(OK, b"Content-Type: text/html; charset=UTF-8"), None, ""),
    "members of a newer platform": (
        wire(b'{"ok":true,"apiVersion":"2027-01","claims":{"workspaceId":"ws-1","plan":"team","limits":{"seats":5}},"requestId":"r"}'), None, "",
    ),
    "cookies, tracing and security headers": (
        wire(OK, b"Set-Cookie: sid=1; HttpOnly", b"Strict-Transport-Security: max-age=1", b"X-Request-Id: 1", b"Server: nginx", b"Vary: Origin"), None, "",
    ),
    "100 Continue in front": (b"HTTP/1.1 100 Continue\r\n\r\n" + wire(OK), None, ""),
    "103 Early Hints in front, from a CDN": (b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" + wire(OK), None, ""),
    "a byte order mark in front of the JSON": (
        wire(codecs.BOM_UTF8 + OK), Reason.VALIDATION_RESPONSE_INVALID, "is not a JSON object",
    ),
    "UTF-16, from a .NET writer": (
        wire(OK.decode().encode("utf-16")), Reason.VALIDATION_RESPONSE_INVALID, "is not a JSON object",
    ),
    "a moved endpoint: 301 to the sign-in page": (
        wire(b"", b"Location: /login?next=%2Fvalidate", status=b"301 Moved Permanently"), Reason.VALIDATION_RESPONSE_INVALID,
        "the answer is a redirect (HTTP 301) to /login, which is not followed",
    ),
    "ok as a number": (wire(b'{"ok":1,"claims":{}}'), Reason.VALIDATION_RESPONSE_INVALID, "ok is neither true nor false"),
    "numbers as text": (
        wire(b'{"ok":true,"claims":{"workspaceId":"ws-1","exp":"1795891913"}}'), Reason.VALIDATION_RESPONSE_INVALID, "exp",
    ),
    "a workspace as a number": (
        wire(b'{"ok":true,"claims":{"workspaceId":17}}'), Reason.VALIDATION_RESPONSE_INVALID, "workspaceId",
    ),
    "a role of another product": (
        wire(b'{"ok":true,"claims":{"workspaceId":"ws-1","role":"viewer"}}'), Reason.VALIDATION_RESPONSE_INVALID, "role",
    ),
    "claims as a JSON text inside JSON": (
        wire(b'{"ok":true,"claims":"{}"}'), Reason.VALIDATION_RESPONSE_INVALID, "claims",
    ),
    "null claims": (wire(b'{"ok":true,"claims":null}'), Reason.VALIDATION_RESPONSE_INVALID, "claims"),
    "an array around the answer": (wire(b"[" + OK + b"]"), Reason.VALIDATION_RESPONSE_INVALID, "is not a JSON object"),
    "two answers behind each other, from a logging proxy": (wire(OK + OK), Reason.VALIDATION_RESPONSE_INVALID, "is not a JSON object"),
    "NaN of a Python serializer": (
        wire(b'{"ok":true,"claims":{"workspaceId":"ws-1","ver":NaN}}'), Reason.VALIDATION_RESPONSE_INVALID, "is not a JSON object",
    ),
    "2 MB of a debug page": (
        wire(b"<html>" + b" " * 2_000_000, HTML), Reason.ADMISSION_RESPONSE_TOO_LARGE, "the answer is longer than 262144 bytes",
    ),
    "a body shorter than Content-Length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n" + OK, Reason.PLATFORM_UNREACHABLE, "",
    ),
    "a backend that ends before its response": (b"", Reason.PLATFORM_UNREACHABLE, ""),
    "two lengths that differ: smuggling": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: %d\r\n\r\n" % len(OK) + OK, Reason.PLATFORM_UNREACHABLE, "",
    ),
    "a denial with its word in another member": (
        wire(b'{"ok":false,"error":"seat_taken","message":"All seats are taken"}', status=b"403 Forbidden"), Reason.VALIDATION_DENIED, "seat_taken",
    ),
    "a denial with 200": (wire(b'{"ok":false,"reason":"revoked"}'), Reason.VALIDATION_DENIED, "revoked"),
    "TLS asked on a port of another protocol": (
        b"SSH-2.0-OpenSSH_9.2\r\n", Reason.PLATFORM_UNREACHABLE, "the answer is not HTTP",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest_twisted.ensureDeferred
async def test_validation_responses(serve: Serve, name: str) -> None:
    answer, reason, words = ANSWERS[name]
    url = f"http://127.0.0.1:{serve(lambda _: answer)}/validate"
    client = HttpClient.from_config(reactor, config_for(1))
    clock = PlatformClock(reactor, lambda: 1_800_000_000.0)
    validator = PlatformValidator(
        reactor, client, ValidationSettings(url, "key"), Counters(), clock, lambda: 0.0
    )
    try:
        verdict: Any = await validator.validate(
            TokenSource("a-token-of-the-test", "header"), UpgradeQuery(Role.CLIENT, "ws-1", None), 10.0
        )
    except Refusal as refusal:
        verdict = refusal
    finally:
        client.close()
    if reason is None:
        assert isinstance(verdict, Claims)
        return
    assert verdict.reason is reason and words in verdict.detail
    if reason is Reason.VALIDATION_DENIED:  # the peer's fault: the details are the platform's reason and text
        assert verdict.details["platformWord"] == words
        return
    assert verdict.details["url"] == url
    assert verdict.detail.endswith(f" ({url})") and "secret" not in f"{verdict.detail} {verdict.details}"
