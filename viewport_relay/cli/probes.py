"""Steps of a connection to a server, one at a time: DNS, TCP, TLS, request.

The relay uses Twisted for these. Here each step runs alone, so that the first that fails can be named. Time and size are
bounded. This module knows no settings.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

#: Most bytes that are read of a document.
DOCUMENT_BYTES = 65_536


class ProbeFailed(Exception):
    """A step failed; the text says how."""


@frozen
class Origin:
    """Scheme, host and port of a URL (RFC 6454)."""

    tls: bool
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "redis": 6379, "rediss": 6379}


def origin_of(url: str) -> Origin:
    """The origin of a URL that the settings have accepted."""
    parts = urlsplit(url)
    tls = parts.scheme in {"https", "wss", "rediss"}
    return Origin(tls, parts.hostname or "", parts.port or _PORTS[parts.scheme])


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


def get_json(url: str, timeout: float, context: ssl.SSLContext) -> Any:
    """Fetch a small JSON document from this machine, within about `timeout` seconds. Raises ProbeFailed."""
    origin, parts = origin_of(url), urlsplit(url)
    sock = connect(origin, timeout)
    if origin.tls:
        sock = handshake(sock, origin, context)
    connection = http.client.HTTPConnection(origin.host, origin.port)
    connection.sock = sock
    try:
        connection.request("GET", parts.path or "/")
        return json.loads(connection.getresponse().read(DOCUMENT_BYTES))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise ProbeFailed(f"no proper answer from {origin}: {type(error).__name__}") from None
    finally:
        connection.close()
