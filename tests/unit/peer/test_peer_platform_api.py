"""The peers' client of the platform API, against a plain HTTP server."""

from __future__ import annotations

import json

import pytest

from tests.drill.certificates import Identity
from tests.unit.peer.loopback import Canned, http, listening, on_reactor, reactor
from viewport_relay.admission.tls import ClientTls
from viewport_relay.peer import base64url
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.platform_api import (
    JsonHttp,
    PlatformApi,
    PlatformError,
    RelayToken,
    fetch_link_key,
)

CREDENTIAL = "a-test-credential"
KEY = bytes(range(32))


def _json(**members: object) -> bytes:
    return http("200 OK", json.dumps(members).encode(), "Content-Type: application/json")


@on_reactor
async def test_a_daemon_issue_token() -> None:
    canned = Canned(_json(ok=True, daemonIssueToken="dit"), hang_up=True)
    async with listening(canned) as port:
        platform = PlatformApi(JsonHttp(reactor), f"http://127.0.0.1:{port}/")
        assert await platform.daemon_issue_token("w/1", credential=CREDENTIAL) == "dit"
    [head] = canned.heads
    assert head.startswith(b"POST /api/runtime/workspaces/w%2F1/daemon-key HTTP/1.1\r\n")


@on_reactor
async def test_a_relay_token_and_its_pairing_secret() -> None:
    claims = {"pairingSecret": base64url.encode(KEY), "daemonPublicKey": None}
    canned = Canned(_json(ok=True, relayToken="jwt", claims=claims), hang_up=True)
    async with listening(canned) as port:
        platform = PlatformApi(JsonHttp(reactor), f"http://127.0.0.1:{port}")
        token = await platform.relay_token("client", "w", "t", CREDENTIAL, scope="runtime")
    assert (token.token, token.pairing_secret) == ("jwt", KEY)
    assert "jwt" not in repr(token)


@pytest.mark.parametrize("secret", [None, "", "AAAA", 5])
def test_invalid_pairing_secrets(secret: object) -> None:
    assert RelayToken("jwt", {"pairingSecret": secret}).pairing_secret is None


async def _refused(answer: bytes, hang_up: bool = True, limit: float = 5.0) -> PlatformError:
    async with listening(Canned(answer, hang_up=hang_up)) as port:
        client = JsonHttp(reactor, limit_seconds=limit)
        with pytest.raises(PlatformError) as caught:
            await PlatformApi(client, f"http://127.0.0.1:{port}").relay_token("client", "w", "t", CREDENTIAL)
    assert CREDENTIAL not in str(caught.value)
    return caught.value


@on_reactor
async def test_the_platforms_own_reason_is_kept() -> None:
    error = await _refused(http("404 Not Found", b'{"ok":false,"reason":"WORKSPACE_NOT_FOUND"}'))
    assert (error.status, error.reason) == (404, "WORKSPACE_NOT_FOUND")


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (http("500 Oops", b"<html>"), 500, "no reason given"),
        (http("302 Found", b"", "Location: http://127.0.0.1:1/"), 302, "no reason given"),
        (http("200 OK", b"[]"), 200, "ANSWER_INVALID"),
        (http("200 OK", b"nothing"), 200, "ANSWER_INVALID"),
        (http("200 OK", b'{"ok":true}'), 200, "ANSWER_INVALID"),
        (http("200 OK", b" " * 262_145), 200, "ANSWER_TOO_LARGE"),
        (b"", 0, "UNREACHABLE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", 0, "UNREACHABLE"),
    ],
    ids=["500", "redirect", "list", "text", "no-token", "large", "silent-close", "cut-off"],
)
@on_reactor
async def test_unexpected_responses(answer: bytes, status: int, reason: str) -> None:
    error = await _refused(answer)
    assert (error.status, error.reason) == (status, reason)


@on_reactor
async def test_a_body_that_never_ends_is_cut_off_in_time() -> None:
    error = await _refused(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", hang_up=False, limit=0.3)
    assert error.reason == "TIMEOUT"


@on_reactor
async def test_connection_refused(free_port: int) -> None:
    with pytest.raises(PlatformError, match="UNREACHABLE"):
        await JsonHttp(reactor).request("GET", f"http://127.0.0.1:{free_port}/")


@on_reactor
async def test_the_link_key_of_the_relay() -> None:
    answer = _json(relayId="r", version="1", subprotocols=["a"], noisePublicKey=base64url.encode(KEY))
    canned = Canned(answer, hang_up=True)
    async with listening(canned) as port:
        assert await fetch_link_key(JsonHttp(reactor), f"ws://127.0.0.1:{port}/ws") == KEY
    assert canned.heads[0].startswith(b"GET /.well-known/viewport-relay.json ")


@on_reactor
async def test_a_link_key_of_a_wrong_form() -> None:
    async with listening(
        Canned(_json(relayId="r", version="1", noisePublicKey="AAAA"), hang_up=True)
    ) as port:
        with pytest.raises(PeerError, match="noisePublicKey"):
            await fetch_link_key(JsonHttp(reactor), f"ws://127.0.0.1:{port}")


@on_reactor
async def test_tls_needs_a_known_authority() -> None:
    authority = Identity.self_signed("loopback test", "localhost")
    async with listening(Canned(_json(relayId="r", version="1"), hang_up=True), authority.options()) as port:
        trusting = JsonHttp(reactor, ClientTls(authority.trust_root))
        assert await fetch_link_key(trusting, f"wss://localhost:{port}") is None
        with pytest.raises(PlatformError, match="UNREACHABLE"):
            await fetch_link_key(JsonHttp(reactor), f"wss://localhost:{port}")
