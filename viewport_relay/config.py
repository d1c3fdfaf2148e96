"""Every setting of the relay: one table, one loader.

The table says for each environment variable its type, default, range, older names and meaning; `--help`,
`viewport-relay config`, `docs/reference/environment.md` and the loader all read it. The loader reports every
problem at once. It reads the environment and secret files; it opens no socket and starts nothing.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from attrs import Factory, field, frozen

#: Exit status for a configuration that cannot work (EX_CONFIG of sysexits.h).
EX_CONFIG = 78

#: Fewest characters that a secret may have in RELAY_MODE=prod.
MIN_SECRET_CHARS = 16

_PLACEHOLDERS = frozenset(
    "change-me changeme change_me replace-me replaceme replace_me placeholder secret password example test dev "
    "development todo xxx internal-key admin-token your-secret-here your-internal-key your-admin-token".split()
)

Mode = Literal["dev", "staging", "prod"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ConfigError(Exception):
    """The settings cannot work. `problems` has one sentence for each, naming variable, value and remedy; `warnings`
    is what would have been worth a line besides.
    """

    def __init__(self, problems: list[str], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = warnings


# -- parsers: text of the variable -> value, or ValueError(what it takes) -----------------------------


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("one of 0 1 false true no yes off on")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        takes = f"a whole number from {low} to {high}"
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise ValueError(takes)
        value = int(text)
        if not low <= value <= high:
            raise ValueError(takes)
        return value

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError("one of " + " ".join(words))
        return text.lower()

    return parse


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        takes = "a URL that starts with " + " or ".join(f"{s}://" for s in schemes)
        try:
            parts = urlsplit(text)
            usable = (
                parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(takes)
        return text.rstrip("/") if parts.path in {"", "/"} and not parts.query else text

    return parse


def _text(text: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise ValueError("text without control characters")
    return text


def _relay_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", text):
        raise ValueError("1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _words(text))


def _endpoints(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for word in _words(text):
        host, _, port = word.rpartition(":")
        if not host.strip("[]") or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
            raise ValueError("a comma list of HOST:PORT")
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


def _workers(text: str) -> int:
    if text.lower() == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        return _integer(1, 256)(text)
    except ValueError:
        raise ValueError("auto, or a whole number from 1 to 256") from None


_COUNT = _integer(0, 1_000_000_000)
_POSITIVE = _integer(1, 1_000_000_000)
_MILLIS = _integer(1, 86_400_000)


@frozen
class Variable:
    """One environment variable.

    `name` is the documented name, `attribute` the field of `Config`. `default` is what applies when it is
    unset (None: none, or worked out as `default_text` says). `older` are names that are still read. A
    `secret` is masked wherever it is shown and may come from the file that `NAME_FILE` names.
    """

    name: str
    attribute: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    group: str
    older: tuple[str, ...] = ()
    secret: bool = False
    default_text: str = ""
    option: str = ""  # long option of twistd, for the most used

    @property
    def shown_default(self) -> str:
        """The default as the documentation writes it."""
        if self.default_text:
            return self.default_text
        if self.default is None:
            return "none"
        if isinstance(self.default, bool):
            return "1" if self.default else "0"
        return ",".join(self.default) if isinstance(self.default, tuple) else str(self.default)


V = Variable
VARIABLES: tuple[Variable, ...] = (
    # -- listening ---------------------------------------------------------------------------------------
    V("RELAY_LISTEN_HOST", "listen_host", _text, "127.0.0.1", "address to listen on", "Listening",
      ("HOST",), option="listen-host"),
    V("RELAY_LISTEN_PORT", "listen_port", _integer(0, 65535), 7781, "port to listen on (0: any free one)",
      "Listening", ("PORT",), option="listen-port"),
    V("RELAY_LISTEN_ENDPOINT", "listen_endpoint", _text, None, "Twisted server endpoint instead of host and port, "
      "for example systemd:domain=INET:index=0", "Listening"),
    V("RELAY_ADMIN_LISTEN", "admin_listen", _text, None, "HOST:PORT of a separate listener for the admin paths, "
      "which the public port then serves no longer", "Listening"),
    V("RELAY_PROXY_PROTOCOL", "proxy_protocol", _boolean, False, "expect PROXY protocol v1 or v2 on every connection "
      "(only behind a load balancer that sends it)", "Listening"),
    V("RELAY_TRUSTED_PROXIES", "trusted_proxies", _words, (), "comma list of IPs and CIDRs whose X-Forwarded-For is "
      "believed; an entry that does not parse is skipped with a warning", "Listening"),
    V("RELAY_TLS", "tls", _choice("auto", "0", "1"), "auto", "terminate TLS here: auto does when a certificate is set",
      "Listening"),
    V("RELAY_TLS_TERMINATION", "tls_termination", _choice("self", "platform"), "self", "platform: TLS ends in front "
      "of the relay", "Listening"),
    V("RELAY_TLS_CERT_PATH", "tls_cert_path", _text, None, "certificate chain, PEM", "Listening"),
    V("RELAY_TLS_KEY_PATH", "tls_key_path", _text, None, "private key, PEM", "Listening"),
    V("RELAY_WORKERS", "workers", _workers, 1, "worker processes behind the one port; auto: one for each core",
      "Listening"),
    V("RELAY_WORKER_TIMEOUT_MS", "worker_timeout_ms", _integer(1000, 3_600_000), 20_000, "a worker process that has not "
      "answered its parent for so long is killed and replaced", "Listening"),
    # -- identity ----------------------------------------------------------------------------------------
    V("RELAY_MODE", "mode", _choice("dev", "staging", "prod"), None, "prod refuses placeholder or short secrets, "
      "query tokens and the dev platform", "Identity", default_text="dev on a loopback listen host, else prod",
      option="mode"),
    V("RELAY_ID", "relay_id", _relay_id, None, "name of this relay in presence, bus and logs", "Identity",
      default_text="host name and a random suffix"),
    V("RELAY_PUBLIC_WS_BASE_URL", "public_ws_base_url", _url("ws", "wss"), None, "where peers reach this relay; "
      "other relays redirect there", "Identity", default_text="from listen host and port"),
    V("RELAY_STATE_DIR", "state_dir", _text, None, "folder for what must survive a restart (the link's key, mode "
      "0600)", "Identity", default_text="$STATE_DIRECTORY, else none"),
    # -- admission -----------------------------------------------------------------------------------------
    V("SERVER_URL", "server_url", _url("http", "https"), None, "platform origin, for workers and server mode",
      "Platform", default_text="origin of RELAY_VALIDATE_URL"),
    V("RELAY_JWKS_URL", "jwks_url", _url("http", "https"), None, "public keys that sign relay tokens", "Platform",
      default_text="SERVER_URL + /api/.well-known/jwks.json", option="jwks-url"),
    V("RELAY_VALIDATE_URL", "validate_url", _url("http", "https"), None, "endpoint that admits a token", "Platform",
      default_text="SERVER_URL + /api/runtime/internal/relay/validate", option="validate-url"),
    V("RELAY_INTERNAL_KEY", "internal_key", _text, None, "sent to the platform as x-relay-internal-key", "Platform",
      secret=True),
    V("RELAY_TOKEN_ISSUER", "token_issuer", _text, "viewport-server", "iss of relay tokens", "Platform"),
    V("RELAY_TOKEN_AUDIENCE", "token_audience", _text, "viewport-relay", "what aud must contain", "Platform"),
    V("RELAY_TOKEN_CLOCK_SKEW_SEC", "token_clock_skew_sec", _integer(0, 3600), 30, "tolerance for exp, nbf and iat, "
      "seconds", "Platform"),
    V("RELAY_JWKS_CACHE_TTL", "jwks_cache_ttl", _integer(1, 86_400), 3600, "how long a fetched key set serves, seconds",
      "Platform"),
    V("RELAY_JWKS_COOLDOWN", "jwks_cooldown", _integer(1, 3600), 30, "least time between two fetches that an unknown "
      "kid or a bad signature starts, seconds", "Platform"),
    V("RELAY_VALIDATE_CACHE_TTL", "validate_cache_ttl", _integer(0, 3600), 10, "how long an admitted answer serves, "
      "seconds; 0 asks every time", "Platform"),
    V("RELAY_ADMISSION_TIMEOUT_MS", "admission_timeout_ms", _MILLIS, 2000, "total time limit for one validation",
      "Platform"),
    V("RELAY_ADMISSION_MAX_RESPONSE_BYTES", "admission_max_response_bytes", _integer(256, 16_777_216), 262_144,
      "longest validation answer", "Platform"),
    V("RELAY_INTERNAL_API_TIMEOUT_MS", "internal_api_timeout_ms", _MILLIS, 2000, "time limit for the platform's "
      "presence and bus calls", "Platform"),
    V("RELAY_INTERNAL_API_MAX_RESPONSE_BYTES", "internal_api_max_response_bytes", _integer(256, 67_108_864), 262_144,
      "longest answer of those calls", "Platform"),
    V("RELAY_SERVER_TLS_VERIFY", "server_tls_verify", _boolean, True, "verify the platform's certificate and host "
      "name", "Platform"),
    V("RELAY_SERVER_CA_CERT_PATH", "server_ca_cert_path", _text, None, "CA that signs the platform's certificate, PEM",
      "Platform", default_text="the system's"),
    V("RELAY_SERVER_MTLS", "server_mtls", _boolean, False, "present a client certificate to the platform", "Platform"),
    V("RELAY_SERVER_CLIENT_CERT_PATH", "server_client_cert_path", _text, None, "that certificate, PEM", "Platform"),
    V("RELAY_SERVER_CLIENT_KEY_PATH", "server_client_key_path", _text, None, "its private key, PEM", "Platform"),
    V("RELAY_SERVER_CLIENT_KEY_PASSPHRASE", "server_client_key_passphrase", _text, None, "its passphrase", "Platform",
      secret=True),
    V("RELAY_ALLOWED_ORIGINS", "allowed_origins", _hosts, (), "comma list of browser origins that may connect; empty: "
      "any", "Platform"),
    V("RELAY_REJECT_MODE", "reject_mode", _choice("auto", "http", "close"), "auto", "how refusals look: HTTP status, or "
      "upgraded and closed; auto closes for tokens that came as sub-protocol", "Platform"),
    # -- limits ----------------------------------------------------------------------------------------------
    V("RELAY_RATE_LIMIT_PER_IP", "rate_limit_per_ip", _COUNT, 120, "upgrade attempts per address and minute, refused "
      "ones too; 0 is off", "Limits", ("RELAY_UPGRADE_RATE_PER_MINUTE",), option="rate-limit-per-ip"),
    V("RELAY_MAX_TOTAL_CONNECTIONS", "max_total_connections", _COUNT, 2000, "connections in all; 0 is off", "Limits"),
    V("RELAY_MAX_CONNECTIONS_PER_IP", "max_connections_per_ip", _COUNT, 50, "connections of one address; 0 is off",
      "Limits"),
    V("RELAY_MAX_CLIENTS_PER_WORKSPACE", "max_clients_per_workspace", _COUNT, 100, "clients of one workspace and runtime "
      "target; 0 is off", "Limits"),
    V("RELAY_FRAME_MAX_BYTES", "frame_max_bytes", _integer(256, 67_108_864), 1_048_576, "longest message",
      "Limits", ("RELAY_MAX_FRAME_BYTES",), option="frame-max-bytes"),
    V("RELAY_MAX_PENDING_BYTES", "max_pending_bytes", _integer(1024, 1_073_741_824), 4_194_304, "most that is queued to "
      "one client", "Limits"),
    V("RELAY_KEX_INIT_RATE_PER_MINUTE", "kex_rate", _COUNT, 60, "key exchanges of a client; 0 is off", "Limits"),
    V("RELAY_PAIRING_RATE_PER_MINUTE", "pairing_rate", _COUNT, 30, "pairing frames of a client; 0 is off", "Limits"),
    V("RELAY_RUNTIME_RATE_PER_MINUTE", "runtime_rate", _COUNT, 240, "e2ee and presence frames of a client; 0 is off",
      "Limits"),
    V("RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE", "runtime_rate_workspace", _COUNT, 1200, "the same of all clients of a "
      "workspace; 0 is off", "Limits"),
    V("RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE", "daemon_rate", _COUNT, 2400, "frames of a daemon, requests of a worker; 0 "
      "is off", "Limits"),
    V("RELAY_PAIRING_REQUEST_TRACK_MAX", "request_track_max", _POSITIVE, 2048, "pending requests remembered per target "
      "and kind", "Limits"),
    V("RELAY_SESSION_OWNER_TRACK_MAX", "session_owner_track_max", _POSITIVE, 4096, "sessions remembered per target",
      "Limits"),
    # -- time --------------------------------------------------------------------------------------------------
    V("RELAY_PING_INTERVAL_MS", "ping_interval_ms", _MILLIS, 30_000, "time between pings", "Time"),
    V("RELAY_PONG_TIMEOUT_MS", "pong_timeout_ms", _MILLIS, 10_000, "time a peer has to show life after a ping", "Time"),
    V("RELAY_IDLE_TIMEOUT_MS", "idle_timeout_ms", _MILLIS, 300_000, "time without a sign of life", "Time"),
    V("RELAY_EMPTY_WORKSPACE_TTL_MS", "empty_workspace_ttl_ms", _MILLIS, 120_000, "how long a target without peers is "
      "remembered", "Time"),
    V("RELAY_CLEANUP_INTERVAL_MS", "cleanup_interval_ms", _MILLIS, 30_000, "time between clean-ups", "Time"),
    V("RELAY_DRAIN_SECONDS", "drain_seconds", _integer(0, 600), 5, "time for peers to go at shutdown", "Time"),
    # -- Noise link ----------------------------------------------------------------------------------------------
    V("RELAY_NOISE_LINK", "noise_link", _choice("off", "optional", "required"), "optional", "the Noise link between "
      "peer and relay", "Noise link"),
    V("RELAY_NOISE_TIMEOUT_MS", "noise_timeout_ms", _MILLIS, 10_000, "time for the link's handshake", "Noise link"),
    V("RELAY_NOISE_PRIVATE_KEY", "noise_private_key", _text, None, "the relay's X25519 private key, base64url of 32 "
      "bytes (`viewport-relay keygen`)", "Noise link", secret=True,
      default_text="made at first start, kept in RELAY_STATE_DIR"),
    V("RELAY_NOISE_PREVIOUS_KEY", "noise_previous_key", _text, None, "the key before, accepted while peers learn the "
      "new one", "Noise link", secret=True),
    # -- operator ------------------------------------------------------------------------------------------------
    V("RELAY_ADMIN_TOKEN", "admin_token", _text, None, "bearer token of /logs, /state and /metrics", "Operator",
      secret=True),
    V("RELAY_ENABLE_ADMIN_HTTP", "enable_admin_http", _boolean, True, "serve the admin paths", "Operator"),
    V("RELAY_HEALTH_VERBOSE", "health_verbose", _boolean, None, "/health tells version, id and mode", "Operator",
      default_text="on in dev"),
    V("RELAY_STATE_INCLUDE_CLIENT_IDS", "state_include_client_ids", _boolean, None, "/state lists client ids",
      "Operator", default_text="on in dev"),
    V("RELAY_MAX_LOGS", "max_logs", _integer(1, 1_000_000), 1000, "entries that /logs keeps", "Operator",
      ("MAX_LOGS",)),
    V("RELAY_LOG_LEVEL", "log_level", _choice("info", "warn", "error"), "info", "least level on standard output",
      "Operator"),
    V("RELAY_FAST_PATH", "fast_path", _boolean, True, "0 runs every frame through plain Autobahn", "Operator"),
    # -- several relays ------------------------------------------------------------------------------------------
    V("RELAY_BACKPLANE_MODE", "backplane_mode", _choice("single", "redis", "server"), "single", "how relays find each "
      "other's daemons", "Backplane"),
    V("RELAY_BUS_ENABLED", "bus_enabled", _boolean, None, "carry frames between relays", "Backplane",
      default_text="on when RELAY_BUS_HMAC_KEY is set"),
    V("RELAY_BUS_HMAC_KEY", "bus_hmac_key", _text, None, "key that signs bus frames, the same on every relay",
      "Backplane", secret=True),
    V("RELAY_BUS_SIGNATURE_MAX_SKEW_MS", "bus_max_skew_ms", _MILLIS, 15_000, "greatest age of a bus frame",
      "Backplane"),
    V("RELAY_BUS_POLL_INTERVAL_MS", "bus_poll_interval_ms", _MILLIS, 250, "time between pulls in server mode",
      "Backplane"),
    V("RELAY_BUS_PULL_LIMIT", "bus_pull_limit", _integer(1, 10_000), 200, "bus frames per pull", "Backplane"),
    V("RELAY_BUS_PULL_WAIT_MS", "bus_pull_wait_ms", _integer(0, 60_000), 1000, "how long a pull waits", "Backplane"),
    V("RELAY_PRESENCE_SYNC_ENABLED", "presence_sync_enabled", _boolean, True, "announce daemons", "Backplane"),
    V("RELAY_PRESENCE_SYNC_INTERVAL_MS", "presence_sync_interval_ms", _MILLIS, 20_000, "time between announcements",
      "Backplane"),
    V("RELAY_CLIENT_REDIRECT_ENABLED", "client_redirect_enabled", _boolean, None, "send clients to the relay of their "
      "daemon", "Backplane", default_text="on in redis and server mode"),
    V("RELAY_REDIRECT_ALLOWED_HOSTS", "redirect_allowed_hosts", _hosts, (), "comma list of hosts to redirect to; empty: "
      "any, in prod only that of RELAY_PUBLIC_WS_BASE_URL", "Backplane"),
    V("RELAY_REDIS_URL", "redis_url", _url("redis", "rediss"), None, "Redis server", "Backplane", secret=True,
      default_text="redis://127.0.0.1:6379"),
    V("RELAY_REDIS_CA_CERT_PATH", "redis_ca_cert_path", _text, None, "CA that signs the certificate of a rediss:// server, "
      "PEM", "Backplane", default_text="the system's"),
    V("RELAY_REDIS_SENTINELS", "redis_sentinels", _endpoints, (), "comma list of HOST:PORT of Redis Sentinels; they name "
      "the master, and RELAY_REDIS_URL gives scheme, user, password and database only", "Backplane"),
    V("RELAY_REDIS_SENTINEL_MASTER", "redis_sentinel_master", _text, "mymaster", "what the Sentinels call the master",
      "Backplane"),
    V("RELAY_REDIS_KEY_PREFIX", "redis_key_prefix", _text, "viewport:relay", "prefix of every key", "Backplane"),
    V("RELAY_REDIS_CONNECT_TIMEOUT_MS", "redis_connect_timeout_ms", _MILLIS, 5000, "time limit for connecting",
      "Backplane"),
    V("RELAY_REDIS_PRESENCE_TTL_MS", "redis_presence_ttl_ms", _MILLIS, 45_000, "life of a presence entry", "Backplane"),
    V("RELAY_REDIS_QUEUE_MAX", "redis_queue_max", _POSITIVE, 10_000, "longest bus queue", "Backplane"),
)  # fmt: skip
del V

BY_ATTRIBUTE: Mapping[str, Variable] = {v.attribute: v for v in VARIABLES}


@frozen
class Config:
    """The effective settings; attributes are those of `VARIABLES`. Immutable for the life of the process."""

    listen_host: str
    listen_port: int
    listen_endpoint: str | None
    admin_listen: str | None
    proxy_protocol: bool
    trusted_proxies: tuple[Network, ...]
    tls: str
    tls_termination: str
    tls_cert_path: str | None
    tls_key_path: str | None
    workers: int
    worker_timeout_ms: int
    mode: Mode
    relay_id: str
    public_ws_base_url: str
    state_dir: str | None
    server_url: str
    jwks_url: str
    validate_url: str
    internal_key: str | None = field(repr=False)
    token_issuer: str
    token_audience: str
    token_clock_skew_sec: int
    jwks_cache_ttl: int
    jwks_cooldown: int
    validate_cache_ttl: int
    admission_timeout_ms: int
    admission_max_response_bytes: int
    internal_api_timeout_ms: int
    internal_api_max_response_bytes: int
    server_tls_verify: bool
    server_ca_cert_path: str | None
    server_mtls: bool
    server_client_cert_path: str | None
    server_client_key_path: str | None
    server_client_key_passphrase: str | None = field(repr=False)
    allowed_origins: tuple[str, ...]
    reject_mode: str
    rate_limit_per_ip: int
    max_total_connections: int
    max_connections_per_ip: int
    max_clients_per_workspace: int
    frame_max_bytes: int
    max_pending_bytes: int
    kex_rate: int
    pairing_rate: int
    runtime_rate: int
    runtime_rate_workspace: int
    daemon_rate: int
    request_track_max: int
    session_owner_track_max: int
    ping_interval_ms: int
    pong_timeout_ms: int
    idle_timeout_ms: int
    empty_workspace_ttl_ms: int
    cleanup_interval_ms: int
    drain_seconds: int
    noise_link: str
    noise_timeout_ms: int
    noise_private_key: str | None = field(repr=False)
    noise_previous_key: str | None = field(repr=False)
    admin_token: str | None = field(repr=False)
    enable_admin_http: bool
    health_verbose: bool
    state_include_client_ids: bool
    max_logs: int
    log_level: str
    fast_path: bool
    backplane_mode: str
    bus_enabled: bool
    bus_hmac_key: str | None = field(repr=False)
    bus_max_skew_ms: int
    bus_poll_interval_ms: int
    bus_pull_limit: int
    bus_pull_wait_ms: int
    presence_sync_enabled: bool
    presence_sync_interval_ms: int
    client_redirect_enabled: bool
    redirect_allowed_hosts: tuple[str, ...]
    redis_url: str = field(repr=False)
    redis_ca_cert_path: str | None
    redis_sentinels: tuple[tuple[str, int], ...]
    redis_sentinel_master: str
    redis_key_prefix: str
    redis_connect_timeout_ms: int
    redis_presence_ttl_ms: int
    redis_queue_max: int
    dev_platform: bool = False
    #: attribute -> where its value came from: a variable's name, "option --x", "default"
    sources: Mapping[str, str] = field(default=Factory(dict), repr=False, eq=False)
    #: what is worth a line at start, one sentence each
    warnings: tuple[str, ...] = field(default=(), eq=False)

    @property
    def relay_id_in_log(self) -> str | None:
        """What every log line carries as `relayId`: nothing where there is one relay."""
        return None if self.backplane_mode == "single" else self.relay_id


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


class _Loader:
    """Collects values, problems and warnings from one environment."""

    def __init__(self, environ: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self.environ = environ
        self.overrides = overrides
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def read(self, variable: Variable) -> None:
        source, text = self._raw(variable)
        self.sources[variable.attribute] = source
        if text is None:
            self.values[variable.attribute] = variable.default
            return
        try:
            self.values[variable.attribute] = variable.parse(text)
        except ValueError as takes:
            got = "a value that is kept secret" if variable.secret else repr(text[:200])
            self.problems.append(f"{source}: got {got}, takes {takes}")
            self.values[variable.attribute] = variable.default

    def _raw(self, variable: Variable) -> tuple[str, str | None]:
        if variable.attribute in self.overrides:
            return f"option --{variable.option}", self.overrides[variable.attribute]
        text = self.environ.get(variable.name, "").strip()
        path = self.environ.get(variable.name + "_FILE", "") if variable.secret else ""
        if text and path:
            self.problems.append(f"{variable.name} and {variable.name}_FILE are both set: keep one")
        if text:
            return variable.name, text
        if path:
            return variable.name + "_FILE", self._secret_file(variable.name + "_FILE", path)
        for older in variable.older:
            text = self.environ.get(older, "").strip()
            if text:
                return older, text
        return "default", None

    def _secret_file(self, name: str, path: str) -> str | None:
        try:
            text = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            self.problems.append(f"{name}: cannot read {path!r}: {why}")
            return None
        if not text:
            self.problems.append(f"{name}: {path!r} is empty")
        return text or None

    def unknown_names(self) -> None:
        known = {v.name for v in VARIABLES} | {older for v in VARIABLES for older in v.older}
        known |= {v.name + "_FILE" for v in VARIABLES if v.secret}
        for name in sorted(self.environ):
            if name.startswith("RELAY_") and name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f", did you mean {near[0]}?" if near else ""
                self.warnings.append(f"{name} is set, but there is no such setting{hint}")

    # -- defaults that depend on other values, and rules between values ----------------------------------

    def derive(self, dev_platform: bool) -> None:
        v = self.values
        if v["mode"] is None:
            v["mode"] = "dev" if is_loopback(v["listen_host"]) and not v["listen_endpoint"] else "prod"
        self._urls(dev_platform)
        self._networks()
        for name in ("health_verbose", "state_include_client_ids"):
            if v[name] is None:
                v[name] = v["mode"] == "dev"
        if v["relay_id"] is None:
            v["relay_id"] = _default_relay_id()
        if v["public_ws_base_url"] is None:
            scheme = "wss" if v["tls_cert_path"] and v["tls"] != "0" else "ws"
            host = f"[{v['listen_host']}]" if ":" in v["listen_host"] else v["listen_host"]
            v["public_ws_base_url"] = f"{scheme}://{host}:{v['listen_port']}"
        if v["state_dir"] is None:
            v["state_dir"] = self.environ.get("STATE_DIRECTORY", "").split(":")[0] or None
        if v["redis_url"] is None:
            v["redis_url"] = "redis://127.0.0.1:6379"
        several = v["backplane_mode"] != "single"
        if v["bus_enabled"] is None:
            v["bus_enabled"] = v["bus_hmac_key"] is not None
        elif v["bus_enabled"] and v["bus_hmac_key"] is None:
            self.problems.append("RELAY_BUS_ENABLED is on: set RELAY_BUS_HMAC_KEY, the same on every relay")
        if v["client_redirect_enabled"] is None:
            v["client_redirect_enabled"] = several
        if (
            several
            and v["client_redirect_enabled"]
            and self.sources["public_ws_base_url"] == "default"
            and not is_loopback(v["listen_host"])
        ):
            self.warnings.append(
                "RELAY_PUBLIC_WS_BASE_URL is not set: other relays would send clients to "
                f"{v['public_ws_base_url']}; set it to where peers reach this relay"
            )
        if (
            several
            and self.sources["public_ws_base_url"] == "default"
            and v["listen_port"] == 0
            and not v["listen_endpoint"]
        ):
            self.problems.append(
                f"RELAY_BACKPLANE_MODE={v['backplane_mode']} and RELAY_LISTEN_PORT=0 need RELAY_PUBLIC_WS_BASE_URL: "
                "other relays must know where to send clients"
            )
        if several and v["internal_key"] is None:
            self.problems.append(f"RELAY_BACKPLANE_MODE={v['backplane_mode']} needs RELAY_INTERNAL_KEY")
        self._tls()
        self._workers()
        self._mode(dev_platform)

    def _urls(self, dev_platform: bool) -> None:
        v = self.values
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
                    self.problems.append(
                        f"{BY_ATTRIBUTE[attribute].name} is not set: set it, or SERVER_URL (or start with --dev)"
                    )
        v["server_url"] = base or ""

    def _networks(self) -> None:
        networks: list[Network] = []
        for word in self.values["trusted_proxies"]:
            try:
                networks.append(parse_network(word))
            except ValueError:
                self.warnings.append(
                    f"RELAY_TRUSTED_PROXIES: {word[:64]!r} is no IP address or CIDR: skipped"
                )
        self.values["trusted_proxies"] = tuple(networks)

    def _tls(self) -> None:
        v = self.values
        pairs = [("RELAY_TLS_CERT_PATH", v["tls_cert_path"]), ("RELAY_TLS_KEY_PATH", v["tls_key_path"])]
        set_names = [name for name, path in pairs if path]
        if v["tls"] == "1" or (v["tls"] == "auto" and set_names):
            for name, path in pairs:
                if not path:
                    self.problems.append(
                        f"{name} is not set: TLS needs both certificate and key (RELAY_TLS=0: none)"
                    )
        if v["tls"] == "1" and v["tls_termination"] == "platform":
            self.problems.append("RELAY_TLS=1 and RELAY_TLS_TERMINATION=platform contradict each other")
        if v["server_mtls"]:
            for attribute in ("server_client_cert_path", "server_client_key_path"):
                if not v[attribute]:
                    self.problems.append(f"RELAY_SERVER_MTLS is on: set {BY_ATTRIBUTE[attribute].name}")
        for attribute in (
            "tls_cert_path", "tls_key_path", "server_ca_cert_path", "server_client_cert_path",
            "server_client_key_path", "redis_ca_cert_path",
        ):  # fmt: skip
            path = v[attribute]
            if path and not os.access(path, os.R_OK):
                self.problems.append(f"{BY_ATTRIBUTE[attribute].name}: got {path!r}, takes a readable file")

    def _workers(self) -> None:
        v = self.values
        if v["workers"] == 1:
            return
        tls_here = v["tls_cert_path"] and v["tls"] != "0" and v["tls_termination"] == "self"
        if tls_here or (v["listen_endpoint"] or "").partition(":")[0] in {"ssl", "tls"}:
            self.problems.append(
                f"RELAY_WORKERS={v['workers']} and TLS here cannot go together, for connections are handed to the "
                "workers as they are: end TLS in front of the relay and set RELAY_TLS_TERMINATION=platform, or set "
                "RELAY_WORKERS=1"
            )

    def _mode(self, dev_platform: bool) -> None:
        v = self.values
        for variable in VARIABLES:
            value = v[variable.attribute]
            if not variable.secret or value is None or variable.attribute == "redis_url":
                continue
            weakness = _weakness(value)
            if weakness is None:
                continue
            sentence = f"{variable.name} is {weakness}: use at least {MIN_SECRET_CHARS} random characters"
            (self.problems if v["mode"] == "prod" else self.warnings).append(sentence)
        if v["mode"] == "prod":
            if dev_platform:
                self.problems.append("--dev starts the dev platform, which RELAY_MODE=prod never takes")
            if not v["server_tls_verify"]:
                self.warnings.append("RELAY_SERVER_TLS_VERIFY is off: anybody on the way can admit peers")


def _weakness(secret: str) -> str | None:
    if secret.lower() in _PLACEHOLDERS or re.match(r"(?i)(change|replace)[-_ ]?(me|this)", secret):
        return "a placeholder"
    if len(secret) < MIN_SECRET_CHARS:
        return f"only {len(secret)} characters long"
    if len(set(secret)) < 4:
        return "one character repeated"
    return None


def _default_relay_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:64] or "relay"
    return f"{host}-{os.urandom(4).hex()}"


def load(
    environ: Mapping[str, str], overrides: Mapping[str, str] | None = None, *, dev_platform: bool = False
) -> Config:
    """Read the settings.

    `environ` is an environment; an empty value counts as unset. `overrides` maps attributes of `Config` to
    texts (command line options) and wins. Raises ConfigError with every problem found, not only the first.
    """
    loader = _Loader(environ, overrides or {})
    for variable in VARIABLES:
        loader.read(variable)
    loader.unknown_names()
    loader.derive(dev_platform)
    if loader.problems:
        raise ConfigError(loader.problems, tuple(loader.warnings))
    return Config(
        **loader.values, dev_platform=dev_platform, sources=loader.sources, warnings=tuple(loader.warnings)
    )


def configured_secrets(config: Config) -> list[str]:
    """Every secret value of the settings, and the password inside the Redis URL."""
    found = [getattr(config, v.attribute) for v in VARIABLES if v.secret and v.attribute != "redis_url"]
    try:
        password = urlsplit(config.redis_url).password
    except ValueError:
        password = None
    if password:
        found += [password, unquote(password)]
    return [secret for secret in found if secret]
