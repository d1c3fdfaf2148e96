"""The pipe of a worker that ends TLS for another process."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock

from tests.memorywire import Log
from viewport_relay.reasons import Reason
from viewport_relay.wire.transport import DirectTransport
from viewport_relay.workers.tlspipe import TLSPipe, TLSPipes


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


@pytest.mark.parametrize("adopted", [0, 1])
@pytest.mark.parametrize(("code", "logged"), [(errno.EMFILE, 1), (errno.ENFILE, 1), (errno.ENOTCONN, 0)])
def test_a_connection_that_a_worker_cannot_adopt_is_aborted(adopted: int, code: int, logged: int) -> None:
    """Only the lack of descriptors is logged: a peer that has disconnected already is no fault of the relay."""
    log, aborted = Log(), list[int]()

    def adopt(descriptor: int, family: int, factory: Any) -> Any:
        calls.append(family)
        if len(calls) > adopted:
            raise OSError(code, os.strerror(code))
        protocol = factory.buildProtocol(None)
        protocol.transport = SimpleNamespace(abortConnection=lambda: aborted.append(family))

    calls: list[int] = []
    reactor: Any = SimpleNamespace(adoptStreamConnection=adopt, callLater=Clock().callLater)
    context: Any = CertificateOptions()
    queue: Any = None
    pipes = TLSPipes(reactor, context, queue, log)
    ours, theirs = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    pipes.begin(socket.AF_INET, os.dup(ours.fileno()), os.dup(theirs.fileno()), b"\x16\x03\x01")
    assert len(os.listdir("/proc/self/fd")) == before
    assert aborted == [socket.AF_UNIX] * adopted
    entries = log.named("http_dropped")
    assert len(entries) == logged
    for entry in entries:
        assert entry["reason"] is Reason.TOO_MANY_CONNECTIONS and os.strerror(code) in entry["message"]
    ours.close()
    theirs.close()
