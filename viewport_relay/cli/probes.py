"""The doctor's findings, and the steps of a connection to a server, one at a time: DNS, TCP, TLS, certificate.

The relay makes them in one call. Here each step runs alone, so that the first that fails can be named. Time is bounded. TLS
is the relay's own (`ClientTls`). This module knows no settings.
"""

from __future__ import annotations

import datetime
import socket
from typing import Any, Literal
from urllib.parse import urlsplit

from attrs import frozen
from cryptography import x509
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.admission.httpwords import why
from viewport_relay.admission.tls import CertificateRefused, ClientTls
from viewport_relay.config import bracketed

# -- findings: one line of the doctor's output each ---------------------------------------------------------------

Outcome = Literal["ok", "warn", "fail"]
MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


@frozen
class Finding:
    """The name of a check, its result, and the fix (empty when the check passed)."""

    name: str
    outcome: Outcome
    found: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f" → {self.fix}" if self.fix else ""
        return f"{MARKS[self.outcome]} {self.name}: {self.found}{fix}"


def ok(name: str, found: str) -> Finding:
    """A check that passed."""
    return Finding(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Finding:
    """A check that passed with a warning."""
    return Finding(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Finding:
    """A check that failed."""
    return Finding(name, "fail", found, fix)


# -- steps ---------------------------------------------------------------------------------------------------------

#: Days before a certificate expires at which the doctor warns.
WARNING_DAYS = 14


class ProbeFailed(Exception):
    """A step failed; the text says how. `fix` says what to do, if this case is clear."""

    def __init__(self, found: str, fix: str = "") -> None:
        super().__init__(found)
        self.fix = fix


@frozen
class Origin:
    """Scheme, host and port of a URL (RFC 6454)."""

    tls: bool
    host: str
    port: int

    def __str__(self) -> str:
        return bracketed(self.host, self.port)


def origin_of(url: str) -> Origin:
    """The origin of an http or https URL that the settings have accepted."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return Origin(tls, parts.hostname or "", parts.port or (443 if tls else 80))


def resolve(origin: Origin) -> list[str]:
    """The addresses of a host name. Raises ProbeFailed."""
    try:
        found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ProbeFailed(f"{origin.host} does not resolve: {why}") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(origin: Origin, timeout: float) -> None:
    """Make a TCP connection, within `timeout` seconds, and close it. Raises ProbeFailed."""
    try:
        socket.create_connection((origin.host, origin.port), timeout).close()
    except TimeoutError:
        raise ProbeFailed(f"no connection to {origin} within {timeout:g} s") from None
    except OSError as error:
        raise ProbeFailed(f"no connection to {origin}: {error.strerror or error}") from None


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """A TLS connection before its first byte. `done` fires with TLS version and certificate, or fails."""

    transport: Any

    def __init__(self) -> None:
        self.done: Deferred[tuple[str, x509.Certificate]] = Deferred()

    def handshakeCompleted(self) -> None:
        version = self.transport.getHandle().get_protocol_version_name()
        self.done.callback((version, self.transport.getPeerCertificate().to_cryptography()))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if not self.done.called:
            self.done.errback(reason)


async def handshake(
    reactor: Any, origin: Origin, tls: ClientTls, timeout: float
) -> tuple[str, x509.Certificate]:
    """Make a TLS connection, within `timeout` seconds; returns TLS version and certificate. Raises ProbeFailed."""
    endpoint = tls.over(HostnameEndpoint(reactor, origin.host, origin.port, timeout), origin.host)
    protocol = _Handshake()
    try:
        await connectProtocol(endpoint, protocol)
        return await protocol.done.addTimeout(timeout, reactor)
    except CertificateRefused as refused:
        raise ProbeFailed(f"certificate of {origin} refused: {refused.why}", refused.hint) from None
    except Exception as error:  # of connecting or TLS
        raise ProbeFailed(f"TLS handshake with {origin} failed: {why(error)}") from None
    finally:
        if protocol.transport is not None:
            protocol.transport.abortConnection()


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate expires; negative after that."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86_400


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate's subjectAltName matches a host name or IP address (RFC 9525)."""
    is_address = isIPAddress(host) or isIPv6Address(host)
    verify = verify_certificate_ip_address if is_address else verify_certificate_hostname
    try:
        verify(certificate, host)
    except (VerificationError, CertificateError, ValueError):  # ValueError: not a DNS name
        return False
    return True
