"""The doctor's findings, and the steps of a connection to a server, one at a time: DNS, TCP, TLS, certificate.

The relay uses Twisted for these. Here each step runs alone, so that the first that fails can be named. Time is bounded. This
module knows no settings.
"""

from __future__ import annotations

import datetime
import socket
import ssl
from typing import Literal
from urllib.parse import urlsplit

from attrs import frozen
from cryptography import x509
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.abstract import isIPAddress, isIPv6Address

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
    """A step failed; the text says how."""


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


def connect(origin: Origin, timeout: float) -> socket.socket:
    """A TCP connection, within `timeout` seconds. Raises ProbeFailed."""
    try:
        return socket.create_connection((origin.host, origin.port), timeout)
    except TimeoutError:
        raise ProbeFailed(f"no connection to {origin} within {timeout:g} s") from None
    except OSError as error:
        raise ProbeFailed(f"no connection to {origin}: {error.strerror or error}") from None


def handshake(plain: socket.socket, origin: Origin, context: ssl.SSLContext) -> ssl.SSLSocket:
    """TLS over a connection; takes the socket over. Raises ProbeFailed."""
    try:
        return context.wrap_socket(plain, server_hostname=origin.host)
    except ssl.SSLCertVerificationError as error:
        why = f"certificate of {origin} refused: {error.verify_message}"
    except TimeoutError:
        why = f"{origin} does not answer the TLS handshake"
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "connection lost"
        why = f"TLS handshake with {origin} failed: {reason}"
    plain.close()
    raise ProbeFailed(why)


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
