"""The pipe of a worker that ends TLS for another process."""

from __future__ import annotations

from typing import Any

import pytest
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


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_peer_has_low_priority_until_the_101_of_its_upgrade(size: int) -> None:
    """Also where the 101 comes in several reads of `size` bytes."""
    pipe = TLSPipe(Clock(), lambda pipe: None)
    outer = Outer()
    transport: Any = outer
    pipe.outer.transport = transport

    def receive(data: bytes) -> None:
        for at in range(0, len(data), size):
            pipe.inner.dataReceived(data[at : at + size])

    said = (
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 in a frame",
    )
    for data, promoted in zip(said, (0, 1, 1), strict=True):
        receive(data)
        assert outer.promoted == promoted
    assert b"".join(outer.written) == b"".join(said)
