"""The table: every environment variable, by group, in the order of the reference."""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config import network
from viewport_relay.config.table import setting
from viewport_relay.config.values import (
    BOOLEAN,
    COUNT,
    FILE,
    HEADER_VALUE,
    KEY_FILE,
    LOG_LEVEL,
    MODE,
    POSITIVE,
    RELAY_ID,
    TEXT,
    TOKENS,
    WORKERS,
    Mode,
    base_url,
    choice,
    integer,
    milliseconds,
    seconds,
    size,
    url,
)
from viewport_relay.reasons import Level


@frozen(slots=False)
class BasicSettings:
    """Where the relay listens, which platform it asks, and who operates it."""

    # fmt: off
    listen_host: str = setting("RELAY_LISTEN_HOST", network.LISTEN_HOST, "127.0.0.1", "address to listen on", older=("HOST",),
        option="listen-host")
    listen_port: int = setting("RELAY_LISTEN_PORT", integer(0, 65535), 7781, "port to listen on (0: any free one)",
        older=("PORT",), option="listen-port")
    server_url: str = setting("SERVER_URL", base_url("http", "https"), None, "origin of the platform; RELAY_JWKS_URL and "
        "RELAY_VALIDATE_URL follow from it", default_text="origin of RELAY_VALIDATE_URL")
    jwks_url: str = setting("RELAY_JWKS_URL", url("http", "https"), None, "public keys that sign relay tokens",
        default_text="SERVER_URL + /api/.well-known/jwks.json", option="jwks-url")
    validate_url: str = setting("RELAY_VALIDATE_URL", url("http", "https"), None, "endpoint that admits a token",
        default_text="SERVER_URL + /api/runtime/internal/relay/validate", option="validate-url")
    internal_key: str | None = setting("RELAY_INTERNAL_KEY", HEADER_VALUE, None, "sent to the platform as x-relay-internal-key",
        secret=True)
    admin_tokens: tuple[str, ...] = setting("RELAY_ADMIN_TOKEN", TOKENS, (), "bearer token of /admin/, /logs, /state and "
        "/metrics; with commas, several (to change it: the new and the old one)", secret=True, default_text="none", reload=True)
    mode: Mode = setting("RELAY_MODE", MODE, None, "prod refuses placeholder or short secrets, query tokens and the dev "
        "platform", default_text="dev on a loopback listen host, else prod", option="mode")
    public_ws_base_url: str = setting("RELAY_PUBLIC_WS_BASE_URL", base_url("ws", "wss"), None, "where peers reach this relay; other "
        "relays redirect there", default_text="from listen host and port")
    trusted_proxies: network.ProxyList = setting("RELAY_TRUSTED_PROXIES", network.PROXIES, network.ProxyList(),
        "addresses of proxies whose X-Forwarded-For is believed, unix: for those on a Unix socket; an entry that does not "
        "parse is skipped with a warning", default_text="none", reload=True)
    allowed_origins: tuple[str, ...] = setting("RELAY_ALLOWED_ORIGINS", network.ORIGINS, (), "browser origins that may connect; unset: "
        "any. Trailing slash, default port and case do not matter", reload=True)
    state_dir: str | None = setting("RELAY_STATE_DIR", TEXT, None, "folder for what must survive a restart (the link's key, "
        "mode 0600)", default_text="$STATE_DIRECTORY, else none")


@frozen(slots=False)
class LimitSettings:
    """How much each peer, address and workspace may use; rates are per minute, and 0 turns a limit off."""

    # fmt: off
    rate_limit_per_ip: int = setting("RELAY_RATE_LIMIT_PER_IP", COUNT, 120, "upgrade attempts per address and minute, refused "
        "ones too; 0 is off", older=("RELAY_UPGRADE_RATE_PER_MINUTE",), option="rate-limit-per-ip", reload=True)
    max_total_connections: int = setting("RELAY_MAX_TOTAL_CONNECTIONS", COUNT, 2000, "connections in all; 0 is off",
        reload=True)
    max_connections_per_ip: int = setting("RELAY_MAX_CONNECTIONS_PER_IP", COUNT, 50, "connections of one address; 0 is off",
        reload=True)
    max_clients_per_workspace: int = setting("RELAY_MAX_CLIENTS_PER_WORKSPACE", COUNT, 100,
        "clients of one workspace and runtime target; 0 is off", reload=True)
    frame_max_bytes: int = setting("RELAY_FRAME_MAX_BYTES", size(256, 67_108_864), 1_048_576, "longest message",
        older=("RELAY_MAX_FRAME_BYTES",), option="frame-max-bytes")
    runtime_rate: int = setting("RELAY_RUNTIME_RATE_PER_MINUTE", COUNT, 240,
        "frames of a client, but key exchanges and pairing; 0 is off", reload=True)
    runtime_rate_workspace: int = setting("RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE", COUNT, 1200,
        "forwarded e2ee frames of all clients of a workspace; 0 is off", reload=True)
    daemon_rate: int = setting("RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE", COUNT, 2400, "frames of a daemon, requests of an executor; "
        "0 is off", reload=True)
    ping_interval_ms: int = setting("RELAY_PING_INTERVAL_MS", milliseconds(), 30_000, "time between pings", reload=True)
    drain_seconds: int = setting("RELAY_DRAIN_SECONDS", seconds(0, 600), 5, "time for peers to go at shutdown", reload=True)
    workers: int = setting("RELAY_WORKERS", WORKERS, 1, "worker processes behind the one port; auto: one for each core that "
        "this machine or container gives, as far as its memory reaches")


@frozen(slots=False)
class TlsSettings:
    """Certificates and keys. TLS ends in the relay when a certificate is set, else in front of it."""

    # fmt: off
    tls_cert_path: str | None = setting("RELAY_TLS_CERT_PATH", FILE, None, "the relay's certificate chain, PEM, leaf first; "
        "read again when it changes")
    tls_key_path: str | None = setting("RELAY_TLS_KEY_PATH", KEY_FILE, None, "private key of that certificate, PEM; no other user may read it")
    tls_termination: str = setting("RELAY_TLS_TERMINATION", choice("self", "platform"), "self",
        "platform: TLS ends in front of the relay")
    server_ca_cert_path: str | None = setting("RELAY_SERVER_CA_CERT_PATH", FILE, None, "CA that signs the platform's "
        "certificate, PEM", default_text="the system's")
    server_client_cert_path: str | None = setting("RELAY_SERVER_CLIENT_CERT_PATH", FILE, None,
        "client certificate for the platform, PEM: mutual TLS is on when it is set")
    server_client_key_path: str | None = setting("RELAY_SERVER_CLIENT_KEY_PATH", KEY_FILE, None,
        "private key of that certificate, PEM; no other user may read it")
    server_client_key_passphrase: str | None = setting("RELAY_SERVER_CLIENT_KEY_PASSPHRASE", TEXT, None, "passphrase of the key of that client certificate",
        secret=True)


@frozen(slots=False)
class FleetSettings:
    """How relays find each other's daemons and carry frames between them."""

    # fmt: off
    backplane_mode: str = setting("RELAY_BACKPLANE_MODE", choice("single", "redis", "server"), "single",
        "how relays find each other's daemons")
    relay_id: str = setting("RELAY_ID", RELAY_ID, None, "name of this relay in presence, bus and logs",
        default_text="host name and a random suffix")
    bus_hmac_key: str | None = setting("RELAY_BUS_HMAC_KEY", TEXT, None, "key that signs frames between relays, the same on "
        "every relay; they are carried when it is set", secret=True)
    client_redirect_enabled: bool = setting("RELAY_CLIENT_REDIRECT_ENABLED", BOOLEAN, None,
        "send clients to the relay of their daemon", default_text="on in redis and server mode")
    redirect_allowed_hosts: tuple[str, ...] = setting("RELAY_REDIRECT_ALLOWED_HOSTS", network.HOSTS, (),
        "hosts to redirect to; empty: any, in prod only that of RELAY_PUBLIC_WS_BASE_URL")
    redis_url: str = setting("RELAY_REDIS_URL", url("redis", "rediss"), None, "Redis server", secret=True,
        default_text="redis://127.0.0.1:6379")
    redis_ca_cert_path: str | None = setting("RELAY_REDIS_CA_CERT_PATH", FILE, None, "CA that signs the certificate of a "
        "rediss:// server and of its Sentinels, PEM; more than one where they differ", default_text="the system's")
    redis_sentinels: tuple[network.Address, ...] = setting("RELAY_REDIS_SENTINELS", network.SENTINELS, (),
        "Redis Sentinels; they name the master, and RELAY_REDIS_URL gives scheme, user, password and database only")
    redis_sentinel_master: str = setting("RELAY_REDIS_SENTINEL_MASTER", TEXT, "mymaster", "what the Sentinels call the master")
    redis_sentinel_username: str | None = setting("RELAY_REDIS_SENTINEL_USERNAME", TEXT, None,
        "ACL user of the Sentinels, where they have users")
    redis_sentinel_password: str | None = setting("RELAY_REDIS_SENTINEL_PASSWORD", TEXT, None, "password of the Sentinels",
        secret=True)
    redis_sentinel_tls: str = setting("RELAY_REDIS_SENTINEL_TLS", choice("auto", "0", "1"), "auto",
        "whether the Sentinels speak TLS", default_text="as RELAY_REDIS_URL")
    presence_signatures: str = setting("RELAY_PRESENCE_SIGNATURES", choice("accept", "require"), "accept",
        "whether presence entries in Redis must be signed: accept takes those of relays that do not sign, require takes none "
        "of them")
    redis_key_prefix: str = setting("RELAY_REDIS_KEY_PREFIX", TEXT, "viewport:relay", "prefix of every key in Redis")


@frozen(slots=False)
class RareSettings:
    """Other ways to listen, the token check, the Noise link, logs."""

    # fmt: off
    settings_file: str | None = setting("RELAY_SETTINGS_FILE", TEXT, None, "file of NAME=VALUE lines with further settings, "
        "read at start and again on SIGHUP; what the environment sets wins")
    listen_endpoint: str | None = setting("RELAY_LISTEN_ENDPOINT", TEXT, None, "Twisted server endpoint instead of host and "
        "port, for example systemd:domain=INET:index=0")
    admin_listen: network.Address | None = setting("RELAY_ADMIN_LISTEN", network.ADMIN_LISTEN, None, "a separate listener for the admin paths, "
        "which the public port then serves no longer")
    proxy_protocol: bool = setting("RELAY_PROXY_PROTOCOL", BOOLEAN, False, "expect PROXY protocol v1 or v2 on every connection "
        "(only behind a load balancer that sends it); where RELAY_TRUSTED_PROXIES is set, from those addresses only")
    metrics_tokens: tuple[str, ...] = setting("RELAY_METRICS_TOKEN", TOKENS, (), "bearer token that reads /metrics and nothing "
        "else; with commas, several", secret=True, default_text="none", reload=True)
    http_keep_alive: int = setting("RELAY_HTTP_KEEP_ALIVE_SEC", seconds(1, 3600), 75, "how long an idle HTTP connection is "
        "kept after an answer: longer than the balancer in front keeps it, or requests are lost in the race")
    token_issuer: str = setting("RELAY_TOKEN_ISSUER", TEXT, "viewport-server", "iss of relay tokens")
    token_audience: str = setting("RELAY_TOKEN_AUDIENCE", TEXT, "viewport-relay", "what aud must contain")
    token_expiry: str = setting("RELAY_TOKEN_EXPIRY", choice("close", "ignore"), "ignore", "what becomes of an open connection "
        "when its token expires (30 s after its exp): close it 4401 `invalid_token`, or let it be", reload=True)
    admission_timeout_ms: int = setting("RELAY_ADMISSION_TIMEOUT_MS", milliseconds(), 2000,
        "total time limit for one validation")
    http_proxy: str | None = setting("RELAY_HTTP_PROXY", network.HTTP_PROXY, None, "HTTP proxy (CONNECT) for https:// calls to the "
        "platform; loopback and the hosts of NO_PROXY are reached directly", secret=True, default_text="HTTPS_PROXY, else none")
    noise_link: str = setting("RELAY_NOISE_LINK", choice("off", "optional", "required"), "optional",
        "the Noise link between peer and relay")
    noise_private_key: str | None = setting("RELAY_NOISE_PRIVATE_KEY", TEXT, None, "the relay's X25519 private key, base64url "
        "of 32 bytes (`viewport-relay keygen`)", secret=True, default_text="made at first start, kept in RELAY_STATE_DIR")
    noise_previous_key: str | None = setting("RELAY_NOISE_PREVIOUS_KEY", TEXT, None, "the previous private key, accepted while peers "
        "learn the new one", secret=True)
    log_format: str = setting("RELAY_LOG_FORMAT", choice("auto", "json", "text"), "auto", "one JSON object a line, or a line "
        "of words; auto: words on a terminal")
    log_level: Level = setting("RELAY_LOG_LEVEL", LOG_LEVEL, "info", "least level on standard output",
        reload=True)


@frozen(slots=False)
class RetiredSettings:
    """Settings that the reference no longer lists: implied by others, or numbers that fit every known deployment.

    They are still read. One warning at start names those that are set.
    """

    # fmt: off
    tls: str = setting("RELAY_TLS", choice("auto", "0", "1"), "auto", "implied by RELAY_TLS_CERT_PATH")
    server_mtls: bool = setting("RELAY_SERVER_MTLS", BOOLEAN, None, "implied by RELAY_SERVER_CLIENT_CERT_PATH",
        default_text="on when RELAY_SERVER_CLIENT_CERT_PATH is set")
    redis_sentinel_ca_cert_path: str | None = setting("RELAY_REDIS_SENTINEL_CA_CERT_PATH", FILE, None,
        "CA that signs the certificates of the Sentinels, PEM: RELAY_REDIS_CA_CERT_PATH takes more than one",
        default_text="RELAY_REDIS_CA_CERT_PATH")
    no_proxy: tuple[str, ...] = setting("RELAY_NO_PROXY", network.NO_PROXY, (), "implied by NO_PROXY: what is reached without the HTTP "
        "proxy, as host names, .suffixes, IPs, CIDRs, *", default_text="NO_PROXY, else none")
    reject_mode: str = setting("RELAY_REJECT_MODE", choice("auto", "http", "close"), "auto",
        "how refusals look: HTTP status, or upgraded and closed; auto closes for tokens that came as sub-protocol")
    idle_timeout_ms: int = setting("RELAY_IDLE_TIMEOUT_MS", milliseconds(), 300_000, "time without a sign of life; pings end a "
        "connection sooner", reload=True)
    token_clock_skew_sec: int = setting("RELAY_TOKEN_CLOCK_SKEW_SEC", seconds(0, 3600), 30, "tolerance for exp, nbf and iat")
    jwks_cache_ttl: int = setting("RELAY_JWKS_CACHE_TTL", seconds(1, 86_400), 3600, "how long a fetched key set serves; an "
        "unknown kid fetches it sooner")
    server_tls_verify: bool = setting("RELAY_SERVER_TLS_VERIFY", BOOLEAN, True, "verify the platform's certificate and host "
        "name; RELAY_SERVER_CA_CERT_PATH is for a CA of your own")
    validate_cache_ttl: int = setting("RELAY_VALIDATE_CACHE_TTL", seconds(0, 3600), 10, "how long an admitted answer serves; 0 "
        "asks every time")
    max_logs: int = setting("RELAY_MAX_LOGS", integer(1, 1_000_000), 1000, "entries that /logs keeps", older=("MAX_LOGS",))
    http_rate_per_ip: int = setting("RELAY_HTTP_RATE_PER_IP", COUNT, 1200, "plain HTTP requests per address and minute, "
        "without those that carry a valid admin token; 0 is off", reload=True)
    max_pending_bytes: int = setting("RELAY_MAX_PENDING_BYTES", size(1024, 1_073_741_824), 4_194_304,
        "most that is queued to one client", default_text="4 MiB, or four of the longest messages")
    kex_rate: int = setting("RELAY_KEX_INIT_RATE_PER_MINUTE", COUNT, 60, "key exchanges of a client; 0 is off", reload=True)
    pairing_rate: int = setting("RELAY_PAIRING_RATE_PER_MINUTE", COUNT, 30, "pairing frames of a client; 0 is off", reload=True)
    pong_timeout_ms: int = setting("RELAY_PONG_TIMEOUT_MS", milliseconds(), 10_000, "time a peer has to show life after a ping")
    worker_timeout_ms: int = setting("RELAY_WORKER_TIMEOUT_MS", milliseconds(1000, 3_600_000), 20_000,
        "a worker process that has not answered its parent for so long is killed and replaced")
    jwks_cooldown: int = setting("RELAY_JWKS_COOLDOWN", seconds(1, 3600), 30, "least time between two fetches that an unknown "
        "kid or a bad signature starts")
    admission_max_response_bytes: int = setting("RELAY_ADMISSION_MAX_RESPONSE_BYTES", size(256, 16_777_216), 262_144,
        "longest validation answer")
    internal_api_timeout_ms: int = setting("RELAY_INTERNAL_API_TIMEOUT_MS", milliseconds(), 2000,
        "time limit for the platform's presence and bus calls")
    internal_api_max_response_bytes: int = setting("RELAY_INTERNAL_API_MAX_RESPONSE_BYTES", size(256, 67_108_864), 262_144,
        "longest answer of the platform's presence and bus calls")
    request_track_max: int = setting("RELAY_PAIRING_REQUEST_TRACK_MAX", POSITIVE, 2048, "pending requests remembered per "
        "target and kind")
    session_owner_track_max: int = setting("RELAY_SESSION_OWNER_TRACK_MAX", POSITIVE, 4096, "sessions remembered per target")
    empty_workspace_ttl_ms: int = setting("RELAY_EMPTY_WORKSPACE_TTL_MS", milliseconds(), 120_000,
        "how long a target without peers is remembered")
    cleanup_interval_ms: int = setting("RELAY_CLEANUP_INTERVAL_MS", milliseconds(), 30_000, "time between clean-ups")
    noise_timeout_ms: int = setting("RELAY_NOISE_TIMEOUT_MS", milliseconds(), 10_000, "time for the link's handshake")
    enable_admin_http: bool = setting("RELAY_ENABLE_ADMIN_HTTP", BOOLEAN, True, "serve the admin paths; without "
        "RELAY_ADMIN_TOKEN they are off")
    health_verbose: bool = setting("RELAY_HEALTH_VERBOSE", BOOLEAN, None, "/health tells version, id and mode",
        default_text="on in dev")
    state_include_client_ids: bool = setting("RELAY_STATE_INCLUDE_CLIENT_IDS", BOOLEAN, None, "/state lists client ids",
        default_text="on in dev")
    fast_path: bool = setting("RELAY_FAST_PATH", BOOLEAN, True, "0 runs every frame through plain Autobahn")
    bus_enabled: bool = setting("RELAY_BUS_ENABLED", BOOLEAN, None, "carry frames between relays",
        default_text="on when RELAY_BUS_HMAC_KEY is set")
    bus_max_skew_ms: int = setting("RELAY_BUS_SIGNATURE_MAX_SKEW_MS", milliseconds(), 15_000, "greatest age of a bus frame")
    bus_poll_interval_ms: int = setting("RELAY_BUS_POLL_INTERVAL_MS", milliseconds(), 250, "time between pulls in server mode")
    bus_pull_limit: int = setting("RELAY_BUS_PULL_LIMIT", integer(1, 10_000), 200, "bus frames per pull")
    bus_pull_wait_ms: int = setting("RELAY_BUS_PULL_WAIT_MS", milliseconds(0, 60_000), 1000, "how long a pull waits")
    presence_sync_enabled: bool = setting("RELAY_PRESENCE_SYNC_ENABLED", BOOLEAN, True, "announce daemons")
    presence_sync_interval_ms: int = setting("RELAY_PRESENCE_SYNC_INTERVAL_MS", milliseconds(), 20_000,
        "time between announcements")
    redis_connect_timeout_ms: int = setting("RELAY_REDIS_CONNECT_TIMEOUT_MS", milliseconds(), 5000, "time limit for connecting to Redis")
    redis_presence_ttl_ms: int = setting("RELAY_REDIS_PRESENCE_TTL_MS", milliseconds(), 45_000, "lifetime of a presence entry in Redis")
    redis_queue_max: int = setting("RELAY_REDIS_QUEUE_MAX", POSITIVE, 10_000, "longest bus queue")
