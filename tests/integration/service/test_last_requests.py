"""Requests that arrive together with the relay's stop are answered: none is reset."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.drill.peer import dial
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import NO_RATES, Relay

REQUEST = b"GET %b HTTP/1.1\r\nHost: relay\r\n\r\n"


@pytest.fixture(params=["", "2"], ids=["alone", "workers"])
def relay(request: pytest.FixtureRequest, platform: FaultyPlatform) -> Iterator[Relay]:
    settings = NO_RATES | ({"RELAY_WORKERS": request.param} if request.param else {})
    with Relay(platform.environment() | settings) as made:
        made.logged("relay_started", 30)
        assert made.http("/health")[0] == 200
        yield made


def received(sock: socket.socket) -> bytes:
    """Everything until the relay closes. Raises ConnectionResetError."""
    pieces = []
    while piece := sock.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


def test_requests_in_the_backlog_are_answered(relay: Relay) -> None:
    os.kill(relay.process.pid, signal.SIGSTOP)
    with ExitStack() as exits:
        # The kernel completes these connections. The relay sees them and the signal at once.
        socks = [exits.enter_context(dial(relay.port)) for _ in range(40)]
        for sock in socks:
            sock.sendall(REQUEST % b"/health")
        relay.process.send_signal(signal.SIGTERM)
        os.kill(relay.process.pid, signal.SIGCONT)
        answers = [received(sock) for sock in socks]
    assert {answer.split(b" ", 1)[0] for answer in answers} == {b"HTTP/1.1"}
    assert relay.process.wait(10) == 0


def test_a_kept_connection_is_closed_and_a_silent_one_holds_nothing_up(relay: Relay) -> None:
    with dial(relay.port) as kept, dial(relay.port) as silent:
        kept.sendall(REQUEST % b"/health")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        relay.process.send_signal(signal.SIGTERM)
        assert received(kept) == b""
        assert relay.process.wait(10) == 0
        assert time.monotonic() - began < 4
        silent.close()
