"""The parent's side of TLS with workers: a connection that cannot be passed is refused and logged, without leaks."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from tests.memorywire import Log
from viewport_relay.reasons import Reason
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.workers.tlsincoming import IncomingTLS


class Transport:
    """Test double of a TCP transport that has received its first bytes."""

    def __init__(self, sock: Any) -> None:
        self.socket = sock
        self.aborted = 0

    def getPeer(self) -> Any:
        return SimpleNamespace(host="192.0.2.1")

    def abortConnection(self) -> None:
        self.aborted += 1


class Full:
    """A socket of a process at its descriptor limit."""

    def dup(self) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Pairs:
    """A reactor that adopts the parent's end of the pair, or is at the descriptor limit."""

    def __init__(self, error: OSError | None = None) -> None:
        self.error = error
        self.adopted: list[Transport] = []

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> Any:
        if self.error is not None:
            raise self.error
        made = Transport(None)
        self.adopted.append(made)
        return made

    def callLater(self, *ignored: Any) -> Any:
        raise AssertionError


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def no_room(tcp: socket.socket, pair: socket.socket, data: bytes) -> bool:
    return False


@pytest.mark.parametrize("lacks", ["pair", "copy", "adoption", "worker"])
def test_a_connection_that_cannot_be_passed_on_is_refused(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    connections = HttpConnections(lambda: 10, log=log)
    site: Any = SimpleNamespace(connections=connections, buildProtocol=lambda address: SimpleNamespace())
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    reactor = Pairs(full if lacks == "adoption" else None)
    peer, ours = socket.socketpair()
    transport = Transport(Full() if lacks == "copy" else ours)
    incoming = IncomingTLS(site, no_room, reactor).buildProtocol(None)
    monkeypatch.setattr(incoming, "setTimeout", lambda seconds: None)
    incoming.makeConnection(transport)
    before = open_descriptors()
    if lacks == "pair":

        def no_pair() -> Any:
            raise full

        monkeypatch.setattr(socket, "socketpair", no_pair)
    incoming.dataReceived(b"\x16\x03\x01")
    assert open_descriptors() == before
    assert transport.aborted == 1 and len(connections) == 0
    assert [pair.aborted for pair in reactor.adopted] == ([1] if lacks == "worker" else [])
    [entry] = log.named("http_dropped")
    assert entry["reason"] is Reason.TOO_MANY_CONNECTIONS and entry["ip"] == "192.0.2.1"
    assert ("no worker takes" if lacks == "worker" else "Too many open files") in entry["message"]
    peer.close()
    ours.close()
