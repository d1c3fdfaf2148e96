"""The client's address: that of the socket's other end, or what trusted proxies forward. No I/O.

IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2) are the IPv4 address everywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from attrs import frozen
from twisted.internet.address import UNIXAddress

from viewport_relay.config import Config, Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Characters of the longest text that is an address (RFC 4291 section 2.2, with IPv4 at its end).
_LONGEST: Final = 45
#: Proxies that a walk passes at most.
HOPS_MAX: Final = 32

#: What stands for the address of a peer on a Unix-domain socket.
UNIX_PEER: Final = "unix"


def parse_address(text: str) -> Address | None:
    """An IPv4 or IPv6 address without port, brackets or zone; None for anything else."""
    return None if len(text) > _LONGEST else _parsed(text)


@lru_cache(maxsize=4096)  # one connection's address is parsed several times, and peers reconnect
def _parsed(text: str) -> Address | None:
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def peer_host(transport: Any) -> str:
    """The address of a connection's other end, UNIX_PEER on a Unix-domain socket, "unknown" without any."""
    peer = transport.getPeer()
    if isinstance(peer, UNIXAddress):
        return UNIX_PEER
    return str(getattr(peer, "host", None) or "unknown")


def parse_forwarded(text: str) -> Address | None:
    """An entry of X-Forwarded-For: an address, IPv6 also in brackets, with or without a port. None for anything else."""
    text = text.strip(" \t")
    host, port = text, ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        port = port[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    return parse_address(host)


@frozen
class TrustedProxies:
    """Peers whose X-Forwarded-For is believed (RELAY_TRUSTED_PROXIES): networks, and with `unix` Unix sockets."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def from_config(cls, config: Config) -> TrustedProxies:
        """The proxies of the settings."""
        return cls(config.trusted_proxies.networks, config.trusted_proxies.unix)

    def __bool__(self) -> bool:
        return bool(self.networks) or self.unix

    def trusts(self, peer: str) -> bool:
        """Whether the socket's peer is a trusted proxy."""
        if peer == UNIX_PEER:
            return self.unix
        address = parse_address(peer)
        return address is not None and _is_in(address, self.networks)

    def client(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """The client's address in its usual form.

        It is the socket's `peer`, unless that is trusted. Then `forwarded_for` (the values of X-Forwarded-For in
        order) is walked from the right to the first address that is not trusted. An entry that is no address ends the
        walk, and then, as when all are trusted, the last address that was passed stands. A peer that has no IP
        address is given back as it is.
        """
        if not forwarded_for or not self.trusts(peer):
            return _usual(peer)
        found = parse_address(peer)
        entries = ",".join(forwarded_for).rsplit(",", HOPS_MAX)
        for entry in reversed(entries[-HOPS_MAX:]):
            address = parse_forwarded(entry)
            if address is None:
                break
            found = address
            if not _is_in(address, self.networks):
                break
        return peer if found is None else str(found)


@lru_cache(maxsize=4096)
def _usual(text: str) -> str:
    address = parse_address(text)
    return text if address is None else str(address)


@lru_cache(maxsize=4096)
def counted_as(address: str) -> str:
    """The key under which limits count an address: IPv4 itself, IPv6 its /64, which is one subscriber's."""
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address if parsed is None else str(parsed)


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
