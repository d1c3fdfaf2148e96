"""Defaults that depend on other settings, and the rules between settings."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import urlsplit

from viewport_relay.config.cores import choose
from viewport_relay.config.files import read_file
from viewport_relay.config.network import HTTP_PROXY, NO_PROXY, bracketed, is_loopback
from viewport_relay.config.reading import Reading, without_user_info
from viewport_relay.config.security import check_security
from viewport_relay.config.settings import BY_ATTRIBUTE, VARIABLES
from viewport_relay.config.values import AUTO_WORKERS, FILE, KEY_FILE, Unsuitable

#: Arguments of Twisted's endpoint `ssl` that name files.
_FILES_OF_ENDPOINTS: Final = frozenset({"privateKey", "certKey", "extraCertChain", "dhParameters"})


def apply_rules(reading: Reading, *, dev_platform: bool) -> None:
    """Fill in the defaults that depend on other settings, then check the settings against each other."""
    _mode(reading)
    _queue(reading)
    _platform_urls(reading, dev_platform=dev_platform)
    _addresses_of_peers(reading)
    _own_names(reading)
    _workers(reading)
    _redis(reading)
    _bus(reading)
    _fleet(reading)
    _own_tls(reading)
    _mutual_tls(reading)
    _files(reading)
    _proxy(reading)
    check_security(reading, dev_platform=dev_platform)


def _mode(reading: Reading) -> None:
    """A relay that only this machine reaches is in mode dev, which shows more."""
    v = reading.values
    if v["mode"] is None:
        v["mode"] = "dev" if is_loopback(v["listen_host"]) and not v["listen_endpoint"] else "prod"
    for name in ("health_verbose", "state_include_client_ids"):
        if v[name] is None:
            v[name] = v["mode"] == "dev"


def _queue(reading: Reading) -> None:
    v = reading.values
    if not reading.given("max_pending_bytes"):
        v["max_pending_bytes"] = max(4 << 20, 4 * v["frame_max_bytes"])
    elif v["max_pending_bytes"] < v["frame_max_bytes"]:
        reading.warn(
            f"RELAY_MAX_PENDING_BYTES={v['max_pending_bytes']} is less than RELAY_FRAME_MAX_BYTES={v['frame_max_bytes']}: a "
            "message that is longer than the queue closes every client that it is sent to; remove the first"
        )


def _addresses_of_peers(reading: Reading) -> None:
    """Refuse or warn where a peer could choose its address; warn where all peers would share one."""
    v = reading.values
    proxies = v["trusted_proxies"]
    for word in proxies.skipped:
        shown = without_user_info(word)[:64]
        reading.warn(f"RELAY_TRUSTED_PROXIES: {shown!r} is no IP address or CIDR: skipped")
    if v["proxy_protocol"] and proxies.skipped and not (proxies.networks or proxies.unix):
        reading.error(
            "RELAY_TRUSTED_PROXIES has no usable entry, and RELAY_PROXY_PROTOCOL would take headers from every address: "
            "correct it, or remove it where only the load balancer reaches this port"
        )
    for network in proxies.networks:
        if network.prefixlen == 0:
            reading.warn(
                f"RELAY_TRUSTED_PROXIES={network} trusts every peer: each can claim any address and has no limit of its own; "
                "name the addresses of the proxies"
            )
    endpoint = v["listen_endpoint"] or ""
    if (endpoint.startswith("unix:") or "domain=UNIX" in endpoint) and not proxies.unix:
        reading.warn(
            f"RELAY_LISTEN_ENDPOINT={endpoint[:64]}: peers on a Unix socket have no address, so all of them share one rate "
            "and one cap: let the proxy in front set X-Forwarded-For, and set RELAY_TRUSTED_PROXIES=unix:"
        )


def _own_names(reading: Reading) -> None:
    """The relay's id, its URL for peers, and its folder."""
    v = reading.values
    if v["relay_id"] is None:
        v["relay_id"] = _default_relay_id()
    if v["public_ws_base_url"] is None:
        scheme = "wss" if v["tls_cert_path"] and v["tls"] != "0" else "ws"
        v["public_ws_base_url"] = f"{scheme}://{bracketed(v['listen_host'], v['listen_port'])}"
    if v["state_dir"] is None:
        v["state_dir"] = reading.environ.get("STATE_DIRECTORY", "").split(":")[0] or None


def _default_relay_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:64] or "relay"
    return f"{host}-{os.urandom(4).hex()}"


def _platform_urls(reading: Reading, *, dev_platform: bool) -> None:
    v = reading.values
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
            if not dev_platform and not reading.given("server_url"):
                reading.error(
                    f"{BY_ATTRIBUTE[attribute].name} is not set: set it, or SERVER_URL (or start with --dev)"
                )
    v["server_url"] = base or ""


def _workers(reading: Reading) -> None:
    v = reading.values
    if v["workers"] == AUTO_WORKERS:
        choice = choose()
        v["workers"] = choice.workers
        reading.notes.append(choice.why)
    if v["workers"] == 1:
        return
    if _of_kind_tls(v["listen_endpoint"]):
        reading.error(
            f"RELAY_WORKERS={v['workers']} and an endpoint of kind ssl cannot go together, for the workers end TLS: use a "
            "tcp endpoint, RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH"
        )


def _of_kind_tls(endpoint: str | None) -> bool:
    """Whether Twisted ends TLS at this endpoint."""
    return (endpoint or "").partition(":")[0] in {"ssl", "tls"}


def _redis(reading: Reading) -> None:
    v = reading.values
    if v["redis_url"] is None:
        v["redis_url"] = "redis://127.0.0.1:6379"
    if v["redis_sentinel_username"] and v["redis_sentinel_password"] is None:
        reading.error("RELAY_REDIS_SENTINEL_USERNAME is set: set RELAY_REDIS_SENTINEL_PASSWORD too")


def _bus(reading: Reading) -> None:
    """What is signed with the key of the bus needs that key."""
    v = reading.values
    if v["bus_enabled"] is None:
        v["bus_enabled"] = v["bus_hmac_key"] is not None
    elif v["bus_enabled"] and v["bus_hmac_key"] is None:
        reading.error("RELAY_BUS_ENABLED is on: set RELAY_BUS_HMAC_KEY, the same on every relay")
    if v["presence_signatures"] == "require" and v["bus_hmac_key"] is None:
        reading.error("RELAY_PRESENCE_SIGNATURES=require: set RELAY_BUS_HMAC_KEY, the same on every relay")


def _fleet(reading: Reading) -> None:
    v = reading.values
    several = v["backplane_mode"] != "single"
    if v["client_redirect_enabled"] is None:
        v["client_redirect_enabled"] = several
    if several:
        if v["internal_key"] is None:
            reading.error(f"RELAY_BACKPLANE_MODE={v['backplane_mode']} needs RELAY_INTERNAL_KEY")
        if not reading.given("public_ws_base_url"):
            _url_for_other_relays(reading)
        return
    for attribute in ("redis_url", "redis_sentinels"):
        if reading.given(attribute) and not reading.given("backplane_mode"):
            reading.warn(
                f"{BY_ATTRIBUTE[attribute].name} is set without RELAY_BACKPLANE_MODE=redis: the relay is alone and asks no Redis"
            )


def _url_for_other_relays(reading: Reading) -> None:
    """Check the URL that was made from the listener's address: other relays send clients to it."""
    v = reading.values
    if v["client_redirect_enabled"] and not is_loopback(v["listen_host"]):
        reading.warn(
            "RELAY_PUBLIC_WS_BASE_URL is not set: other relays would send clients to "
            f"{v['public_ws_base_url']}; set it to where peers reach this relay"
        )
    if v["listen_port"] == 0 and not v["listen_endpoint"]:
        reading.error(
            f"RELAY_BACKPLANE_MODE={v['backplane_mode']} and RELAY_LISTEN_PORT=0 need RELAY_PUBLIC_WS_BASE_URL: "
            "other relays must know where to send clients"
        )


def _own_tls(reading: Reading) -> None:
    """TLS of peers: certificate and key together, and ended in one place."""
    v = reading.values
    pairs = [("RELAY_TLS_CERT_PATH", v["tls_cert_path"]), ("RELAY_TLS_KEY_PATH", v["tls_key_path"])]
    if v["tls"] == "1" or (v["tls"] == "auto" and any(path for _, path in pairs)):
        for name, path in pairs:
            if not path:
                reading.error(f"{name} is not set: TLS needs both certificate and key (neither: no TLS)")
    if v["tls"] == "1" and v["tls_termination"] == "platform":
        reading.error("RELAY_TLS=1 and RELAY_TLS_TERMINATION=platform contradict each other")
    here = v["tls"] == "1" or (v["tls"] == "auto" and v["tls_termination"] == "self")
    if here and v["tls_cert_path"] and _of_kind_tls(v["listen_endpoint"]):
        reading.error(
            "RELAY_TLS_CERT_PATH is set, and RELAY_LISTEN_ENDPOINT is of a kind that ends TLS too, which no peer could get "
            "through: use a tcp endpoint"
        )


def _mutual_tls(reading: Reading) -> None:
    v = reading.values
    if v["server_mtls"] is None:  # a key alone: the certificate was forgotten
        v["server_mtls"] = bool(v["server_client_cert_path"] or v["server_client_key_path"])
    if v["server_mtls"]:
        for attribute in ("server_client_cert_path", "server_client_key_path"):
            if not v[attribute]:
                reading.error(f"mutual TLS with the platform is on: set {BY_ATTRIBUTE[attribute].name}")


def _files(reading: Reading) -> None:
    """Check every file that a setting names, also within RELAY_LISTEN_ENDPOINT."""
    for variable in VARIABLES:
        path = reading.values[variable.attribute]
        if path is not None and variable.parse in (FILE, KEY_FILE):
            _file(reading, variable.name, path, private_key=variable.parse is KEY_FILE)
    for argument in re.split(r"(?<!\\):", reading.values["listen_endpoint"] or ""):
        name, _, text = argument.partition("=")
        path = re.sub(r"\\(.)", r"\1", text)
        if name in _FILES_OF_ENDPOINTS and os.path.exists(path):  # a missing one is named by the start
            _file(reading, "RELAY_LISTEN_ENDPOINT", path)


def _file(reading: Reading, name: str, path: str, *, private_key: bool = False) -> None:
    """Check that the file which the setting `name` names can be read, and a private key by its owner only."""
    try:
        read_file(path)
    except Unsuitable as wrong:
        reading.error(f"{name}: {wrong}")
    else:
        if private_key:
            reading.exposed(name, path, private_key=True)


def _proxy(reading: Reading) -> None:
    """Fall back to the variables of other programs: HTTPS_PROXY and NO_PROXY, in capitals or not."""
    v, environ = reading.values, reading.environ
    for name in ("HTTPS_PROXY", "https_proxy"):
        text = environ.get(name, "").strip()
        if v["http_proxy"] is not None or not text:
            continue
        try:
            v["http_proxy"] = HTTP_PROXY(text)
            reading.notes.append(f"{name} is set: https:// calls to the platform go through that proxy")
        except ValueError:  # its value is not shown: it may hold a password
            reading.warn(
                f"{name} cannot be used for calls to the platform: set RELAY_HTTP_PROXY=http://host:port"
            )
    if not v["no_proxy"]:
        v["no_proxy"] = NO_PROXY(environ.get("NO_PROXY", "") or environ.get("no_proxy", ""))
    if reading.given("http_proxy"):
        for attribute in ("jwks_url", "validate_url"):
            if v[attribute].startswith("http://"):
                reading.warn(
                    f"{BY_ATTRIBUTE[attribute].name} is http://: it is asked without RELAY_HTTP_PROXY, which is for https://"
                )
