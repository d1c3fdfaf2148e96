"""Steps of a connection to a server, one at a time: DNS, TCP, TLS; and what a certificate says.

The relay uses Twisted for these. Here each step runs alone, so that the first that fails can be named. Time is bounded. This
module knows no settings.
"""

from __future__ import annotations

import datetime
import socket
import ssl
from urllib.parse import urlsplit

from attrs import frozen
from cryptography import x509

from viewport_relay.config import bracketed

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
        plain.close()
        raise ProbeFailed(f"certificate of {origin} refused: {error.verify_message}") from None
    except TimeoutError:
        plain.close()
        raise ProbeFailed(f"{origin} does not answer the TLS handshake") from None
    except (ssl.SSLError, OSError) as error:
        plain.close()
        why = getattr(error, "reason", None) or error.strerror or "connection lost"
        raise ProbeFailed(f"TLS handshake with {origin} failed: {why}") from None


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate expires; negative after that."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86_400


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate's subjectAltName matches a host name or IP address (RFC 9525; a wildcard matches one label)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    host = host.lower()
    for name in names.get_values_for_type(x509.DNSName):
        if name.lower() == host or (name.startswith("*.") and host.partition(".")[2] == name[2:].lower()):
            return True
    return host in {str(address) for address in names.get_values_for_type(x509.IPAddress)}
