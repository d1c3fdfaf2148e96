"""Defaults that depend on other settings, and the rules between settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from viewport_relay.config.cores import choose
from viewport_relay.config.network import HTTP_PROXY, NO_PROXY, bracketed, is_loopback, unreadable_networks
from viewport_relay.config.settings import BY_ATTRIBUTE, VARIABLES
from viewport_relay.config.values import AUTO_WORKERS
from viewport_relay.config.weak import MIN_SECRET_CHARS, weakness

#: Secrets that another server's operator chooses: their strength is not the relay's to judge.
_PASSWORDS_OF_OTHERS: Final = frozenset(
    {"redis_url", "redis_sentinel_password", "server_client_key_passphrase", "http_proxy"}
)

#: Files that must be readable at start; those of the second group must not be readable by other users.
_PUBLIC_FILES: Final = (
    "tls_cert_path",
    "server_ca_cert_path",
    "server_client_cert_path",
    "redis_ca_cert_path",
    "redis_sentinel_ca_cert_path",
)
_KEY_FILES: Final = ("tls_key_path", "server_client_key_path")


class Read(Protocol):
    """What the loader has read so far; the rules fill in values and add sentences."""

    environ: Mapping[str, str]
    values: dict[str, Any]
    texts: dict[str, str]
    problems: list[str]
    warnings: list[str]
    notes: list[str]

    def given(self, attribute: str) -> bool: ...

    def exposed(self, name: str, path: str, *, private_key: bool) -> None: ...


def apply_rules(read: Read, *, dev_platform: bool) -> None:
    """Fill in the defaults that depend on other settings, then judge the settings against each other."""
    v = read.values
    if v["mode"] is None:
        v["mode"] = "dev" if is_loopback(v["listen_host"]) and not v["listen_endpoint"] else "prod"
    if not read.given("max_pending_bytes"):
        # One message that is longer than the queue would close every client that it is sent to.
        v["max_pending_bytes"] = max(4 << 20, 4 * v["frame_max_bytes"])
    _urls(read, dev_platform)
    for word in unreadable_networks(read.texts.get("trusted_proxies", "")):
        read.warnings.append(f"RELAY_TRUSTED_PROXIES: {word[:64]!r} is no IP address or CIDR: skipped")
    endpoint = v["listen_endpoint"] or ""
    if (endpoint.startswith("unix:") or "domain=UNIX" in endpoint) and not v["trusted_proxies"].unix:
        read.warnings.append(
            f"RELAY_LISTEN_ENDPOINT={endpoint[:64]}: peers on a Unix socket have no address, so all of them share one rate "
            "and one cap: let the proxy in front set X-Forwarded-For, and set RELAY_TRUSTED_PROXIES=unix:"
        )
    for name in ("health_verbose", "state_include_client_ids"):
        if v[name] is None:
            v[name] = v["mode"] == "dev"
    if v["relay_id"] is None:
        v["relay_id"] = _default_relay_id()
    if v["public_ws_base_url"] is None:
        scheme = "wss" if v["tls_cert_path"] and v["tls"] != "0" else "ws"
        v["public_ws_base_url"] = f"{scheme}://{bracketed(v['listen_host'], v['listen_port'])}"
    if v["state_dir"] is None:
        v["state_dir"] = read.environ.get("STATE_DIRECTORY", "").split(":")[0] or None
    _workers(read)
    _fleet(read)
    _tls(read)
    _proxy(read)
    _mode(read, dev_platform)


def _default_relay_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:64] or "relay"
    return f"{host}-{os.urandom(4).hex()}"


def _urls(read: Read, dev_platform: bool) -> None:
    v = read.values
    if v["server_url"] is None and v["validate_url"] is not None:
        parts = urlsplit(v["validate_url"])
        v["server_url"] = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    base = v["server_url"]
    for attribute, path in (
        ("jwks_url", "/api/.well-known/jwks.json"),
        ("validate_url", "/api/runtime/internal/relay/validate"),
    ):
        if v[attribute] is None and base is not None:
            v[attribute] = base + path
        elif v[attribute] is None:
            v[attribute] = ""
            if not dev_platform:
                read.problems.append(
                    f"{BY_ATTRIBUTE[attribute].name} is not set: set it, or SERVER_URL (or start with --dev)"
                )
    v["server_url"] = base or ""


def _workers(read: Read) -> None:
    v = read.values
    if v["workers"] == AUTO_WORKERS:
        choice = choose()
        v["workers"] = choice.workers
        read.notes.append(choice.why)
    if v["workers"] == 1:
        return
    if (v["listen_endpoint"] or "").partition(":")[0] in {"ssl", "tls"}:
        read.problems.append(
            f"RELAY_WORKERS={v['workers']} and an endpoint of kind ssl cannot go together, for the workers end TLS: use a "
            "tcp endpoint, RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH"
        )


def _fleet(read: Read) -> None:
    v = read.values
    several = v["backplane_mode"] != "single"
    if v["redis_url"] is None:
        v["redis_url"] = "redis://127.0.0.1:6379"
    if v["redis_sentinel_username"] and v["redis_sentinel_password"] is None:
        read.problems.append("RELAY_REDIS_SENTINEL_USERNAME is set: set RELAY_REDIS_SENTINEL_PASSWORD too")
    if v["bus_enabled"] is None:
        v["bus_enabled"] = v["bus_hmac_key"] is not None
    elif v["bus_enabled"] and v["bus_hmac_key"] is None:
        read.problems.append("RELAY_BUS_ENABLED is on: set RELAY_BUS_HMAC_KEY, the same on every relay")
    if v["presence_signatures"] == "require" and v["bus_hmac_key"] is None:
        read.problems.append(
            "RELAY_PRESENCE_SIGNATURES=require: set RELAY_BUS_HMAC_KEY, the same on every relay"
        )
    if v["client_redirect_enabled"] is None:
        v["client_redirect_enabled"] = several
    if not several:
        return
    if v["internal_key"] is None:
        read.problems.append(f"RELAY_BACKPLANE_MODE={v['backplane_mode']} needs RELAY_INTERNAL_KEY")
    if read.given("public_ws_base_url"):
        return
    if v["client_redirect_enabled"] and not is_loopback(v["listen_host"]):
        read.warnings.append(
            "RELAY_PUBLIC_WS_BASE_URL is not set: other relays would send clients to "
            f"{v['public_ws_base_url']}; set it to where peers reach this relay"
        )
    if v["listen_port"] == 0 and not v["listen_endpoint"]:
        read.problems.append(
            f"RELAY_BACKPLANE_MODE={v['backplane_mode']} and RELAY_LISTEN_PORT=0 need RELAY_PUBLIC_WS_BASE_URL: "
            "other relays must know where to send clients"
        )


def _tls(read: Read) -> None:
    v = read.values
    pairs = [("RELAY_TLS_CERT_PATH", v["tls_cert_path"]), ("RELAY_TLS_KEY_PATH", v["tls_key_path"])]
    if v["tls"] == "1" or (v["tls"] == "auto" and any(path for _, path in pairs)):
        for name, path in pairs:
            if not path:
                read.problems.append(
                    f"{name} is not set: TLS needs both certificate and key (neither: no TLS)"
                )
    if v["tls"] == "1" and v["tls_termination"] == "platform":
        read.problems.append("RELAY_TLS=1 and RELAY_TLS_TERMINATION=platform contradict each other")
    if v["server_mtls"] is None:
        v["server_mtls"] = v["server_client_cert_path"] is not None
    if v["server_mtls"]:
        for attribute in ("server_client_cert_path", "server_client_key_path"):
            if not v[attribute]:
                read.problems.append(
                    f"mutual TLS with the platform is on: set {BY_ATTRIBUTE[attribute].name}"
                )
    for attribute in (*_PUBLIC_FILES, *_KEY_FILES):
        name, path = BY_ATTRIBUTE[attribute].name, v[attribute]
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            read.problems.append(f"{name}: got {path!r}, takes a readable file")
        elif attribute in _KEY_FILES:
            read.exposed(name, path, private_key=True)


def _proxy(read: Read) -> None:
    """What other programs read is read too: HTTPS_PROXY and NO_PROXY, in capitals or not."""
    v, environ = read.values, read.environ
    for name in ("HTTPS_PROXY", "https_proxy"):
        text = environ.get(name, "").strip()
        if v["http_proxy"] is not None or not text:
            continue
        try:
            v["http_proxy"] = HTTP_PROXY(text)
            read.notes.append(f"{name} is set: https:// calls to the platform go through that proxy")
        except ValueError:  # its value is not shown: it may hold a password
            read.warnings.append(
                f"{name} cannot be used for calls to the platform: set RELAY_HTTP_PROXY=http://host:port"
            )
    if not v["no_proxy"]:
        v["no_proxy"] = NO_PROXY(environ.get("NO_PROXY", "") or environ.get("no_proxy", ""))
    if read.given("http_proxy"):
        for attribute in ("jwks_url", "validate_url"):
            if v[attribute].startswith("http://"):
                read.warnings.append(
                    f"{BY_ATTRIBUTE[attribute].name} is http://: it is asked without RELAY_HTTP_PROXY, which is for https://"
                )


def _mode(read: Read, dev_platform: bool) -> None:
    v = read.values
    prod = v["mode"] == "prod"
    for variable in VARIABLES:
        value = v[variable.attribute]
        if not variable.secret or value is None or variable.attribute in _PASSWORDS_OF_OTHERS:
            continue
        secrets = value if isinstance(value, tuple) else (value,)
        weak = next((found for secret in secrets if (found := weakness(secret)) is not None), None)
        if weak is not None:
            sentence = f"{variable.name} is {weak}: use at least {MIN_SECRET_CHARS} random characters"
            (read.problems if prod else read.warnings).append(sentence)
    if not prod:
        return
    if (
        v["admin_listen"] is not None
        and not is_loopback(v["admin_listen"][0])
        and not _tls_in_front_or_here(v)
    ):
        host, port = v["admin_listen"]
        read.problems.append(
            f"RELAY_ADMIN_LISTEN={bracketed(host, port)} would carry admin tokens in clear text: listen on 127.0.0.1, set "
            "RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH, or RELAY_TLS_TERMINATION=platform where TLS ends in front"
        )
    if dev_platform:
        read.problems.append("--dev starts the dev platform, which RELAY_MODE=prod never takes")
    if not v["server_tls_verify"]:
        read.warnings.append("RELAY_SERVER_TLS_VERIFY is off: an attacker on the network can admit peers")
    if v["internal_key"] is None and not dev_platform:
        read.warnings.append(
            "RELAY_INTERNAL_KEY is not set: the platform cannot tell this relay from a stranger; set the platform's value"
        )
    for attribute in ("jwks_url", "validate_url"):
        parts = urlsplit(v[attribute])
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            read.warnings.append(
                f"{BY_ATTRIBUTE[attribute].name} is http://: whoever is on the way can admit peers; use https://"
            )


def _tls_in_front_or_here(v: Mapping[str, Any]) -> bool:
    return v["tls_termination"] == "platform" or bool(v["tls_cert_path"] and v["tls"] != "0")
