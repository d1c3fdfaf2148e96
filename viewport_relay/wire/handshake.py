"""The opening handshake of RFC 6455 section 4.2, server side: checks on a request that `twisted.web` has read, and the 101.

The check of Host (RFC 9112 section 3.2) is that of every other request too.

Every check raises `Refusal`. Header values are Latin-1 text, one character for each byte.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl

from viewport_relay.admission.query import read_query
from viewport_relay.protocol.grant import UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

#: Most parameters of a query, unknown ones included.
MAX_PARAMETERS: Final = 64

#: Queries whose reading is remembered, and characters of the longest of them.
_REMEMBERED: Final = 1024
_USUAL_CHARS: Final = 512

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN_CHARS: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

#: The value of Host (RFC 9110 section 7.2): a name, an IPv4 address or an IP literal, then perhaps a port. It may be empty.
_HOST: Final = re.compile(rb"(?:\[[\w.~!$&'()*+,;=:%-]+\]|[\w.~!$&'()*+,;=%-]*)(?::[0-9]*)?", re.ASCII)

#: All headers of a request: their values in order by name, as `Headers.getAllRawHeaders` writes it (Sec-Websocket-Key).
Headers = Mapping[bytes, Sequence[bytes]]


def header(headers: Headers, name: bytes) -> str:
    """The first value of a header without surrounding white space, "" if there is none."""
    values = headers.get(name)
    return values[0].decode("latin-1").strip() if values else ""


def is_upgrade(values: Iterable[bytes]) -> bool:
    """Whether a request with these values of Upgrade tries to open a WebSocket, well-formed or not."""
    return b"websocket" in b",".join(values).lower()


def host_fault(hosts: Sequence[bytes]) -> str | None:
    """The fault of a request with these values of Host (RFC 9112 section 3.2), None without one.

    No value is no fault here: scripts and health checks send such requests in HTTP/1.1 too. An upgrade needs one.
    """
    if len(hosts) > 1:
        return "more than one Host header"
    return None if all(map(_HOST.fullmatch, hosts)) else "Host is no host"


def check_handshake(version: bytes, headers: Headers) -> tuple[str, ...]:
    """Check the client's handshake (section 4.2.1), sent in this version of HTTP, and return the sub-protocols it offers, in order.

    Raises Refusal UPGRADE_MALFORMED or UPGRADE_REQUIRED.
    """
    if version != b"HTTP/1.1":
        raise _malformed("not HTTP/1.1")
    hosts = headers.get(b"Host", ())
    if fault := host_fault(hosts) if hosts else "no Host header":
        raise _malformed(fault)
    if b"websocket" not in _members(headers, b"Upgrade", lower=True):
        raise _malformed("Upgrade is not websocket")
    if b"upgrade" not in _members(headers, b"Connection", lower=True):
        raise _malformed("Connection does not name Upgrade")
    if [value.strip() for value in headers.get(b"Sec-Websocket-Version", ())] != [b"13"]:
        raise Refusal(Reason.UPGRADE_REQUIRED, "Sec-WebSocket-Version is not 13")
    keys = headers.get(b"Sec-Websocket-Key", ())
    if len(keys) != 1 or not _is_key(keys[0].strip()):
        raise _malformed("Sec-WebSocket-Key is not base64 of 16 bytes")
    if b"Transfer-Encoding" in headers or header(headers, b"Content-Length") not in ("", "0"):
        raise _malformed("the request has a body")
    offered = [member.decode("latin-1") for member in _members(headers, b"Sec-Websocket-Protocol") if member]
    if len(set(offered)) != len(offered):
        raise _malformed("a sub-protocol is offered twice")
    if not all(_TOKEN_CHARS.issuperset(member) for member in offered):
        raise _malformed("a sub-protocol is not a token")
    return tuple(offered)


def _malformed(detail: str) -> Refusal:
    return Refusal(Reason.UPGRADE_MALFORMED, detail)


def _members(headers: Headers, name: bytes, *, lower: bool = False) -> list[bytes]:
    """The members of a comma list, over repeated headers too (RFC 9110 section 5.6.1), empty ones included."""
    values = b",".join(headers.get(name, ()))
    return [member.strip() for member in (values.lower() if lower else values).split(b",")]


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def parse_query(target: bytes) -> tuple[UpgradeQuery, str | None]:
    """The query of a request target and its `token`; the first value of each parameter counts.

    Raises Refusal QUERY_INVALID.
    """
    # Bytes that are not UTF-8 become U+FFFD, which no checked parameter accepts.
    text = target.partition(b"?")[2].decode("utf-8", "replace")
    # A token is not kept: no such query names one, escaped or not.
    usual = len(text) <= _USUAL_CHARS and "%" not in text and "token" not in text
    return _remembered(text) if usual else _parsed(text)


def _parsed(text: str) -> tuple[UpgradeQuery, str | None]:
    if text.count("&") >= MAX_PARAMETERS:
        raise Refusal(Reason.QUERY_INVALID, f"the query has more than {MAX_PARAMETERS} parameters")
    found: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        found.setdefault(name, value)
    query = read_query(found.get("role"), found.get("workspaceId"), found.get("runtimeTargetId"))
    return query, found.get("token")


#: A peer asks alike each time it connects.
_remembered: Final = lru_cache(_REMEMBERED)(_parsed)


def switching_protocols(headers: Headers, subprotocol: str | None) -> bytes:
    """The 101 (section 4.2.2) that answers a checked handshake."""
    key = headers[b"Sec-Websocket-Key"][0].strip()
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    chosen = b"" if subprotocol is None else b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, chosen)
    )
