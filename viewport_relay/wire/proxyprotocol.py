"""PROXY protocol v1 and v2 in front of a listener (RELAY_PROXY_PROTOCOL): whose connection a load balancer passes on.

Twisted parses the headers. Around it stands what it lacks: a header may come in pieces, `PROXY UNKNOWN` without
addresses is one (section 2.1 of the specification), and what is no header, or names no IP address, ends the
connection instead of raising.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.protocols.haproxy import _exceptions, _wrapper
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.policies import WrappingFactory

from viewport_relay.admission.addresses import parse_address

#: Longest header of version 1 with its line end, and longest of version 2 that is waited for, bytes.
V1_MAX: Final = 107
V2_MAX: Final = 4096

_V1: Final = b"PROXY "
_V2: Final[bytes] = V2Parser.PREFIX
_UNKNOWN: Final = b"PROXY UNKNOWN\r\n"


def header_length(data: bytes) -> int | None:
    """How long the header is that `data` begins with; 0 when more must come to tell, None when it is none."""
    if data.startswith(_V1[: len(data)]):
        end = data.find(b"\r\n", 0, V1_MAX)
        if end < 0:
            return 0 if len(data) < V1_MAX else None
        return end + 2
    if not data.startswith(_V2[: len(data)]):
        return None
    if len(data) < 16:
        return 0
    length = 16 + int.from_bytes(data[14:16], "big")
    if length > V2_MAX:
        return None
    return length if len(data) >= length else 0


class ProxiedConnection(_wrapper.HAProxyProtocolWrapper):
    """Takes the header off a connection; `getPeer` then tells what it says. Made by `ProxyFactory`."""

    def __init__(self, factory: WrappingFactory[Any], wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self._kept = b""
        self._refused = False

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport."""
        if self._refused:
            return
        if self._proxyInfo is not None:
            self.wrappedProtocol.dataReceived(data)
        else:
            self._head(self._kept + data)

    def _head(self, data: bytes) -> None:
        length = header_length(data)
        if length == 0:
            self._kept = data
            return
        self._kept = b""
        if length is None or not self._is_taken(data[:length]):
            self._refused = True
            self.loseConnection()  # type: ignore[no-untyped-call]
        elif data[length:]:
            self.wrappedProtocol.dataReceived(data[length:])

    def _is_taken(self, header: bytes) -> bool:
        try:
            super().dataReceived(b"PROXY UNKNOWN \r\n" if header == _UNKNOWN else header)
        except (_exceptions.InvalidProxyHeader, ValueError, KeyError):  # for ports and families that are none
            return False
        source = None if self._proxyInfo is None else self._proxyInfo.source
        host = getattr(source, "host", None)
        return self._proxyInfo is not None and (host is None or parse_address(host) is not None)


class ProxyFactory(WrappingFactory[ProxiedConnection]):
    """Wraps the factory of what comes behind the header, TLS included."""

    protocol = ProxiedConnection
    noisy = False

    def __init__(self, behind: IProtocolFactory) -> None:
        super().__init__(behind)  # type: ignore[no-untyped-call]
