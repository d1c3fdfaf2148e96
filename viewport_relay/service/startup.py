"""The log lines of a start: warnings about the process, and the address and settings in force."""

from __future__ import annotations

from viewport_relay import __version__, descriptors
from viewport_relay.admin.settings import changed, shown_url
from viewport_relay.config import Config, bracketed
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.observe.logs import EventLog


def start_warnings(config: Config, keys: RelayKeys, open_files: int) -> list[str]:
    """Warnings that depend on the process too. `open_files`: the limit on descriptors (0: not limited)."""
    found = []
    wanted = descriptors.wanted(config.max_total_connections)
    if 0 < open_files < wanted:
        found.append(
            f"at most {open_files} files may be open: RELAY_MAX_TOTAL_CONNECTIONS={config.max_total_connections} "
            f"needs {wanted} (LimitNOFILE=, --ulimit nofile=)"
        )
    # Peers pin the key only where the link is configured or required.
    asked_for = config.sources.get("noise_link", "default") != "default"
    if keys.source == "ephemeral" and asked_for and config.noise_link != "off":
        found.append(
            "the Noise link's key lives as long as this process: set RELAY_STATE_DIR or RELAY_NOISE_PRIVATE_KEY_FILE "
            "so that peers can pin it"
        )
    return found


def log_started(log: EventLog, config: Config, port: int | None, *, tls: bool) -> None:
    """Log version, addresses and the settings that are not defaults. `port` and `tls`: those of the peers' listener."""
    peers = config.listen_endpoint or bracketed(config.listen_host, port or 0)
    listens = {"peers": f"{'wss' if tls else 'ws'} on {peers}"}
    if config.admin_tokens and config.enable_admin_http:
        listens["admin"] = f"http on {config.admin_listen}" if config.admin_listen else "with the peers"
    log.event(
        "relay_started",
        message=f"listening on {peers}",
        version=__version__,
        port=port,
        relayId=config.relay_id,
        mode=config.mode,
        listens=listens,
        jwksUrl=shown_url(config.jwks_url),
        validateUrl=shown_url(config.validate_url),
        hasInternalKey=config.internal_key is not None,
        backplaneMode=config.backplane_mode,
        changed=changed(config),
    )
