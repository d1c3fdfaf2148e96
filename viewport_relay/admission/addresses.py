"""Whose address a peer has: the socket's, or what trusted proxies say. No I/O.

IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2) are the IPv4 address everywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from viewport_relay.config import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Characters of the longest text that is an address (RFC 4291 section 2.2, with IPv4 at its end).
_LONGEST: Final = 45
#: Proxies that a walk passes at most.
HOPS_MAX: Final = 32


def parse_address(text: str) -> Address | None:
    """An IPv4 or IPv6 address without port, brackets or zone; None for anything else."""
    return None if len(text) > _LONGEST else _parsed(text)


@lru_cache(maxsize=4096)  # one connection's address is asked for several times, and peers come again
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


def client_address(peer_ip: str, forwarded_for: Sequence[str], trusted: tuple[Network, ...]) -> str:
    """The client's address in its usual form.

    It is the socket's peer, unless that is in `trusted`. Then `forwarded_for` (the values of X-Forwarded-For in
    order) is walked from the right to the first address that is not trusted. A part that is no address ends the
    walk, and then, as when all are trusted, the last address that was passed stands. A peer that has no IP
    address is given back as it is.
    """
    peer = parse_address(peer_ip) if forwarded_for else None
    if peer is None or not _is_in(peer, trusted):
        return _usual(peer_ip)
    parts = ",".join(forwarded_for).rsplit(",", HOPS_MAX)
    for part in reversed(parts[-HOPS_MAX:]):
        address = parse_address(part.strip(" \t"))
        if address is None:
            break
        peer = address
        if not _is_in(address, trusted):
            break
    return str(peer)


@lru_cache(maxsize=4096)
def _usual(text: str) -> str:
    address = parse_address(text)
    return text if address is None else str(address)


def is_trusted(peer_ip: str, trusted: tuple[Network, ...]) -> bool:
    """Whether the socket's peer is one of the trusted proxies."""
    address = parse_address(peer_ip)
    return address is not None and _is_in(address, trusted)


@lru_cache(maxsize=4096)
def counted_as(address: str) -> str:
    """What limits count an address as: IPv4 as it is, IPv6 by its /64, which is one subscriber's."""
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address if parsed is None else str(parsed)


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
