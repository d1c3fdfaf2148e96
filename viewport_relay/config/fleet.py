"""The settings of several relays behind one name."""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config.network import HOSTS, SENTINELS, Address
from viewport_relay.config.table import setting
from viewport_relay.config.values import BOOLEAN, RELAY_ID, TEXT, choice, url


@frozen(slots=False)
class FleetSettings:
    """How relays find each other's daemons and carry frames between them."""

    # fmt: off
    backplane_mode: str = setting(
        "RELAY_BACKPLANE_MODE", choice("single", "redis", "server"), "single",
        "how relays find each other's daemons"
    )
    relay_id: str = setting(
        "RELAY_ID", RELAY_ID, None, "name of this relay in presence, bus and logs", default_text="host name and a "
        "random suffix"
    )
    bus_hmac_key: str | None = setting(
        "RELAY_BUS_HMAC_KEY", TEXT, None, "key that signs frames between relays, the same on every relay; they are "
        "carried when it is set", secret=True
    )
    client_redirect_enabled: bool = setting(
        "RELAY_CLIENT_REDIRECT_ENABLED", BOOLEAN, None, "send clients to the relay of their daemon",
        default_text="on in redis and server mode"
    )
    redirect_allowed_hosts: tuple[str, ...] = setting(
        "RELAY_REDIRECT_ALLOWED_HOSTS", HOSTS, (), "hosts to redirect to; empty: any, in prod only that of "
        "RELAY_PUBLIC_WS_BASE_URL"
    )
    redis_url: str = setting(
        "RELAY_REDIS_URL", url("redis", "rediss"), None, "Redis server", secret=True,
        default_text="redis://127.0.0.1:6379"
    )
    redis_ca_cert_path: str | None = setting(
        "RELAY_REDIS_CA_CERT_PATH", TEXT, None, "CA that signs the certificate of a rediss:// server and of its "
        "Sentinels, PEM; more than one where they differ",
        default_text="the system's"
    )
    redis_sentinels: tuple[Address, ...] = setting(
        "RELAY_REDIS_SENTINELS", SENTINELS, (), "Redis Sentinels; they name the master, and RELAY_REDIS_URL gives "
        "scheme, user, password and database only"
    )
    redis_sentinel_master: str = setting(
        "RELAY_REDIS_SENTINEL_MASTER", TEXT, "mymaster", "what the Sentinels call the master"
    )
    redis_sentinel_username: str | None = setting(
        "RELAY_REDIS_SENTINEL_USERNAME", TEXT, None, "ACL user of the Sentinels, where they have users"
    )
    redis_sentinel_password: str | None = setting(
        "RELAY_REDIS_SENTINEL_PASSWORD", TEXT, None, "password of the Sentinels", secret=True
    )
    redis_sentinel_tls: str = setting(
        "RELAY_REDIS_SENTINEL_TLS", choice("auto", "0", "1"), "auto", "whether the Sentinels speak TLS",
        default_text="as RELAY_REDIS_URL"
    )
    presence_signatures: str = setting(
        "RELAY_PRESENCE_SIGNATURES", choice("accept", "require"), "accept", "whether presence entries in Redis must be "
        "signed: accept takes those of relays that do not sign, require takes none of them"
    )
    redis_key_prefix: str = setting("RELAY_REDIS_KEY_PREFIX", TEXT, "viewport:relay", "prefix of every key")
