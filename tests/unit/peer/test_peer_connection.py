"""A peer's connection over real sockets: upgrade, frames, Close, TLS."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.error import ConnectError

from tests.drill.certificates import Identity
from tests.unit.peer.loopback import (
    Canned,
    Echo,
    Inbox,
    LinkEcho,
    http,
    listening,
    on_reactor,
    reactor,
    serving,
)
from tests.unit.peer.wiring import RelayEnd
from viewport_relay.admission.tls import ClientTls
from viewport_relay.peer.connection import connect
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.link import LinkSettings, Pattern, generate_static
from viewport_relay.peer.upgrade import Closed, ClosedEarly, Destination, UpgradeRefused

TOKEN = "a.test.token"
SECRET = bytes(range(32))


def _to(base: str, **options: Any) -> Destination:
    return Destination(base, "client", "w", "t", **options)


@on_reactor
async def test_frames_keep_their_order_in_both_directions() -> None:
    async with serving(Echo()) as base:
        inbox = Inbox()
        connection = await connect(reactor, _to(base), TOKEN, inbox)
        texts = [f"{number} ✓" * (number + 1) for number in range(50)]
        for text in texts:
            connection.send(text)
        assert await inbox.has(50) == texts
        connection.close()
        assert (await connection.closed).code == 1000


@on_reactor
async def test_token_in_the_header_and_the_query() -> None:
    echo = Echo()
    async with serving(echo) as base:
        await connect(reactor, _to(base, subprotocols=("app.v1",)), TOKEN, Inbox())
        [request] = echo.requests
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert request.protocols == ["app.v1"]
        assert request.path == "/ws"
        assert request.params == {"role": ["client"], "workspaceId": ["w"], "runtimeTargetId": ["t"]}


@on_reactor
async def test_token_in_the_sub_protocol() -> None:
    echo = Echo()
    async with serving(echo) as base:
        connection = await connect(reactor, _to(base, token_in="subprotocol"), TOKEN, Inbox())
        [request] = echo.requests
        assert "authorization" not in request.headers
        assert request.protocols == [f"auth.{TOKEN}"] == [connection.subprotocol]


@on_reactor
async def test_upgrade_without_token_and_target() -> None:
    echo = Echo()
    async with serving(echo) as base:
        await connect(reactor, Destination(base + "/ws", "client", "w"), None, Inbox())
        [request] = echo.requests
        assert "authorization" not in request.headers
        assert request.params == {"role": ["client"], "workspaceId": ["w"]}


BODY = json.dumps({"ok": False, "reason": "TOKEN_EXPIRED", "message": "the token has expired"}).encode()


@pytest.mark.parametrize("length", [True, False], ids=["length", "until-close"])
@on_reactor
async def test_http_refusals(length: bool) -> None:
    answer = http("401 Unauthorized", BODY, "X-Relay-Reason: TOKEN_EXPIRED", length=length)
    # The response comes in two pieces, so that the body follows the head later.
    canned = Canned(answer[:60], answer[60:], hang_up=not length)
    async with listening(canned) as port:
        with pytest.raises(UpgradeRefused) as caught:
            await connect(reactor, _to(f"ws://localhost:{port}"), TOKEN, Inbox())
    refused = caught.value
    assert (refused.status, refused.reason) == (401, "TOKEN_EXPIRED")
    assert refused.body.encode() == BODY
    assert refused.message == "the token has expired"
    assert TOKEN not in str(refused)


@on_reactor
async def test_the_body_of_a_refusal_is_bounded() -> None:
    async with listening(Canned(http("500 Oops", b"", length=False), b"x" * 300_000)) as port:
        with pytest.raises(UpgradeRefused) as caught:
            await connect(reactor, _to(f"ws://localhost:{port}"), TOKEN, Inbox())
        assert len(caught.value.body) == 65_536
        assert caught.value.message == ""


@on_reactor
async def test_an_invalid_101_is_an_error_without_the_token() -> None:
    answer = http("101 Switching Protocols", b"", f"Upgrade: auth.{TOKEN}", length=False)
    async with listening(Canned(answer)) as port:
        with pytest.raises(ClosedEarly) as caught:
            await connect(reactor, _to(f"ws://localhost:{port}", token_in="subprotocol"), TOKEN, Inbox())
    assert caught.value.closed.code == 1006
    assert TOKEN not in str(caught.value)


@on_reactor
async def test_connection_refused(free_port: int) -> None:
    with pytest.raises(ConnectError):
        await connect(reactor, _to(f"ws://localhost:{free_port}"), TOKEN, Inbox())


@on_reactor
async def test_close_codes_and_reasons_are_reported() -> None:
    async with serving(Echo()) as base:
        for code, reason in ((4008, "runtime rate limit exceeded"), (4401, "invalid_token"), (1013, "later")):
            connection = await connect(reactor, _to(base), TOKEN, Inbox())
            connection.send(f"close {code} {reason}")
            assert await connection.closed == Closed(code, reason)
            with pytest.raises(PeerError) as caught:
                connection.send("x")
            assert caught.value.code is Code.NOT_CONNECTED
            connection.close()


@on_reactor
async def test_a_lost_connection_is_1006() -> None:
    async with serving(Echo()) as base:
        connection = await connect(reactor, _to(base), TOKEN, Inbox())
        connection.send("abort")
        assert (await connection.closed).code == 1006
        again = await connect(reactor, _to(base), TOKEN, Inbox())
        again.abort()
        assert (await again.closed).code == 1006


@pytest.mark.parametrize("secret", [None, SECRET], ids=["IK", "IKpsk2"])
@on_reactor
async def test_frames_over_the_link(secret: bytes | None) -> None:
    relay = RelayEnd(Pattern.IK if secret is None else Pattern.IKPSK2, secret=secret)
    echo = LinkEcho(relay)
    link = LinkSettings(relay.public, generate_static(), "client", "w", "t", secret)
    async with serving(echo) as base:
        inbox = Inbox()
        connection = await connect(reactor, _to(base, link=link), TOKEN, inbox)
        assert connection.subprotocol == "viewport.noise-link.v1"
        texts = ["short", "long" * 100_000]
        for text in texts:
            connection.send(text)
        assert await inbox.has(2) == texts
        assert echo.frames[0] == b'{"type":"link_confirm"}'
        with pytest.raises(PeerError, match="TOO_LARGE"):
            connection.send("x" * 1_048_577)


@on_reactor
async def test_a_relay_with_another_pairing_secret_is_refused() -> None:
    relay = RelayEnd(Pattern.IKPSK2, secret=bytes(32))
    link = LinkSettings(relay.public, generate_static(), "client", "w", "t", SECRET)
    async with serving(LinkEcho(relay)) as base:
        with pytest.raises(ClosedEarly, match="does not decrypt"):
            await connect(reactor, _to(base, link=link), TOKEN, Inbox())


@on_reactor
async def test_a_relay_without_the_link_is_refused() -> None:
    link = LinkSettings(RelayEnd(Pattern.IK).public, generate_static(), "client", "w", "t")
    async with serving(Echo()) as base:
        with pytest.raises(ClosedEarly, match="does not speak the link"):
            await connect(reactor, _to(base, link=link, subprotocols=("app.v1",)), TOKEN, Inbox())


@pytest.mark.parametrize(
    ("frame", "why"), [("damage", "does not decrypt"), ("text", "text message on a link")]
)
@on_reactor
async def test_a_damaged_record_closes_the_link(frame: str, why: str) -> None:
    relay = RelayEnd(Pattern.IK)
    link = LinkSettings(relay.public, generate_static(), "client", "w", "t")
    async with serving(LinkEcho(relay)) as base:
        inbox = Inbox()
        connection = await connect(reactor, _to(base, link=link), TOKEN, inbox)
        connection.send(frame)
        closed = await connection.closed
        assert closed.code == 4008
        assert why in closed.reason
        assert inbox.frames == []


@on_reactor
async def test_tls_with_a_policy_of_its_own() -> None:
    authority = Identity.self_signed("loopback test", "localhost")
    async with serving(Echo(), authority.options()) as base:
        inbox = Inbox()
        connection = await connect(reactor, _to(base, tls=ClientTls(authority.trust_root)), TOKEN, inbox)
        connection.send("over TLS")
        assert await inbox.has(1) == ["over TLS"]


@on_reactor
async def test_tls_with_an_unknown_certificate_or_name_is_refused() -> None:
    authority = Identity.self_signed("loopback test", "localhost")
    async with serving(Echo(), authority.options()) as base:
        with pytest.raises(ClosedEarly, match="TLS failed"):
            await connect(reactor, _to(base), TOKEN, Inbox())
        numeric = _to(base.replace("localhost", "127.0.0.1"), tls=ClientTls(authority.trust_root))
        with pytest.raises(ClosedEarly, match="TLS failed"):
            await connect(reactor, numeric, TOKEN, Inbox())
