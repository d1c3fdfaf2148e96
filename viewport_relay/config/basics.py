"""The settings that nearly every deployment sets."""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config.network import LISTEN_HOST, ORIGINS, PROXIES, ProxyList
from viewport_relay.config.table import setting
from viewport_relay.config.values import HEADER_VALUE, MODE, TEXT, TOKENS, Mode, integer, url


@frozen(slots=False)
class BasicSettings:
    """Where the relay listens, which platform it asks, and who operates it."""

    # fmt: off
    listen_host: str = setting(
        "RELAY_LISTEN_HOST", LISTEN_HOST, "127.0.0.1", "address to listen on", older=("HOST",), option="listen-host"
    )
    listen_port: int = setting(
        "RELAY_LISTEN_PORT", integer(0, 65535), 7781, "port to listen on (0: any free one)", older=("PORT",),
        option="listen-port"
    )
    server_url: str = setting(
        "SERVER_URL", url("http", "https"), None, "origin of the platform, from which the next two follow",
        default_text="origin of RELAY_VALIDATE_URL"
    )
    jwks_url: str = setting(
        "RELAY_JWKS_URL", url("http", "https"), None, "public keys that sign relay tokens",
        default_text="SERVER_URL + /api/.well-known/jwks.json", option="jwks-url"
    )
    validate_url: str = setting(
        "RELAY_VALIDATE_URL", url("http", "https"), None, "endpoint that admits a token",
        default_text="SERVER_URL + /api/runtime/internal/relay/validate", option="validate-url"
    )
    internal_key: str | None = setting(
        "RELAY_INTERNAL_KEY", HEADER_VALUE, None, "sent to the platform as x-relay-internal-key", secret=True
    )
    admin_tokens: tuple[str, ...] = setting(
        "RELAY_ADMIN_TOKEN", TOKENS, (), "bearer token of /admin/, /logs, /state and /metrics; with commas, several (to "
        "change it: the new and the old one)", secret=True, default_text="none", reload=True
    )
    mode: Mode = setting(
        "RELAY_MODE", MODE, None, "prod refuses placeholder or short secrets, query tokens and the dev platform",
        default_text="dev on a loopback listen host, else prod", option="mode"
    )
    public_ws_base_url: str = setting(
        "RELAY_PUBLIC_WS_BASE_URL", url("ws", "wss"), None, "where peers reach this relay; other relays redirect "
        "there", default_text="from listen host and port"
    )
    trusted_proxies: ProxyList = setting(
        "RELAY_TRUSTED_PROXIES", PROXIES, ProxyList(), "addresses of proxies whose X-Forwarded-For is believed, unix: for "
        "those on a Unix socket; an entry that does not parse is skipped with a warning", default_text="none", reload=True
    )
    allowed_origins: tuple[str, ...] = setting(
        "RELAY_ALLOWED_ORIGINS", ORIGINS, (), "browser origins that may connect; unset: any. Trailing slash, "
        "default port and case do not matter", reload=True
    )
    state_dir: str | None = setting(
        "RELAY_STATE_DIR", TEXT, None, "folder for what must survive a restart (the link's key, mode 0600)",
        default_text="$STATE_DIRECTORY, else none"
    )
