"""Client addresses in a relay process' log: X-Forwarded-For, PROXY protocol, IPv6."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.drill.certificates import Identity
from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.peers import Upgrade, answer_on, dial, head, target_of
from tests.integration.admission.relays import Relay

Start = Callable[..., Relay]


def v1(source: str, destination: str = "192.0.2.1") -> bytes:
    kind = "TCP6" if ":" in source else "TCP4"
    destination = "2001:db8::1" if ":" in source else destination
    return f"PROXY {kind} {source} {destination} 40000 443\r\n".encode()


def v2(source: str) -> bytes:
    address = ipaddress.ip_address(source)
    packed = address.packed + (b"\x00" * (len(address.packed) - 1) + b"\x01") + struct.pack("!HH", 40000, 443)
    family = 0x11 if address.version == 4 else 0x21
    return b"\r\n\r\n\x00\r\nQUIT\n" + bytes([0x21, family]) + struct.pack("!H", len(packed)) + packed


@pytest.fixture(scope="module")
def proxied(platform: ControlPlane) -> Iterator[Relay]:
    """A relay that trusts proxies in 127.9/16 and 10/8."""
    made = Relay(
        {
            **platform.settings(),
            "RELAY_MODE": "staging",
            "RELAY_TRUSTED_PROXIES": "127.9.0.0/16, 10.0.0.0/8, not-an-address, 300.1.1.1/8,::ffff:198.51.100.7",
            "RELAY_RATE_LIMIT_PER_IP": "3",
        }
    )
    yield made.ready()
    assert made.stop() == 0
    assert made.complained == []


def test_an_entry_that_does_not_parse_is_skipped_with_a_warning(proxied: Relay) -> None:
    warnings = [
        e["message"] for e in proxied.lines() if e["event"] == "config_warning" and "PROXIES" in e["message"]
    ]
    assert warnings == [
        "RELAY_TRUSTED_PROXIES: 'not-an-address' is no IP address or CIDR: skipped",
        "RELAY_TRUSTED_PROXIES: '300.1.1.1/8' is no IP address or CIDR: skipped",
    ]


FORWARDED: dict[str, tuple[list[str], str]] = {
    "the last one": (["1.2.3.4, 203.0.113.1"], "203.0.113.1"),
    "past trusted proxies": (["1.2.3.4, 203.0.113.2, 10.1.1.1,10.2.2.2"], "203.0.113.2"),
    "over two lines": (["203.0.113.3", "10.1.1.1"], "203.0.113.3"),
    "an invalid part ends the search": (["203.0.113.9, unknown, 10.1.1.1"], "10.1.1.1"),
    "a port is left out": (["203.0.113.9:4711"], "203.0.113.9"),
    "IPv6 in brackets, with a port": (["[2001:db8::18]:4711"], "2001:db8::18"),
    "only trusted proxies": (["10.1.1.2, 10.1.1.3"], "10.1.1.2"),
    "an empty line": ([""], "127.9.0.1"),
    "none": ([], "127.9.0.1"),
    "IPv4-mapped": (["::ffff:203.0.113.5"], "203.0.113.5"),
    "trusted as IPv4-mapped": (["203.0.113.6, 198.51.100.7"], "203.0.113.6"),
    "IPv6": (["2001:DB8:0::17"], "2001:db8::17"),
}


def refused_ip(relay: Relay, workspace: str, forwarded: list[str], **dialling: str) -> str:
    """The client address in the log entry of an upgrade without a token."""
    connection = dial(relay.port, **dialling)  # type: ignore[arg-type]
    lines = "".join(f"X-Forwarded-For: {line}\r\n" for line in forwarded).encode()
    connection.sendall(head(target_of("client", workspace))[:-2] + lines + b"\r\n")
    refused = answer_on(connection)
    assert refused.reason == "TOKEN_MISSING"
    ip: str = relay.entry(connectionId=refused.json["connectionId"])["details"]["ip"]
    return ip


@pytest.mark.parametrize("name", FORWARDED)
def test_forwarded_for_of_a_trusted_proxy(proxied: Relay, workspace: str, name: str) -> None:
    forwarded, ip = FORWARDED[name]
    assert refused_ip(proxied, workspace, forwarded, source="127.9.0.1") == ip


def test_forwarded_for_of_an_untrusted_peer_is_ignored(proxied: Relay, workspace: str) -> None:
    assert refused_ip(proxied, workspace, ["203.0.113.1"], source="127.8.0.1") == "127.8.0.1"


def test_ipv6_is_counted_by_its_64(proxied: Relay, workspace: str) -> None:
    def knock(address: str) -> str | None:
        connection = dial(proxied.port, source="127.9.0.2")
        connection.sendall(head(target_of("client", workspace), {"X-Forwarded-For": address}))
        return answer_on(connection).reason

    assert [knock(f"2001:db8:1:2:{n}::{n}") for n in range(1, 4)] == ["TOKEN_MISSING"] * 3
    assert knock("2001:db8:1:2:ffff::1") == "RATE_LIMIT_EXCEEDED"
    assert knock("2001:db8:1:3::1") == "TOKEN_MISSING", "another /64 is another subscriber"
    assert [knock(f"203.0.113.{n}") for n in range(70, 74)] == ["TOKEN_MISSING"] * 4, (
        "IPv4 is counted as it is"
    )


def test_a_relay_that_listens_on_ipv6(platform: ControlPlane, start: Start, workspace: str) -> None:
    relay = start(
        {**platform.settings(), "RELAY_MODE": "staging", "RELAY_RATE_LIMIT_PER_IP": "2"}, host="::1"
    ).ready()
    with relay.upgrade("client", workspace, platform.token("client", workspace)) as peer:
        assert peer.admitted
        assert relay.entry(event="join", workspaceId=workspace)["details"]["ip"] == "::1"
    assert relay.upgrade("client", workspace, None).reason == "TOKEN_MISSING"
    assert relay.upgrade("client", workspace, None).reason == "RATE_LIMIT_EXCEEDED"


# -- PROXY protocol ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def balanced(
    request: pytest.FixtureRequest, platform: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    """A relay behind a load balancer with PROXY protocol, trusted for X-Forwarded-For of 10/8."""
    settings = {
        **platform.settings(),
        "RELAY_MODE": "staging",
        "RELAY_PROXY_PROTOCOL": "1",
        "RELAY_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1",
    }
    if request.param:
        files = Identity.self_signed("relay", "localhost").write(tmp_path_factory.mktemp("tls"), "relay")
        settings |= {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    made = Relay(settings, tls=request.param, preamble=v1("127.0.0.9"))
    yield made.ready()
    assert made.stop() == 0
    assert made.complained == []
    assert [line for line in made.lines() if line["level"] == "error"] == []


#: Preamble, X-Forwarded-For, client address. A preamble without an address leaves the balancer as the peer; the relay
#: trusts it, so X-Forwarded-For counts.
PREAMBLES = {
    "v1, IPv4": (v1("203.0.113.7"), "203.0.113.7"),
    "v1, IPv6": (v1("2001:db8::7"), "2001:db8::7"),
    "v1, unknown": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "192.0.2.99"),
    "v1, UNKNOWN without addresses": (b"PROXY UNKNOWN\r\n", "192.0.2.99"),
    "v2, IPv4": (v2("203.0.113.8"), "203.0.113.8"),
    "v2, IPv6": (v2("2001:db8::8"), "2001:db8::8"),
    "v2, local": (b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "192.0.2.99"),
}


def through(relay: Relay, platform: ControlPlane, workspace: str, preamble: bytes) -> Upgrade:
    token = platform.token("client", workspace)
    return relay.upgrade(
        "client", workspace, token, preamble=preamble, headers={"X-Forwarded-For": "192.0.2.99"}
    )


@pytest.mark.parametrize("name", PREAMBLES)
def test_proxy_protocol(balanced: Relay, platform: ControlPlane, workspace: str, name: str) -> None:
    preamble, ip = PREAMBLES[name]
    with through(balanced, platform, workspace, preamble) as peer:
        assert peer.admitted
        entry = balanced.entry(event="join", workspaceId=workspace)
        assert entry["details"]["ip"] == ip


def test_a_preamble_of_an_untrusted_address_is_dropped(balanced: Relay) -> None:
    # The relay aborts at once: the reset may reach any of these calls, the first one too.
    with contextlib.suppress(ConnectionError), dial(balanced.port, source="127.9.0.9") as stranger:
        stranger.sendall(v1("203.0.113.7") + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stranger.recv(1000) == b""
    entry = balanced.entry(event="http_dropped", ip="127.9.0.9")
    assert "RELAY_TRUSTED_PROXIES" in entry["message"]


def test_forwarded_for_behind_proxy_protocol(balanced: Relay, platform: ControlPlane, workspace: str) -> None:
    with through(balanced, platform, workspace, v2("10.7.7.7")) as peer:
        assert peer.admitted
    assert balanced.entry(event="join", workspaceId=workspace)["details"]["ip"] == "192.0.2.99"


@pytest.mark.parametrize(
    "preamble",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 x y\r\n",
        b"PROXY TCP4 \xff 5.6.7.8 1 2\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n\xff\xff\xff\xff" + b"x" * 64,
        b"PROXY " + b"x" * 200,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 64,
    ],
)
def test_a_connection_without_a_preamble_is_dropped(balanced: Relay, preamble: bytes) -> None:
    connection = socket.create_connection(("127.0.0.1", balanced.port), 5)
    connection.sendall(preamble)
    connection.settimeout(5)
    try:
        assert connection.recv(1024) == b""
    except ConnectionResetError:
        pass
    assert balanced.get("/health")[0] == 200
    assert not any("Traceback" in line for line in balanced.written)


def test_many_preambles_leave_nothing_open(balanced: Relay, platform: ControlPlane, workspace: str) -> None:
    for number in range(3):
        through(balanced, platform, f"{workspace}-{number}", v2(f"203.0.113.{number}")).close()
    name = 'relay_connections_total{role="client"}'
    until(lambda: balanced.metrics()[name] == 0, what="every connection is gone")
