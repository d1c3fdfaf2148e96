"""Reconnecting: back-off, fresh tokens, final refusals and close codes, stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from tests.unit.peer.loopback import Canned, Echo, Inbox, http, listening, on_reactor, reactor, serving
from viewport_relay.peer.connection import Connection
from viewport_relay.peer.reconnect import TokenUnavailable, default_pauses, may_return, stay_connected
from viewport_relay.peer.upgrade import Closed, Destination, UpgradeRefused


@pytest.mark.parametrize(
    ("failures", "least", "most"),
    [(1, 0.5, 1.5), (2, 1.0, 2.0), (3, 2.0, 3.0), (7, 30.0, 31.0), (10_000, 30.0, 31.0)],
)
def test_pauses(failures: int, least: float, most: float) -> None:
    assert least <= default_pauses(failures) <= most


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
        self.stopped = False

    async def __call__(self) -> str:
        if self.stopped:
            raise LookupError("stopped")
        if self.missing:
            self.missing -= 1
            raise TokenUnavailable
        self.given.append(f"token-{len(self.given)}")
        return self.given[-1]


class Attempts:
    """A peer that reconnects with short pauses, with what it saw."""

    def __init__(self, base: str, tokens: Tokens, stable: float = 60) -> None:
        self.failures: list[int] = []
        self.inbox = Inbox()
        self.connections: list[Connection] = []
        self.losses: list[Closed] = []
        destination = Destination(base, "workspace-daemon", "w", "t")

        def pauses(failures: int) -> float:
            self.failures.append(failures)
            return 0.01

        self.ended: Deferred[Closed] = ensureDeferred(
            stay_connected(
                reactor, destination, tokens, self.inbox, self._opened, pauses=pauses, stable=stable
            )
        )

    def _opened(self, connection: Connection) -> None:
        def gone(closed: Closed) -> Closed:
            self.losses.append(closed)
            return closed

        connection.closed.addCallback(gone)
        self.connections.append(connection)

    async def opened(self, count: int) -> Connection:
        """The connection number `count`, from 1."""
        await until(lambda: len(self.connections) >= count)
        return self.connections[count - 1]


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = reactor.seconds() + seconds
    while not true():
        assert reactor.seconds() < deadline, "it never became true"
        await deferLater(reactor, 0.005, lambda: None)


@on_reactor
async def test_each_reconnect_uses_a_fresh_token() -> None:
    echo, tokens = Echo(), Tokens()
    async with serving(echo) as base:
        peer = Attempts(base, tokens)
        for number, farewell in enumerate(
            ("abort", "close 1001 relay shutting down", "close 4008 buffer overflow"), start=1
        ):
            connection = await peer.opened(number)
            connection.send("hello")
            await peer.inbox.has(number)
            connection.send(farewell)
        last = await peer.opened(4)
        assert tokens.given == ["token-0", "token-1", "token-2", "token-3"]
        assert [request.headers["authorization"][7:] for request in echo.requests] == tokens.given
        assert await peer.inbox.has(3) == ["hello"] * 3
        assert [closed.code for closed in peer.losses] == [1006, 1001, 4008]
        assert peer.failures == [1, 2, 3]
        last.close()
        assert (await peer.ended).code == 1000


@on_reactor
async def test_a_stable_connection_resets_the_count_of_failures() -> None:
    async with serving(Echo()) as base:
        peer = Attempts(base, Tokens(), stable=0)
        for number in (1, 2, 3):
            (await peer.opened(number)).abort()
        (await peer.opened(4)).close()
        await peer.ended
        assert peer.failures == [1, 1, 1]


@on_reactor
async def test_attempts_continue_until_the_relay_listens(free_port: int) -> None:
    tokens = Tokens(missing=1)
    peer = Attempts(f"ws://localhost:{free_port}", tokens)
    await until(lambda: len(tokens.given) >= 2)
    async with serving(Echo(), port=free_port):
        (await peer.opened(1)).close()
        await peer.ended


@pytest.mark.parametrize("status", ["429 Slow", "502 Bad", "503 Away"])
@on_reactor
async def test_transient_refusals_are_retried(status: str) -> None:
    tokens = Tokens()
    async with listening(Canned(http(status, b"{}"))) as port:
        peer = Attempts(f"ws://localhost:{port}", tokens)
        await until(lambda: len(tokens.given) >= 3)
        tokens.stopped = True
        with pytest.raises(LookupError, match="stopped"):
            await peer.ended


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "403 No"])
@on_reactor
async def test_final_refusals(status: str) -> None:
    tokens = Tokens()
    async with listening(Canned(http(status, b"{}", "X-Relay-Reason: SOME_REASON"))) as port:
        with pytest.raises(UpgradeRefused, match="SOME_REASON"):
            await Attempts(f"ws://localhost:{port}", tokens).ended
        assert len(tokens.given) == 1


@on_reactor
async def test_final_close_codes_end_the_attempts() -> None:
    async with serving(Echo()) as base:
        for code, reason in ((4401, "invalid_token"), (4008, "stale daemon generation")):
            tokens = Tokens()
            peer = Attempts(base, tokens)
            (await peer.opened(1)).send(f"close {code} {reason}")
            if code == 4401:  # The token may have expired: one attempt with a new token follows.
                (await peer.opened(2)).send(f"close {code} {reason}")
            assert await peer.ended == Closed(code, reason)
            assert len(tokens.given) == (2 if code == 4401 else 1)
