"""PROXY headers: whole, in pieces, invalid. No exception is raised, and no byte after an invalid header is passed on."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.python.failure import Failure

from tests.memorywire import Log
from viewport_relay.wire.proxyprotocol import V2_MAX, ProxyFactory

PREFIX = b"\r\n\r\n\x00\r\nQUIT\n"
IPV4 = (
    PREFIX
    + b"\x21\x11"
    + struct.pack("!H", 12)
    + b"\xcb\x00\x71\x07\xc0\x00\x02\x01"
    + struct.pack("!HH", 1, 2)
)
IPV6 = (
    PREFIX + b"\x21\x21" + struct.pack("!H", 36) + bytes(15) + b"\x07" + bytes(16) + struct.pack("!HH", 1, 2)
)

TAKEN = {
    b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n": "203.0.113.7",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n": "2001:db8::7",
    b"PROXY UNKNOWN\r\n": "192.168.1.1",  # the test transport's own address
    b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n": "192.168.1.1",
    IPV4: "203.0.113.7",
    IPV4[:15] + b"\x10" + IPV4[16:] + b"more": "203.0.113.7",  # with a TLV, which is ignored
    IPV6: "0:0:0:0:0:0:0:7",
    PREFIX + b"\x20\x00\x00\x00": "192.168.1.1",  # LOCAL: a health check of the balancer
    PREFIX + b"\x21\x00\x00\x00": "192.168.1.1",
}
REFUSED = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PROXY TCP4 nonsense\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 x y\r\n",
    b"PROXY TCP4 \xff 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 evil 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 evil 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 -1 2\r\n",
    b"PROXY TCP4 1.2.3.4\r\n",
    b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY  \r\n",
    b"PROXY \r\n",
    b"PROXY " + b"x" * 101,
    b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    PREFIX + b"\x31\x11\x00\x0c" + bytes(12),  # version 3
    PREFIX + b"\x2f\x11\x00\x0c" + bytes(12),  # unknown command
    PREFIX + b"\x21\x41\x00\x0c" + bytes(12),  # unknown family
    PREFIX + b"\x21\x11\x00\x04" + bytes(4),  # too short for its addresses
    PREFIX + b"\x21\x11" + struct.pack("!H", V2_MAX) + bytes(12),
]  # fmt: skip


class Behind(Protocol):
    """The protocol behind the header."""

    def __init__(self) -> None:
        self.got = b""

    def dataReceived(self, data: bytes) -> None:
        self.got += data


def feed(*pieces: bytes) -> tuple[Behind, StringTransport]:
    factory = ProxyFactory(Factory.forProtocol(Behind), lambda peer: True, lambda address: False, Log())
    wrapper, transport = factory.buildProtocol(None), StringTransport()
    wrapper.makeConnection(transport)
    for piece in pieces:
        wrapper.dataReceived(piece)
    return wrapper.wrappedProtocol, transport


@pytest.mark.parametrize("header", TAKEN)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_valid_header_is_removed(header: bytes, size: int) -> None:
    data = header + b"behind\r\n\r\nit"
    behind, transport = feed(*(data[n : n + size] for n in range(0, len(data), size)))
    assert behind.got == b"behind\r\n\r\nit"
    assert behind.transport.getPeer().host == TAKEN[header]
    assert not transport.disconnecting


@pytest.mark.parametrize("data", REFUSED)
@pytest.mark.parametrize("size", [1, 1000])
def test_an_invalid_header_ends_the_connection(data: bytes, size: int) -> None:
    data += b"behind"
    behind, transport = feed(*(data[n : n + size] for n in range(0, len(data), size)))
    assert transport.disconnecting
    assert behind.got == b""


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=120).map(lambda more: b"PROXY " + more + b"\r\n"),
        st.text("0123456789abcdf.: x", max_size=60).map(lambda more: f"PROXY TCP4 {more}\r\n".encode()),
        st.binary(max_size=60).map(lambda more: PREFIX + more),
    ),
    st.integers(1, 50),
)
@example(b"PROXY TCP4 1.2.3.4 5.6.7.8 " + b"9" * 5000 + b" 1\r\n", 6000)
def test_no_input_raises_an_exception(data: bytes, size: int) -> None:
    behind, transport = feed(*(data[n : n + size] for n in range(0, len(data), size)))
    if transport.disconnecting:
        assert behind.got == b""


def by_twisted_alone(*pieces: bytes) -> tuple[bytes, StringTransport]:
    wrapper = HAProxyWrappingFactory(Factory.forProtocol(Behind)).buildProtocol(None)
    transport = StringTransport()
    wrapper.makeConnection(transport)
    for piece in pieces:
        wrapper.dataReceived(piece)
    return wrapper.wrappedProtocol.got, transport


def test_what_twisteds_own_wrapper_lacks() -> None:
    """If a check fails, `twisted.internet.endpoints`' haproxy wrapper may have become sufficient."""
    whole = b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n"
    assert by_twisted_alone(whole + b"it")[0] == b"it"
    assert by_twisted_alone(whole[:7], whole[7:] + b"it")[0] == b""  # in pieces
    assert by_twisted_alone(b"PROXY UNKNOWN\r\nit")[0] == b""
    assert by_twisted_alone(b"PROXY TCP4 evil 5.6.7.8 1 2\r\nit")[0] == b"it"
    assert by_twisted_alone(b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\nit")[0] == b"it"
    with pytest.raises(ValueError):
        by_twisted_alone(b"PROXY TCP4 1.2.3.4 5.6.7.8 x y\r\nit")


def test_a_header_is_accepted_from_trusted_peers_only() -> None:
    log = Log()
    for accepts, taken in ((lambda peer: peer == "192.168.1.1", True), (lambda peer: False, False)):
        factory = ProxyFactory(Factory.forProtocol(Behind), accepts, lambda address: False, log)
        wrapper, transport = factory.buildProtocol(None), StringTransport()
        wrapper.makeConnection(transport)
        wrapper.dataReceived(b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\nit")
        assert (wrapper.wrappedProtocol.got == b"it") is taken
        assert transport.disconnecting is not taken
        wrapper.connectionLost(Failure(ConnectionDone()))
    [entry] = log.named("http_dropped")
    assert entry["ip"] == "192.168.1.1" and "RELAY_TRUSTED_PROXIES" in entry["message"]


@pytest.mark.parametrize(
    "local", [IPv4Address("TCP", "127.0.0.1", 9), IPv6Address("TCP", "::1", 9), UNIXAddress(None)]
)
@pytest.mark.parametrize("header", TAKEN)
def test_an_untrusted_peer_of_this_machine_names_no_address(header: bytes, local: Any) -> None:
    log = Log()
    factory = ProxyFactory(Factory.forProtocol(Behind), lambda peer: False, lambda address: False, log)
    wrapper, transport = factory.buildProtocol(None), StringTransport(peerAddress=local)
    wrapper.makeConnection(transport)
    wrapper.dataReceived(header + b"it")
    taken = TAKEN[header] == "192.168.1.1"  # the header names none
    assert (wrapper.wrappedProtocol.got == b"it") is taken
    assert transport.disconnecting is not taken
    assert len(log.named("http_dropped")) == (not taken)
