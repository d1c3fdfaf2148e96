"""Input that is handled in a later turn, when nothing holds back the end of its connection."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from twisted.python import log

from tests.conformance import echo
from tests.memorywire import CLOSE, PING, masked_frame
from viewport_relay.wire import turnqueue
from viewport_relay.wire.reactor import RelayReactor

UPGRADE = (
    f"GET {echo.PATH} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()


@pytest.mark.parametrize("fast_path", ["0", "1"])
@pytest.mark.parametrize("behind", [0, 100, 5000, 50_000])
def test_a_close_frame_ends_the_connection_without_an_error(
    monkeypatch: pytest.MonkeyPatch, behind: int, fast_path: str
) -> None:
    """The connection is lost while its input is being handled. What stood behind the Close frame is thrown away."""
    monkeypatch.setattr(
        turnqueue, "TURN_SECONDS", 0.0
    )  # every input that is more than short comes to a later turn
    errors: list[Any] = []
    reactor = RelayReactor()
    reactor.running = True
    site = echo.site(reactor, RELAY_LISTEN_HOST="127.0.0.1", RELAY_FAST_PATH=fast_path)
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    log.addObserver(errors.append)
    try:
        with socket.create_connection(("127.0.0.1", port.getHost().port)) as sock:
            sock.setblocking(False)
            said = b""
            for data, end in (
                (UPGRADE, b"\r\n\r\n"),
                (masked_frame(PING, b"") * 100 + masked_frame(CLOSE, b"\x03\xe8") + bytes(behind), b"\x88\x02\x03\xe8"),
            ):  # fmt: skip
                sock.sendall(data)
                for _ in range(200):
                    reactor.iterate(0.01)
                    with contextlib.suppress(BlockingIOError, ConnectionResetError):
                        said += sock.recv(4096)
                    if said.endswith(end):
                        break
                assert said.endswith(end)
        for _ in range(10):
            reactor.iterate(0.01)
        assert [entry for entry in errors if entry["isError"]] == []
        assert [type(each).__name__ for each in reactor.getReaders()].count("TCPTransport") == 0
    finally:
        log.removeObserver(errors.append)
        port.stopListening()
        reactor.iterate(0)
