"""The settings for special cases."""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config.network import ADMIN_LISTEN, HTTP_PROXY, Address
from viewport_relay.config.table import setting
from viewport_relay.config.values import BOOLEAN, TEXT, TOKENS, choice, milliseconds, seconds


@frozen(slots=False)
class RareSettings:
    """Other ways to listen, the token check, the Noise link, logs."""

    # fmt: off
    settings_file: str | None = setting(
        "RELAY_SETTINGS_FILE", TEXT, None, "file of NAME=VALUE lines with further settings, read at start and again on "
        "SIGHUP; what the environment sets wins"
    )
    listen_endpoint: str | None = setting(
        "RELAY_LISTEN_ENDPOINT", TEXT, None, "Twisted server endpoint instead of host and port, for example "
        "systemd:domain=INET:index=0"
    )
    admin_listen: Address | None = setting(
        "RELAY_ADMIN_LISTEN", ADMIN_LISTEN, None, "a separate listener for the admin paths, which the public port "
        "then serves no longer"
    )
    proxy_protocol: bool = setting(
        "RELAY_PROXY_PROTOCOL", BOOLEAN, False, "expect PROXY protocol v1 or v2 on every connection (only behind a "
        "load balancer that sends it); where RELAY_TRUSTED_PROXIES is set, from those addresses only"
    )
    metrics_tokens: tuple[str, ...] = setting(
        "RELAY_METRICS_TOKEN", TOKENS, (), "bearer token that reads /metrics and nothing else; with commas, several",
        secret=True, default_text="none", reload=True
    )
    http_keep_alive: int = setting(
        "RELAY_HTTP_KEEP_ALIVE_SEC", seconds(1, 3600), 75, "how long an idle HTTP connection is kept after an answer: "
        "longer than the balancer in front keeps it, or requests are lost in the race"
    )
    token_issuer: str = setting("RELAY_TOKEN_ISSUER", TEXT, "viewport-server", "iss of relay tokens")
    token_audience: str = setting("RELAY_TOKEN_AUDIENCE", TEXT, "viewport-relay", "what aud must contain")
    token_expiry: str = setting(
        "RELAY_TOKEN_EXPIRY", choice("close", "ignore"), "ignore", "what becomes of an open connection when its token "
        "expires (30 s after its exp): close it 4401 `invalid_token`, or let it be", reload=True
    )
    admission_timeout_ms: int = setting(
        "RELAY_ADMISSION_TIMEOUT_MS", milliseconds(), 2000, "total time limit for one validation"
    )
    http_proxy: str | None = setting(
        "RELAY_HTTP_PROXY", HTTP_PROXY, None, "HTTP proxy (CONNECT) for https:// calls to the platform; loopback and "
        "the hosts of NO_PROXY are reached directly", secret=True, default_text="HTTPS_PROXY, else none"
    )
    noise_link: str = setting(
        "RELAY_NOISE_LINK", choice("off", "optional", "required"), "optional",
        "the Noise link between peer and relay"
    )
    noise_private_key: str | None = setting(
        "RELAY_NOISE_PRIVATE_KEY", TEXT, None, "the relay's X25519 private key, base64url of 32 bytes "
        "(`viewport-relay keygen`)", secret=True, default_text="made at first start, kept in RELAY_STATE_DIR"
    )
    noise_previous_key: str | None = setting(
        "RELAY_NOISE_PREVIOUS_KEY", TEXT, None, "the key before, accepted while peers learn the new one",
        secret=True
    )
    log_format: str = setting(
        "RELAY_LOG_FORMAT", choice("auto", "json", "text"), "auto", "one JSON object a line, or a line of words; auto: "
        "words on a terminal"
    )
    log_level: str = setting(
        "RELAY_LOG_LEVEL", choice("info", "warn", "error"), "info", "least level on standard output", reload=True
    )
