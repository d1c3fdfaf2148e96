"""The checks of `viewport-relay doctor` that concern this machine and Redis; the platform's are `platformchecks`.

A check returns findings, one line each. A check that fails raises nothing, and no check changes anything. No finding
holds a key, a token or a password.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from viewport_relay import descriptors
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redis import examine
from viewport_relay.cli import healthcheck
from viewport_relay.cli.platformchecks import key_in_clear
from viewport_relay.cli.probes import WARNING_DAYS, Finding, days_left, fail, names_host, ok, warn
from viewport_relay.config import BY_ATTRIBUTE, Config, ConfigError
from viewport_relay.wire.tls import ServerContext

#: Connections assumed when RELAY_MAX_TOTAL_CONNECTIONS is off.
CONNECTIONS_WITHOUT_LIMIT = 10_000


def setting_warning(sentence: str) -> Finding:
    """A finding for one warning of the settings loader."""
    return warn("settings", sentence, "see `viewport-relay config --all`")


def settings(config: Config) -> Iterator[Finding]:
    """Warnings of the settings loader, and secrets that are missing or sent unencrypted."""
    given = [name for name, source in config.sources.items() if source != "default" and name in BY_ATTRIBUTE]
    yield ok("settings", f"{len(given)} set, all of a proper form; mode {config.mode}")
    for sentence in config.warnings:
        yield setting_warning(sentence)
    if config.internal_key is None:
        fix = "set it to the platform's value, or RELAY_INTERNAL_KEY_FILE to a file with it"
        yield warn("RELAY_INTERNAL_KEY", "not set: the platform is asked without a key", fix)
    elif key_in_clear(config):
        fix = "let RELAY_VALIDATE_URL begin with https:// unless the way there is private"
        yield warn("RELAY_INTERNAL_KEY", "goes to the platform in clear text", fix)
    if not config.admin_tokens:
        fix = "set it to 16 random characters or more, for example: openssl rand -base64 32"
        yield warn("RELAY_ADMIN_TOKEN", "not set: /logs, /state and /metrics are off", fix)


def origins(config: Config) -> Iterator[Finding]:
    """The browser origins in force, as compared with the Origin header."""
    if config.allowed_origins:
        yield ok("RELAY_ALLOWED_ORIGINS", f"browsers may connect from {', '.join(config.allowed_origins)}")
    else:
        yield ok("RELAY_ALLOWED_ORIGINS", "not set: browsers may connect from any origin")


def state_folder(config: Config) -> Iterator[Finding]:
    """Whether RELAY_STATE_DIR can be written."""
    if config.state_dir is None:
        return
    folder = Path(config.state_dir)
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        yield ok("RELAY_STATE_DIR", f"{folder} can be written")
    else:
        why = "cannot be written" if folder.is_dir() else "is no folder"
        yield fail("RELAY_STATE_DIR", f"{folder} {why}", "make a folder of the relay's user, mode 0700")


# -- Redis -------------------------------------------------------------------------------------------------


async def redis(reactor: Any, config: Config, timeout: float) -> list[Finding]:
    """Each command that the relay sends to Redis, as the relay's own user; `timeout` is seconds for each step."""
    if config.backplane_mode != "redis":
        return []
    fix = "check that Redis runs, and RELAY_REDIS_URL: host, port, password, rediss:// for TLS"
    try:
        if config.redis_sentinels:
            fix = "check RELAY_REDIS_SENTINELS and the settings beside it, and that the primary runs"
        found = await examine(reactor, config, timeout)
    except ConfigError as error:
        return [fail("Redis", sentence, "correct it") for sentence in error.errors]
    except CarrierFailed as error:
        return [fail("Redis", error.why, fix)]
    version = f"Redis {found.version}" if found.version else "a Redis that does not tell its version"
    if not found.refused:
        commands = ", ".join(found.commands)
        return [ok("Redis", f"{found.server} answers PING: {version}, which carries out {commands}")]
    fix = "the relay needs every command that it tries: see docs/topics/backplane.md"
    return [fail("Redis", f"{version}: {refused}", fix) for refused in found.refused]


# -- this machine ------------------------------------------------------------------------------------------


def port(config: Config, timeout: float) -> Iterator[Finding]:
    """Whether the listen port is free, or a relay answers there within `timeout` seconds. Blocks."""
    if config.listen_endpoint is not None:
        yield ok("port", f"not tried: {config.listen_endpoint} is opened by Twisted")
        return
    host, number = config.listen_host, config.listen_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host.strip("[]"), number))
            sock.listen(1)
    except OSError as error:
        yield _port_trouble(config, timeout, error)
        return
    yield ok("port", f"{host} port {number} is free" if number else f"{host}: any free port will be taken")


def _port_trouble(config: Config, timeout: float, error: OSError) -> Finding:
    where = f"{config.listen_host} port {config.listen_port}"
    if error.errno == errno.EADDRINUSE:
        if _relay_answers(config, timeout):
            return ok("port", f"a relay answers on {where} already")
        fix = f"stop it (ss -ltnp 'sport = :{config.listen_port}' names it), or set RELAY_LISTEN_PORT"
        return fail("port", f"{where} is in use by another program", fix)
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = "use a port from 1024 on, or grant CAP_NET_BIND_SERVICE"
        return fail("port", f"{where} needs privileges", fix)
    fix = "RELAY_LISTEN_HOST must be an address of this machine; 0.0.0.0 is all of them"
    return fail("port", f"{where} cannot be opened: {error.strerror}", fix)


def _relay_answers(config: Config, timeout: float) -> bool:
    try:
        healthcheck.check(healthcheck.listener(config), timeout)
    except healthcheck.Unhealthy:
        return False
    return True


def open_files(config: Config) -> Iterator[Finding]:
    """The limit on open files against the configured number of connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield ok("open files", "no limit")
        return
    peers = config.max_total_connections
    needed = (peers or CONNECTIONS_WITHOUT_LIMIT) + descriptors.KEPT_BACK + descriptors.HTTP_KEPT
    fix = f"allow {needed} or more (LimitNOFILE= of the unit, docker run --ulimit nofile={needed})"
    if soft >= needed:
        yield ok("open files", f"{soft} may be open, {needed} are enough")
    elif peers:
        found = f"{soft} may be open, RELAY_MAX_TOTAL_CONNECTIONS={peers} needs {needed}"
        yield fail("open files", found, fix + ", or lower RELAY_MAX_TOTAL_CONNECTIONS")
    else:
        yield warn("open files", f"{soft} may be open, and connections have no limit", fix)


def own_certificate(config: Config) -> Iterator[Finding]:
    """The relay's certificate: matches its key, is valid now, is for the public host."""
    cert, key = config.tls_cert_path, config.tls_key_path
    if not config.serves_tls or cert is None or key is None:
        return
    try:
        ServerContext(cert, key)
        certificate = x509.load_pem_x509_certificate(Path(cert).read_bytes())
    except (ConfigError, OSError, ValueError) as error:
        fix = (
            "RELAY_TLS_CERT_PATH holds the chain, leaf first, RELAY_TLS_KEY_PATH its key without a passphrase"
        )
        yield fail("certificate", f"cannot be used: {error}", fix)
        return
    days = days_left(certificate)
    if days < 0:
        yield fail("certificate", f"ended {-days:.0f} days ago", "renew it")
    elif days < WARNING_DAYS:
        yield warn("certificate", f"ends in {days:.0f} days", "renew it")
    else:
        yield ok("certificate", f"fits its key, {days:.0f} days left")
    host = urlsplit(config.public_ws_base_url).hostname or ""
    if config.sources.get("public_ws_base_url") != "default" and not names_host(certificate, host):
        fix = "peers of RELAY_PUBLIC_WS_BASE_URL will refuse it: get one that names the host"
        yield warn("certificate", f"does not name {host}", fix)
