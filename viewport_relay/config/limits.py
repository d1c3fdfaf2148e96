"""The settings that bound what peers may use: connections, rates, sizes, times."""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config.table import setting
from viewport_relay.config.values import COUNT, WORKERS, milliseconds, seconds, size


@frozen(slots=False)
class LimitSettings:
    """How much each peer, address and workspace may use; rates are per minute, and 0 turns a limit off."""

    # fmt: off
    rate_limit_per_ip: int = setting(
        "RELAY_RATE_LIMIT_PER_IP", COUNT, 120, "upgrade attempts per address and minute, refused ones too; 0 is "
        "off", older=("RELAY_UPGRADE_RATE_PER_MINUTE",), option="rate-limit-per-ip", reload=True
    )
    max_total_connections: int = setting("RELAY_MAX_TOTAL_CONNECTIONS", COUNT, 2000, "connections in all; 0 is off", reload=True)
    max_connections_per_ip: int = setting(
        "RELAY_MAX_CONNECTIONS_PER_IP", COUNT, 50, "connections of one address; 0 is off", reload=True
    )
    max_clients_per_workspace: int = setting(
        "RELAY_MAX_CLIENTS_PER_WORKSPACE", COUNT, 100, "clients of one workspace and runtime target; 0 is off", reload=True
    )
    frame_max_bytes: int = setting(
        "RELAY_FRAME_MAX_BYTES", size(256, 67_108_864), 1_048_576, "longest message",
        older=("RELAY_MAX_FRAME_BYTES",), option="frame-max-bytes"
    )
    runtime_rate: int = setting(
        "RELAY_RUNTIME_RATE_PER_MINUTE", COUNT, 240, "e2ee and presence frames of a client; 0 is off", reload=True
    )
    runtime_rate_workspace: int = setting(
        "RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE", COUNT, 1200, "the same of all clients of a workspace; 0 is off", reload=True
    )
    daemon_rate: int = setting(
        "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE", COUNT, 2400, "frames of a daemon, requests of a worker; 0 is off", reload=True
    )
    ping_interval_ms: int = setting("RELAY_PING_INTERVAL_MS", milliseconds(), 30_000, "time between pings", reload=True)
    drain_seconds: int = setting("RELAY_DRAIN_SECONDS", seconds(0, 600), 5, "time for peers to go at shutdown", reload=True)
    workers: int = setting(
        "RELAY_WORKERS", WORKERS, 1, "worker processes behind the one port; auto: one for each core that this "
        "machine or container gives, as far as its memory reaches"
    )
