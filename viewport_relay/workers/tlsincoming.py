"""The parent's side of TLS with several workers: it passes each connection to a worker that ends TLS.

The workspace stands in the encrypted request. So the parent passes the TCP connection to the workers in turn, before its first
byte is decrypted, with one end of a socket pair. From then on the other end of the pair is the connection: the parent reads the
request from it, and passes it on as it passes a plain TCP connection. `tlspipe` is the worker's side.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from viewport_relay.admission.addresses import peer_host
from viewport_relay.wire.channel import REQUEST_TIMEOUT
from viewport_relay.wire.reactor import adopt_stranger
from viewport_relay.wire.site import RelaySite
from viewport_relay.workers.channels import OneProtocol
from viewport_relay.workers.passing import let_go, tcp_transport

#: Passes a connection to a worker that ends TLS: TCP socket, one end of the pair, bytes already read. False: no room.
PassTLS = Callable[[socket.socket, socket.socket, bytes], bool]


class IncomingTLS(Factory):
    """The parent's factory for TCP connections that begin TLS. `site` reads the requests."""

    noisy = False

    def __init__(self, site: RelaySite, pass_tls: PassTLS, reactor: Any) -> None:
        self.site = site
        self.pass_tls = pass_tls
        self.reactor = reactor

    def doStart(self) -> None:
        self.site.doStart()  # type: ignore[no-untyped-call]

    def doStop(self) -> None:
        self.site.doStop()  # type: ignore[no-untyped-call]

    def buildProtocol(self, address: IAddress | None) -> Any:
        return _Incoming(self)


class _Incoming(Protocol, TimeoutMixin):
    """A TCP connection before the first byte of TLS. The PROXY protocol has named its peer by then."""

    transport: Any

    def __init__(self, factory: IncomingTLS) -> None:
        self._factory = factory
        self._connections = factory.site.connections

    def connectionMade(self) -> None:
        self._connections.enter(self, peer_host(self.transport))
        self.setTimeout(REQUEST_TIMEOUT)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Pass the connection on with what was read of it, and read the request from the pair."""
        self._leave()
        try:
            passed = self._pass(data)
        except OSError as error:  # no descriptor is free
            self._refuse(f"the connection could not be passed to a worker: {error.strerror}")
        else:
            if not passed:
                self._refuse("no worker takes connections just now")

    def _pass(self, data: bytes) -> bool:
        """Pass the connection to a worker. False: none takes it. Raises OSError."""
        inner = tcp_transport(self.transport)
        channel: Any = self._factory.site.buildProtocol(None)
        channel.given_peer = peer_host(self.transport)
        with ExitStack() as unused:
            ours, theirs = map(unused.enter_context, socket.socketpair())
            copy = unused.enter_context(inner.socket.dup())
            ours.setblocking(False)
            pair = adopt_stranger(self._factory.reactor, ours.fileno(), socket.AF_UNIX, OneProtocol(channel))
            ours.close()
            if not self._factory.pass_tls(copy, theirs, data):
                pair.abortConnection()
                return False
            unused.pop_all()  # both are the worker's now
        let_go(self.transport, inner)
        return True

    def _refuse(self, message: str) -> None:
        self._connections.refused(peer_host(self.transport), message)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._leave()

    def _leave(self) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self._connections.leave(self)

    def drop(self) -> None:
        """Abort the connection (`HttpConnections`)."""
        self.transport.abortConnection()

    def loseConnection(self) -> None:
        """Close the connection (`HttpConnections`)."""
        self.transport.loseConnection()
