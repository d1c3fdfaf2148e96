"""A loopback listener that can be stopped and started again on the same port.

Going down also cuts open connections: a kept-alive one would go on being served.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate
from twisted.protocols.policies import WrappingFactory
from twisted.web.server import Site

LOOPBACK = "127.0.0.1"

# Twisted has no types for these constructors.
_load_identity: Any = PrivateCertificate.loadPEM
_wrapping_factory: Any = WrappingFactory


def tls_options(certificate: bytes, key: bytes, client_ca: bytes | None = None) -> CertificateOptions:
    """Server TLS from PEM texts; with `client_ca` a client certificate that it signed is required."""
    authorities = [] if client_ca is None else [Certificate.loadPEM(client_ca)]
    options: CertificateOptions = _load_identity(key + b"\n" + certificate).options(*authorities)
    return options


class Listener:
    """A site on one port of 127.0.0.1. `port` is the number once it listened, and stays the same."""

    def __init__(self, reactor: Any, site: Site, port: int, tls: CertificateOptions | None) -> None:
        self.port = port
        self.tls = tls
        self._reactor = reactor
        # The wrapper keeps the list of what is connected.
        self._factory = _wrapping_factory(site)
        self._listening: Any = None

    @property
    def url(self) -> str:
        """Origin of the listener, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://{LOOPBACK}:{self.port}"

    def up(self) -> None:
        """Listen; CannotListenError if the port is taken. Does nothing if it is up."""
        if self._listening is None:
            tls = () if self.tls is None else (self.tls,)
            listen = self._reactor.listenSSL if tls else self._reactor.listenTCP
            self._listening = listen(self.port, self._factory, *tls, interface=LOOPBACK)
            self.port = self._listening.getHost().port

    async def down(self) -> None:
        """Stop listening and cut what is connected. Does nothing if it is down."""
        listening, self._listening = self._listening, None
        if listening is not None:
            stopped = listening.stopListening()
            for connection in list(self._factory.protocols):
                connection.transport.abortConnection()
            await stopped
