"""Kinds of value that name places in a network: HOST:PORT, listen hosts, browser origins, networks. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from attrs import frozen

from viewport_relay.config.values import Kind, Unsuitable, some

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_QUOTES: Final = "\"'`"
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_-]{1,63})*\.?")


def is_loopback(host: str) -> bool:
    """Whether a listen host is reachable from this machine only."""
    if host in {"localhost", "ip6-localhost"}:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_network(text: str) -> Network:
    """An IP or CIDR; IPv4-mapped IPv6 counts as IPv4. Raises ValueError."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return ipaddress.ip_network((mapped, network.prefixlen - 96), strict=False)
    return network


def bracketed(host: str, port: int) -> str:
    """HOST:PORT as URLs and logs write it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- HOST:PORT ---------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """A host and a port, as text HOST:PORT."""

    host: str
    port: int

    def __str__(self) -> str:
        return bracketed(*self)


def host_port(
    text: str, default_host: str | None, default_port: int | None, *, zero: bool = False
) -> Address:
    """HOST:PORT. A missing part takes its default, or is refused where that is None; `zero` allows port 0.

    An IPv6 address that has a port needs brackets. Raises Unsuitable.
    """
    example = f"{default_host or 'host.example'}:{default_port or 7782}"
    if "//" in text:
        raise Unsuitable(f"leave out the scheme: {example}")
    if "@" in text:
        raise Unsuitable(f"leave out user and password: {example}")
    if re.fullmatch(r":?[0-9]+", text) and default_host is not None:
        host, port = default_host, text.lstrip(":")
    elif match := re.fullmatch(r"\[([^\[\]]*)\](?::([0-9]*))?", text):
        host, port = match[1], match[2] or ""
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not port:
        if default_port is None:
            raise Unsuitable(f"the port is missing, as in {example}; an IPv6 address needs brackets")
        port = str(default_port)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not (0 if zero else 1) <= int(port) <= 65_535:
        raise Unsuitable(f"{port[:64]!r} is no port: HOST:PORT, as in {example}")
    return Address(_host(host, example), int(port))


def _host(host: str, example: str) -> str:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise Unsuitable(f"{host[:64]!r} is no IPv6 address") from None
        return host
    if host == "*":
        raise Unsuitable("all addresses of the machine are written 0.0.0.0 (IPv4) or [::] (IPv6)")
    if not _HOST_NAME.fullmatch(host):
        raise Unsuitable(f"{host[:64]!r} is no host name or address, as in {example}")
    return host


def _addresses(text: str) -> tuple[Address, ...]:
    return some(host_port(word, None, 26379) for word in words(text))


ADMIN_LISTEN = Kind(
    "HOST:PORT; a port alone is on 127.0.0.1", lambda text: host_port(text, "127.0.0.1", None, zero=True)
)
SENTINELS = Kind("a comma list of HOST:PORT (port 26379 if left out)", _addresses)


def _listen_host(text: str) -> str:
    if "//" in text or re.fullmatch(r"[^:]+:[0-9]+|\[.*\]:[0-9]+", text):
        raise Unsuitable("an address alone, such as 0.0.0.0; the port is RELAY_LISTEN_PORT's")
    return _host(text.strip("[]") if text.startswith("[") else text, "0.0.0.0")


LISTEN_HOST = Kind("an address or host name of this machine; 0.0.0.0 or :: for all", _listen_host)


def _http_proxy(text: str) -> str:
    if re.search(r"[^!-~]", text):
        raise ValueError
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise Unsuitable(f"{parts.scheme}:// proxies are not supported: http://host.example:3128")
    if not parts.hostname or parts.port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError
    return url.rstrip("/")


HTTP_PROXY = Kind("http://[user:password@]host:port", _http_proxy)


# -- lists -------------------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    """The words of a comma list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _list_of(read: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    """A list with commas, semicolons or white space between, quotes around words dropped, each word once."""

    def parse(text: str) -> tuple[str, ...]:
        inside = re.fullmatch(r"\s*\[([^\[\]]*)\]\s*", text)
        found = (word.strip(_QUOTES) for word in re.split(r"[,;\s]+", inside[1] if inside else text))
        return some(dict.fromkeys(read(word) for word in found if word))

    return parse


def _allowed_host(text: str) -> str:
    if "/" in text or "*" in text:
        raise Unsuitable(f"{text[:64]!r} is no host: write it as in relay.example, without scheme, path or *")
    host_port(text, None, 443)  # only a check
    return (text[1:-1] if text.endswith("]") else text).lower()


HOSTS = Kind("a comma list of host names", _list_of(_allowed_host))


def origin(text: str) -> str:
    """One browser origin as browsers send it (RFC 6454, section 6.1): lower case, no default port, no slash.

    Raises Unsuitable for what no browser ever sends.
    """
    if text in {"*", "all", "any"}:
        raise Unsuitable("any origin may connect when RELAY_ALLOWED_ORIGINS is not set: remove it")
    if text.lower() == "null":
        return "null"  # sandboxed frames and file:// pages
    got = repr(text[:64])
    try:
        parts = urlsplit(text)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode("ascii")
    except (ValueError, UnicodeError):
        raise Unsuitable(f"{got} is no origin: write it as in https://app.example") from None
    if not parts.scheme or "://" not in text:
        raise Unsuitable(f"{got} has no scheme: write https://{text.strip('/')[:64]}")
    if parts.scheme == "file":
        raise Unsuitable("pages of file:// send the origin null: write null")
    if "*" in host:
        raise Unsuitable(f"{got}: there are no wildcards, list each origin")
    if not host:
        raise Unsuitable(f"{got} has no host: write it as in https://app.example")
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise Unsuitable(f"{got}: an origin has no path, query or user: write {parts.scheme}://{host[:64]}")
    shown = f"[{host}]" if ":" in host else host
    given = port is not None and port != _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{shown}:{port}" if given else f"{parts.scheme}://{shown}"


ORIGINS = Kind("a comma list of browser origins, as in https://app.example", _list_of(origin))


#: The entry of RELAY_TRUSTED_PROXIES that stands for peers on a Unix-domain socket.
UNIX: Final = "unix:"


@frozen
class ProxyList:
    """RELAY_TRUSTED_PROXIES: networks, whether peers on a Unix-domain socket are trusted, and entries that do not parse.

    As text it is the comma list of what is trusted.
    """

    networks: tuple[Network, ...] = ()
    unix: bool = False
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ",".join([str(network) for network in self.networks] + [UNIX] * self.unix)


def _proxy_list(text: str) -> ProxyList:
    networks, skipped, unix = [], [], False
    for word in words(text):
        try:
            if word.lower() == UNIX:
                unix = True
            else:
                networks.append(parse_network(word))
        except ValueError:
            skipped.append(word)
    return ProxyList(tuple(networks), unix, tuple(skipped))


PROXIES = Kind("a comma list of IPs and CIDRs, and unix:", _proxy_list)

NO_PROXY = Kind("a comma list of host names, .suffixes, IPs and CIDRs", words)
