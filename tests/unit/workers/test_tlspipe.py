"""The pipe of a worker that ends TLS for another process."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from viewport_relay.wire.transport import DirectTransport
from viewport_relay.workers.tlspipe import TLSPipe


class Outer(DirectTransport):
    """The peer's TLS connection."""

    def __init__(self) -> None:
        self.promoted = 0
        self.written: list[bytes] = []
        self.write = self.written.append

    def promote(self) -> None:
        self.promoted += 1


def test_a_peer_has_low_priority_until_the_101_of_its_upgrade() -> None:
    pipe = TLSPipe(Clock(), lambda pipe: None)
    outer = Outer()
    transport: Any = outer
    pipe.outer.transport = transport
    pipe.inner.dataReceived(b"HTTP/1.1 404 Not Found\r\n\r\n")
    assert outer.promoted == 0
    pipe.inner.dataReceived(b"\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert outer.promoted == 1
    pipe.inner.dataReceived(b"HTTP/1.1 101 in a frame")
    assert outer.promoted == 1 and len(outer.written) == 3
