"""Client addresses behind trusted and untrusted proxies."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.admission.addresses import UNIX_PEER, TrustedProxies, counted_as, parse_address
from viewport_relay.config import parse_network

NETWORKS = tuple(parse_network(text) for text in ("10.0.0.0/8", "127.0.0.1", "fd00::/8"))
TRUSTED = TrustedProxies(NETWORKS)

WALKS: list[tuple[str, list[str], str]] = [
    ("203.0.113.7", [], "203.0.113.7"),
    ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # an untrusted peer: its header is ignored
    ("10.0.0.1", [], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
    ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
    ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
    ("10.0.0.1", ["1.1.1.1", "198.51.100.1,10.2.3.4 ", "\t127.0.0.1"], "198.51.100.1"),
    ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),  # every hop is a trusted proxy
    ("10.0.0.1", ["garbage"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1, garbage"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1, garbage, 10.2.2.2"], "10.2.2.2"),
    ("10.0.0.1", [""], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1, "], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1:55"], "198.51.100.1"),
    ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
    ("10.0.0.1", ["[2001:db8::1]:80"], "2001:db8::1"),
    ("10.0.0.1", ["1.1.1.1, 198.51.100.1:55, [fd00::9]:443"], "198.51.100.1"),
    ("10.0.0.1", ["[2001:db8::1"], "10.0.0.1"),
    ("10.0.0.1", ["[2001:db8::1]x"], "10.0.0.1"),
    ("10.0.0.1", ["[2001:db8::1]:http"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1:http"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.1:123456"], "10.0.0.1"),
    ("10.0.0.1", [":80"], "10.0.0.1"),
    ("10.0.0.1", ["unknown"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.01"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100"], "10.0.0.1"),
    ("10.0.0.1", ["fe80::1%eth0"], "10.0.0.1"),
    ("10.0.0.1", ["198.51.100.0/24"], "10.0.0.1"),
    ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
    ("fd00::5", ["2001:db8::1"], "2001:db8::1"),
    ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
    ("::ffff:203.0.113.7", ["1.1.1.1"], "203.0.113.7"),
    ("10.0.0.1", ["1.1.1.1, ::ffff:10.9.9.9"], "1.1.1.1"),
    ("10.0.0.1", ["1.1.1.1," + "10.0.0.2," * 40 + "10.0.0.3"], "10.0.0.2"),  # the number of hops is bounded
    ("", ["1.1.1.1"], ""),
    ("/run/relay.sock", ["1.1.1.1"], "/run/relay.sock"),
]


@pytest.mark.parametrize("peer,values,client", WALKS)
def test_client_addresses(peer: str, values: list[str], client: str) -> None:
    assert TRUSTED.client(peer, values) == client


def test_a_peer_on_a_unix_socket_is_a_proxy_if_configured() -> None:
    named = TrustedProxies(NETWORKS, unix=True)
    assert named.client(UNIX_PEER, ["198.51.100.1, 10.0.0.1"]) == "198.51.100.1"
    assert named.client(UNIX_PEER, []) == named.client(UNIX_PEER, ["junk"]) == UNIX_PEER
    assert TRUSTED.client(UNIX_PEER, ["198.51.100.1"]) == UNIX_PEER
    assert named.trusts(UNIX_PEER) and not TRUSTED.trusts(UNIX_PEER) and not TrustedProxies()


@pytest.mark.parametrize(
    "address,key",
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("somewhere", "somewhere"),
    ],
)
def test_what_an_address_is_counted_as(address: str, key: str) -> None:
    assert counted_as(address) == key


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_header_gives_an_address(values: list[str]) -> None:
    assert parse_address(TRUSTED.client("10.0.0.1", values)) is not None


@given(st.ip_addresses(), st.lists(st.ip_addresses().map(str), max_size=4))
def test_a_forwarded_header_of_the_client_is_ignored(
    real: ipaddress.IPv4Address | ipaddress.IPv6Address, forged: list[str]
) -> None:
    if parse_address(str(real)) is None or any(parse_address(str(real)) in network for network in NETWORKS):
        return
    chain = ", ".join([*forged, str(real)])
    assert TRUSTED.client("10.0.0.1", [chain]) == str(parse_address(str(real)))
