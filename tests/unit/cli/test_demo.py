"""`viewport-relay demo`: each failure names its cause for the operator.

The successful run needs a real relay and is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from tests.unit.peer.loopback import Canned, Echo, Session, http, listening, on_reactor, reactor, serving
from viewport_relay.cli.scenes import PLAIN, DemoFailed, Scene, Where, exchange, refused_link, summary
from viewport_relay.devplatform.platform import DevPlatform

plain = partial(exchange, scene=PLAIN)


@asynccontextmanager
async def _platform() -> AsyncIterator[DevPlatform]:
    platform = DevPlatform(reactor, internal_key="a-key-for-these-tests-only")
    platform.listen(reactor, 0)
    try:
        yield platform
    finally:
        await platform.close()


async def _fails(play: Any, ws_url: str, platform: DevPlatform, **options: Any) -> str:
    where = Where(ws_url, platform.url, platform.credential, turns=4, **options)
    lines: list[str] = []
    with pytest.raises(DemoFailed) as caught:
        await play(reactor, where, lines.append)
    assert not any(line.startswith("EXCHANGE OK") for line in lines)
    assert platform.credential not in str(caught.value)
    return str(caught.value)


def test_the_summary_line() -> None:
    assert summary(400, 2_140_000, 0.00126) == "EXCHANGE OK 400 messages, 2.1 MB, median round trip 1.3 ms"


@on_reactor
async def test_no_platform(free_port: int) -> None:
    where = Where("ws://localhost:1", f"http://127.0.0.1:{free_port}", "c")
    with pytest.raises(DemoFailed, match=rf"platform \(http://127.0.0.1:{free_port}\).*UNREACHABLE"):
        await plain(reactor, where, lambda _: None)


@on_reactor
async def test_no_relay(free_port: int) -> None:
    async with _platform() as platform:
        why = await _fails(plain, f"ws://127.0.0.1:{free_port}", platform)
        assert f"the relay (ws://127.0.0.1:{free_port}) cannot be reached" in why


@on_reactor
async def test_unknown_workspace() -> None:
    async with _platform() as platform:
        play = partial(exchange, scene=Scene("missing", "dev-missing"))
        assert "WORKSPACE_NOT_FOUND" in await _fails(play, "ws://127.0.0.1:1", platform)


@on_reactor
async def test_a_relay_that_refuses() -> None:
    body = b'{"ok":false,"reason":"JWKS_UNREACHABLE","message":"no key set"}'
    answer = http("503 Service Unavailable", body, "X-Relay-Reason: JWKS_UNREACHABLE")
    async with _platform() as platform, listening(Canned(answer)) as port:
        why = await _fails(plain, f"ws://127.0.0.1:{port}", platform)
        assert "HTTP 503 JWKS_UNREACHABLE no key set" in why


@on_reactor
async def test_a_relay_that_delivers_nothing() -> None:
    async with _platform() as platform, serving(Echo()) as base:
        assert "not through after 1 s" in await _fails(plain, base, platform, timeout=0.6)


@on_reactor
async def test_a_relay_that_closes() -> None:
    def close(session: Session) -> None:
        if session.requested.params["role"] == ["client"]:
            session.sendCloseFrame(4008, b"runtime rate limit exceeded")

    echo = Echo()
    echo.on_open = close
    async with _platform() as platform, serving(echo) as base:
        why = await _fails(plain, base, platform)
        assert "the client's connection ended: 4008 runtime rate limit exceeded" in why


@on_reactor
async def test_a_relay_without_a_link() -> None:
    answer = http("200 OK", b'{"relayId":"r","version":"1","subprotocols":[]}')
    async with _platform() as platform, listening(Canned(answer, hang_up=True)) as port:
        assert "offers no link" in await _fails(refused_link, f"ws://127.0.0.1:{port}", platform)
