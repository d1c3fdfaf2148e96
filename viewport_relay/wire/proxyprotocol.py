"""PROXY protocol v1 and v2 in front of a listener (RELAY_PROXY_PROTOCOL): the client's address from a load balancer.

Twisted's parsers read the headers. Twisted's `haproxy` endpoint wrapper alone fails these cases, which
`test_what_twisteds_own_wrapper_lacks` holds: the first bytes of a header come in pieces; `PROXY UNKNOWN` without
addresses (section 2.1 of the specification); a port that is no number, or bytes that are not UTF-8 (it raises); an
address or a port that is none (it is taken); a version 2 header of 64 KiB (it is waited for). The classes here close these gaps,
and take headers from trusted peers only, where RELAY_TRUSTED_PROXIES names some. From this machine a header that names no address is
always taken: `viewport-relay healthcheck` sends one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.protocols.haproxy import _exceptions
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from viewport_relay.admission.addresses import UNIX_PEER, parse_address, peer_host
from viewport_relay.config import is_loopback
from viewport_relay.observe.sink import EventSink
from viewport_relay.wire.transport import DirectAccess, Sender, Sink, read_nothing

#: Longest header of version 1 with its line end, and longest of version 2 that is waited for, bytes.
V1_MAX: Final = 107
V2_MAX: Final = 4096

_V1: Final = b"PROXY "
_V2: Final[bytes] = V2Parser.PREFIX
_UNKNOWN: Final = b"PROXY UNKNOWN\r\n"
#: Highest port of TCP.
_PORT_MAX: Final = 65_535


def header_length(data: bytes) -> int | None:
    """The length of the header that `data` begins with; 0 where more bytes must come to tell, None for no header."""
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


def addresses(header: bytes) -> tuple[Any, Any]:
    """The addresses (IAddress) of client and balancer in a whole header; None twice: the header names none.

    Raises ValueError or InvalidProxyHeader, and KeyError for a family that is none.
    """
    if header == _UNKNOWN:
        return None, None
    found = V2Parser.parse(header) if header.startswith(_V2) else V1Parser.parse(header[:-2])
    return found.source, found.destination


def _exists(address: Any) -> bool:
    """Whether an address that a header names can be one; that of a Unix-domain socket, or none, is always taken."""
    if not isinstance(address, IPv4Address | IPv6Address):
        return True
    return parse_address(address.host) is not None and 0 <= address.port <= _PORT_MAX


class ProxiedConnection(DirectAccess, ProtocolWrapper):
    """Takes the header off a connection; `getPeer` then tells the address that it names. Made by `ProxyFactory`."""

    factory: ProxyFactory
    transport: Any

    def __init__(self, factory: WrappingFactory[Any], wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self._kept = b""
        self._source: Any = None
        self._passed = False  # the header was taken
        self._refused = False
        self._trusted = True

    def makeConnection(self, transport: Any) -> None:
        """Called by the listener."""
        peer = peer_host(transport)
        self._trusted = self.factory.accepts(peer)
        if self._trusted or peer == UNIX_PEER or is_loopback(peer):
            super().makeConnection(transport)  # type: ignore[no-untyped-call]
        else:
            self._refused = True
            self.factory.refused(peer)
            transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        # Without a transport the connection was refused, and the protocol behind it was never told of it.
        if self.transport is not None:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport."""
        if self._passed:
            self.wrappedProtocol.dataReceived(data)
        elif not self._refused:
            self._head(self._kept + data)

    def getPeer(self) -> Any:
        """The address that the header names, else that of the connection."""
        return self._source or self.transport.getPeer()

    # Behind the header the wrapper has nothing to do: the transport itself is read and written.

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        return self.transport.read_into(sink) if isinstance(self.transport, DirectAccess) else read_nothing

    @property
    def sender(self) -> Sender:
        assert isinstance(self.transport, DirectAccess)  # as `sent_everything` says
        return self.transport.sender

    @property
    def sent_everything(self) -> bool:
        return isinstance(self.transport, DirectAccess) and self.transport.sent_everything

    def _head(self, data: bytes) -> None:
        length = header_length(data)
        if length == 0:
            self._kept = data
            return
        self._kept = b""
        self._refused = True
        if length is None or not self._is_taken(data[:length]):
            self.loseConnection()  # type: ignore[no-untyped-call]
        elif self.factory.refuses(peer_host(self)):
            self.transport.abortConnection()
        else:
            self._refused = False
            self._passed = True
            if data[length:]:
                self.wrappedProtocol.dataReceived(data[length:])

    def _is_taken(self, header: bytes) -> bool:
        try:
            self._source, destination = addresses(header)
        except (_exceptions.InvalidProxyHeader, ValueError, KeyError):  # for ports and families that are none
            return False
        if self._source is not None and not self._trusted:
            self.factory.refused(peer_host(self.transport))
            return False
        return _exists(self._source) and _exists(destination)


class ProxyFactory(WrappingFactory[ProxiedConnection]):
    """Wraps the factory of the protocol behind the header, which may be TLS."""

    protocol = ProxiedConnection
    noisy = False

    def __init__(
        self,
        behind: IProtocolFactory,
        accepts: Callable[[str], bool],
        refuses: Callable[[str], bool],
        log: EventSink,
    ) -> None:
        """`accepts` tells by the address of the socket's peer whether its header is believed.

        `refuses` tells whether the connection of an address that a header names is dropped, before TLS.
        """
        super().__init__(behind)  # type: ignore[no-untyped-call]
        self.accepts = accepts
        self.refuses = refuses
        self._log = log

    def refused(self, peer: str) -> None:
        """Log a connection that was dropped for its header."""
        self._log.event(
            "http_dropped",
            message="a PROXY header of an address that is not in RELAY_TRUSTED_PROXIES is not accepted",
            ip=peer,
        )
