"""Settings that the reference no longer lists: implied by others, or numbers that fit every known deployment.

They are still read. One warning at start names those that are set.
"""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config.network import NO_PROXY
from viewport_relay.config.table import setting
from viewport_relay.config.values import (
    BOOLEAN,
    COUNT,
    POSITIVE,
    TEXT,
    choice,
    integer,
    milliseconds,
    seconds,
    size,
)


@frozen(slots=False)
class RetiredSettings:
    """Each has a default that nothing known needs to change."""

    # fmt: off
    tls: str = setting("RELAY_TLS", choice("auto", "0", "1"), "auto", "implied by RELAY_TLS_CERT_PATH")
    server_mtls: bool = setting(
        "RELAY_SERVER_MTLS", BOOLEAN, None, "implied by RELAY_SERVER_CLIENT_CERT_PATH",
        default_text="on when RELAY_SERVER_CLIENT_CERT_PATH is set"
    )
    redis_sentinel_ca_cert_path: str | None = setting(
        "RELAY_REDIS_SENTINEL_CA_CERT_PATH", TEXT, None, "CA that signs the certificates of the Sentinels, PEM: "
        "RELAY_REDIS_CA_CERT_PATH takes more than one", default_text="RELAY_REDIS_CA_CERT_PATH"
    )
    no_proxy: tuple[str, ...] = setting(
        "RELAY_NO_PROXY", NO_PROXY, (), "implied by NO_PROXY: what is reached without the HTTP proxy, as host names, "
        ".suffixes, IPs, CIDRs, *", default_text="NO_PROXY, else none"
    )
    reject_mode: str = setting(
        "RELAY_REJECT_MODE", choice("auto", "http", "close"), "auto", "how refusals look: HTTP status, or upgraded "
        "and closed; auto closes for tokens that came as sub-protocol"
    )
    idle_timeout_ms: int = setting(
        "RELAY_IDLE_TIMEOUT_MS", milliseconds(), 300_000, "time without a sign of life; pings end a connection sooner", reload=True
    )
    token_clock_skew_sec: int = setting(
        "RELAY_TOKEN_CLOCK_SKEW_SEC", seconds(0, 3600), 30, "tolerance for exp, nbf and iat"
    )
    jwks_cache_ttl: int = setting(
        "RELAY_JWKS_CACHE_TTL", seconds(1, 86_400), 3600, "how long a fetched key set serves; an unknown kid fetches it "
        "sooner"
    )
    server_tls_verify: bool = setting(
        "RELAY_SERVER_TLS_VERIFY", BOOLEAN, True, "verify the platform's certificate and host name; "
        "RELAY_SERVER_CA_CERT_PATH is for a CA of your own"
    )
    validate_cache_ttl: int = setting(
        "RELAY_VALIDATE_CACHE_TTL", seconds(0, 3600), 10, "how long an admitted answer serves; 0 asks every time"
    )
    max_logs: int = setting(
        "RELAY_MAX_LOGS", integer(1, 1_000_000), 1000, "entries that /logs keeps", older=("MAX_LOGS",)
    )
    http_rate_per_ip: int = setting(
        "RELAY_HTTP_RATE_PER_IP", COUNT, 1200, "plain HTTP requests per address and minute, without those that carry a "
        "valid admin token; 0 is off", reload=True
    )
    max_pending_bytes: int = setting(
        "RELAY_MAX_PENDING_BYTES", size(1024, 1_073_741_824), 4_194_304, "most that is queued to one client",
        default_text="4 MiB, or four of the longest messages"
    )
    kex_rate: int = setting("RELAY_KEX_INIT_RATE_PER_MINUTE", COUNT, 60, "key exchanges of a client; 0 is off", reload=True)
    pairing_rate: int = setting("RELAY_PAIRING_RATE_PER_MINUTE", COUNT, 30, "pairing frames of a client; 0 is off", reload=True)
    pong_timeout_ms: int = setting(
        "RELAY_PONG_TIMEOUT_MS", milliseconds(), 10_000, "time a peer has to show life after a ping"
    )
    worker_timeout_ms: int = setting(
        "RELAY_WORKER_TIMEOUT_MS", milliseconds(1000, 3_600_000), 20_000, "a worker process that has not answered "
        "its parent for so long is killed and replaced"
    )
    jwks_cooldown: int = setting(
        "RELAY_JWKS_COOLDOWN", seconds(1, 3600), 30, "least time between two fetches that an unknown kid or a bad "
        "signature starts"
    )
    admission_max_response_bytes: int = setting(
        "RELAY_ADMISSION_MAX_RESPONSE_BYTES", size(256, 16_777_216), 262_144, "longest validation answer"
    )
    internal_api_timeout_ms: int = setting(
        "RELAY_INTERNAL_API_TIMEOUT_MS", milliseconds(), 2000, "time limit for the platform's presence and bus "
        "calls"
    )
    internal_api_max_response_bytes: int = setting(
        "RELAY_INTERNAL_API_MAX_RESPONSE_BYTES", size(256, 67_108_864), 262_144, "longest answer of those calls"
    )
    request_track_max: int = setting(
        "RELAY_PAIRING_REQUEST_TRACK_MAX", POSITIVE, 2048, "pending requests remembered per target and kind"
    )
    session_owner_track_max: int = setting(
        "RELAY_SESSION_OWNER_TRACK_MAX", POSITIVE, 4096, "sessions remembered per target"
    )
    empty_workspace_ttl_ms: int = setting(
        "RELAY_EMPTY_WORKSPACE_TTL_MS", milliseconds(), 120_000, "how long a target without peers is remembered"
    )
    cleanup_interval_ms: int = setting(
        "RELAY_CLEANUP_INTERVAL_MS", milliseconds(), 30_000, "time between clean-ups"
    )
    noise_timeout_ms: int = setting(
        "RELAY_NOISE_TIMEOUT_MS", milliseconds(), 10_000, "time for the link's handshake"
    )
    enable_admin_http: bool = setting(
        "RELAY_ENABLE_ADMIN_HTTP", BOOLEAN, True, "serve the admin paths; without RELAY_ADMIN_TOKEN they are off"
    )
    health_verbose: bool = setting(
        "RELAY_HEALTH_VERBOSE", BOOLEAN, None, "/health tells version, id and mode", default_text="on in dev"
    )
    state_include_client_ids: bool = setting(
        "RELAY_STATE_INCLUDE_CLIENT_IDS", BOOLEAN, None, "/state lists client ids", default_text="on in dev"
    )
    fast_path: bool = setting("RELAY_FAST_PATH", BOOLEAN, True, "0 runs every frame through plain Autobahn")
    bus_enabled: bool = setting(
        "RELAY_BUS_ENABLED", BOOLEAN, None, "carry frames between relays", default_text="on when "
        "RELAY_BUS_HMAC_KEY is set"
    )
    bus_max_skew_ms: int = setting(
        "RELAY_BUS_SIGNATURE_MAX_SKEW_MS", milliseconds(), 15_000, "greatest age of a bus frame"
    )
    bus_poll_interval_ms: int = setting(
        "RELAY_BUS_POLL_INTERVAL_MS", milliseconds(), 250, "time between pulls in server mode"
    )
    bus_pull_limit: int = setting("RELAY_BUS_PULL_LIMIT", integer(1, 10_000), 200, "bus frames per pull")
    bus_pull_wait_ms: int = setting(
        "RELAY_BUS_PULL_WAIT_MS", milliseconds(0, 60_000), 1000, "how long a pull waits"
    )
    presence_sync_enabled: bool = setting("RELAY_PRESENCE_SYNC_ENABLED", BOOLEAN, True, "announce daemons")
    presence_sync_interval_ms: int = setting(
        "RELAY_PRESENCE_SYNC_INTERVAL_MS", milliseconds(), 20_000, "time between announcements"
    )
    redis_connect_timeout_ms: int = setting(
        "RELAY_REDIS_CONNECT_TIMEOUT_MS", milliseconds(), 5000, "time limit for connecting"
    )
    redis_presence_ttl_ms: int = setting(
        "RELAY_REDIS_PRESENCE_TTL_MS", milliseconds(), 45_000, "life of a presence entry"
    )
    redis_queue_max: int = setting("RELAY_REDIS_QUEUE_MAX", POSITIVE, 10_000, "longest bus queue")
