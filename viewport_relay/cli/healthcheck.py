"""`viewport-relay healthcheck`: asks the relay of this machine or container for /health, as its own settings say.

It reads the relay's settings: host, port or endpoint, TLS, PROXY protocol. It connects to the listener directly: HTTP
proxies of the environment are not used, DNS is used for a listen host name only, certificates are not checked.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Final

import click
from attrs import evolve, frozen

from viewport_relay.config import Config, ConfigError, bracketed, load

#: Most bytes that are read of the answer.
_ANSWER_BYTES: Final = 65_536

#: PROXY protocol, version 1: the connection is the sender's own (section 2.1 of the specification).
_PROXY_HEADER: Final = b"PROXY UNKNOWN\r\n"

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Unhealthy(Exception):
    """The relay is not healthy; the text says what it answered."""


@frozen
class Listener:
    """The address of the relay's listener; `path` for a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    proxied: bool = False

    def __str__(self) -> str:
        return self.path or bracketed(self.host, self.port)


def listener(config: Config) -> Listener:
    """The relay's public listener. Raises Unhealthy when the settings do not determine it."""
    found = Listener(
        config.listen_host, config.listen_port, tls=config.serves_tls, proxied=config.proxy_protocol
    )
    if config.listen_endpoint is not None:
        found = _described(config.listen_endpoint, found)
    if not found.path and found.port == 0:
        raise Unhealthy(
            "the relay listens on any free port: set RELAY_LISTEN_PORT, or give --address HOST:PORT"
        )
    return evolve(found, host=_WILDCARDS.get(found.host, found.host))


def _described(description: str, plain: Listener) -> Listener:
    """The listener that a Twisted server endpoint string describes; `plain` is that of host and port.

    The address of a socket that systemd passes is set in its socket unit. It is assumed to be the relay's default, or
    RELAY_LISTEN_HOST and RELAY_LISTEN_PORT.
    """
    kind, *rest = (re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", description))
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    first = next((part for part in rest if "=" not in part), "")
    if kind == "haproxy":
        return _described(description.partition(":")[2], evolve(plain, proxied=True))
    if kind == "unix":
        return evolve(plain, path=named.get("address", first), tls=plain.tls)
    if kind in {"tcp", "tcp6", "ssl", "tls"}:
        port = named.get("port", first)
        if not port.isdigit():
            raise Unhealthy(f"RELAY_LISTEN_ENDPOINT={description} names no port")
        host = named.get("interface", "::" if kind == "tcp6" else "0.0.0.0")
        return evolve(plain, host=host, port=int(port), tls=plain.tls or kind in {"ssl", "tls"})
    return plain


def given_address(text: str, plain: Listener) -> Listener:
    """`plain` at another address: HOST:PORT, or unix:/path."""
    if text.startswith("unix:"):
        return evolve(plain, path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65_536:
        raise Unhealthy(f"--address {text}: HOST:PORT or unix:/path")
    return evolve(plain, host=host.strip("[]") or "127.0.0.1", port=int(port), path="")


def check(found: Listener, timeout: float) -> None:
    """Request /health; `timeout` bounds each step, seconds. Raises Unhealthy."""
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(_connect(found, timeout))
            if found.proxied:
                sock.sendall(_PROXY_HEADER)
            if found.tls:
                sock = stack.enter_context(_tls().wrap_socket(sock, server_hostname="localhost"))
            status, body = _get(sock)
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unhealthy(f"{found}: {why}") from None
    if status != 200:
        raise Unhealthy(f"{found}: /health answers {status}")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("ok") is not True or said.get("service") != "relay":
        raise Unhealthy(f"{found}: what answers is no relay")


def _connect(found: Listener, timeout: float) -> socket.socket:
    if not found.path:
        return socket.create_connection((found.host, found.port), timeout)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(found.path)
    except OSError:
        sock.close()
        raise
    return sock


def _tls() -> ssl.SSLContext:
    """A context without verification: another host name or an expired certificate does not make the process unhealthy."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _get(sock: socket.socket) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = sock
    connection.request("GET", "/health", headers={"Connection": "close"})
    answer = connection.getresponse()
    return answer.status, answer.read(_ANSWER_BYTES)


def examine(environ: Mapping[str, str], address: str | None, timeout: float) -> Listener:
    """Check the relay of these settings; returns the listener that answered. Raises Unhealthy.

    An `address` needs no settings, as in a shell beside a systemd unit: without them the relay is asked over plain HTTP.
    """
    plain = Listener()
    try:
        config = load(environ)
        plain = evolve(plain, tls=config.serves_tls, proxied=config.proxy_protocol)
        found = listener(config) if address is None else given_address(address, plain)
    except ConfigError as error:
        if address is None:
            raise Unhealthy("\n".join(error.errors)) from None
        found = given_address(address, plain)
    check(found, timeout)
    return found


@click.command(
    short_help="Ask the relay of this machine or container for /health; exit status 0 if it answers."
)
@click.option(
    "--address", metavar="HOST:PORT", help="Where it listens, if the settings do not tell (or unix:/path)."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Seconds for each step."
)
def healthcheck(address: str | None, timeout: float) -> None:
    """Ask the relay beside this command for /health, as the relay's own settings say where.

    Host and port, RELAY_LISTEN_ENDPOINT, TLS, PROXY protocol and Unix sockets are taken into account; proxies of the
    environment (http_proxy, ALL_PROXY) are not asked. Exit status 0: it answers; 1: it does not, and standard error
    says why.

    \b
      HEALTHCHECK CMD ["viewport-relay", "healthcheck"]
    """
    try:
        found = examine(os.environ, address, timeout)
    except Unhealthy as error:
        click.echo(f"unhealthy: {error}", err=True)
        raise SystemExit(1) from None
    click.echo(f"healthy: {found} answers")
