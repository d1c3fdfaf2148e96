"""Reconnecting: back-off, fresh tokens, final refusals and close codes, stop."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import deferLater

from tests.unit.peer.loopback import Canned, Echo, Inbox, http, listening, on_reactor, reactor, serving
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.reconnect import BackOff, PersistentConnection, TokenUnavailable, may_return
from viewport_relay.peer.upgrade import Closed, Destination, UpgradeRefused

QUICK = BackOff(first=0.01, cap=0.05, jitter=0.5, stable=60)


@pytest.mark.parametrize(
    ("failures", "draw", "pause"),
    [
        (1, 0.0, 0.5),
        (2, 0.0, 1.0),
        (3, 0.0, 2.0),
        (7, 0.0, 30.0),
        (10_000, 0.0, 30.0),
        (1, 1.0, 0.25),
        (9, 0.5, 22.5),
    ],
)
@on_reactor
async def test_pauses(failures: int, draw: float, pause: float) -> None:
    assert BackOff().pause(failures, draw) == pytest.approx(pause)


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_pauses_are_bounded(failures: int, draw: float) -> None:
    assert 0.25 <= BackOff().pause(failures, draw) <= 30.0


@pytest.mark.parametrize(
    ("code", "reason", "back"),
    [
        (1001, "relay shutting down", True),
        (1006, "", True),
        (1009, "frame too large", True),
        (1013, "try again later", True),
        (4008, "buffer overflow", True),
        (4008, "daemon already connected", True),
        (4008, "runtime rate limit exceeded", True),
        (4008, "Noise handshake failed: timeout", True),
        (4008, "replaced by newer daemon", False),
        (4008, "stale daemon generation", False),
        (4008, "workspace claim mismatch", False),
        (4008, "Noise handshake failed: invalid psk", False),
        (4008, "pairing scope only", False),
        (1000, "", False),
        (1002, "", False),
        (1007, "", False),
        (4401, "invalid_token", False),
        (4403, "workspace_not_found", False),
    ],
)
def test_final_close_codes_and_refusals(code: int, reason: str, back: bool) -> None:
    assert may_return(Closed(code, reason)) is back


class Tokens:
    """Provides a fresh token for each call; can be set to fail for a while."""

    def __init__(self, missing: int = 0) -> None:
        self.given: list[str] = []
        self.missing = missing

    async def __call__(self) -> str:
        if self.missing:
            self.missing -= 1
            raise TokenUnavailable
        self.given.append(f"token-{len(self.given)}")
        return self.given[-1]


def _persistent(base: str, tokens: Tokens, inbox: Inbox, **options: Any) -> PersistentConnection:
    destination = Destination(base, "workspace-daemon", "w", "t")
    made = PersistentConnection(reactor, destination, tokens, inbox, back_off=QUICK, **options)
    made.start()
    return made


@on_reactor
async def test_each_reconnect_uses_a_fresh_token() -> None:
    echo, tokens, inbox = Echo(), Tokens(), Inbox()
    losses: list[Closed] = []
    async with serving(echo) as base:
        peer = _persistent(base, tokens, inbox, on_loss=losses.append)
        for farewell in ("abort", "close 1001 relay shutting down", "close 4008 buffer overflow"):
            connection = await peer.opened()
            connection.send("hello")
            await inbox.has(peer.connections)
            connection.send(farewell)
            await connection.closed
        await peer.opened()
        assert peer.connections == 4
        assert tokens.given == ["token-0", "token-1", "token-2", "token-3"]
        assert [request.headers["authorization"][7:] for request in echo.requests] == tokens.given
        assert await inbox.has(3) == ["hello"] * 3
        assert [closed.code for closed in losses] == [1006, 1001, 4008]
        peer.stop()
        assert (await peer.ended).code == 1000


@on_reactor
async def test_attempts_continue_until_the_relay_listens(free_port: int) -> None:
    tokens = Tokens(missing=1)
    peer = _persistent(f"ws://localhost:{free_port}", tokens, Inbox())
    with pytest.raises(PeerError, match="NOT_CONNECTED"):
        peer.send("too early")
    await _until(lambda: len(tokens.given) >= 2)
    async with serving(Echo(), port=free_port):
        await peer.opened()
        peer.stop()
        await peer.ended


@pytest.mark.parametrize("status", ["429 Slow", "502 Bad", "503 Away"])
@on_reactor
async def test_transient_refusals_are_retried(status: str) -> None:
    tokens = Tokens()
    async with listening(Canned(http(status, b"{}"))) as port:
        peer = _persistent(f"ws://localhost:{port}", tokens, Inbox())
        await _until(lambda: len(tokens.given) >= 3)
        peer.stop()
        assert (await peer.ended).code == 1000


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "403 No"])
@on_reactor
async def test_final_refusals(status: str) -> None:
    tokens = Tokens()
    async with listening(Canned(http(status, b"{}", "X-Relay-Reason: SOME_REASON"))) as port:
        peer = _persistent(f"ws://localhost:{port}", tokens, Inbox())
        with pytest.raises(UpgradeRefused, match="SOME_REASON"):
            await peer.ended
        assert len(tokens.given) == 1
        with pytest.raises(PeerError, match="NOT_CONNECTED"):
            await peer.opened()


@on_reactor
async def test_final_close_codes_end_the_attempts() -> None:
    async with serving(Echo()) as base:
        for code, reason in ((4401, "invalid_token"), (4008, "stale daemon generation")):
            tokens = Tokens()
            peer = _persistent(base, tokens, Inbox())
            (await peer.opened()).send(f"close {code} {reason}")
            if code == 4401:  # The token may have expired: one attempt with a new token follows.
                await _until(lambda given=tokens.given: len(given) == 2)  # type: ignore[misc]
                (await peer.opened()).send(f"close {code} {reason}")
            assert await peer.ended == Closed(code, reason)
            assert len(tokens.given) == (2 if code == 4401 else 1)


@on_reactor
async def test_a_waiter_fails_when_the_attempts_end() -> None:
    async with listening(Canned(http("401 No", b"{}"))) as port:
        peer = _persistent(f"ws://localhost:{port}", Tokens(), Inbox())
        with pytest.raises(PeerError, match="will not come back"):
            await peer.opened()
        with pytest.raises(UpgradeRefused):
            await peer.ended


@on_reactor
async def test_stopping_at_any_moment_of_an_attempt(free_port: int) -> None:
    # Each stage, from the name look-up on, reports its cancellation differently.
    for delay in (0, 0, 0.0005, 0.001, 0.002, 0.003):
        peer = _persistent(f"ws://localhost:{free_port}", Tokens(), Inbox())
        await deferLater(reactor, delay, lambda: None)
        peer.stop()
        assert (await peer.ended.addTimeout(5, reactor)).code == 1000


@on_reactor
async def test_stopping_during_a_pause(free_port: int) -> None:
    tokens = Tokens()
    destination = Destination(f"ws://localhost:{free_port}", "client", "w")
    peer = PersistentConnection(reactor, destination, tokens, Inbox(), back_off=BackOff(first=600, cap=600))
    peer.start()
    await _until(lambda: len(tokens.given) == 1)
    await deferLater(reactor, 0.05, lambda: None)
    peer.stop()
    assert (await peer.ended).code == 1000


async def _until(true: Any, seconds: float = 5.0) -> None:
    deadline = reactor.seconds() + seconds
    while not true():
        assert reactor.seconds() < deadline, "it never became true"
        await deferLater(reactor, 0.005, lambda: None)
