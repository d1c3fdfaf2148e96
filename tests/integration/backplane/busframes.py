"""Bus frames made by hand with the fleet's signing key: what an attacker with access to the bus could send."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

from tests.integration.backplane.fleet import BUS_KEY, Fleet


def signed(frame: dict[str, Any], key: str = BUS_KEY) -> dict[str, Any]:
    base = "\n".join(
        (
            frame["workspaceId"],
            frame["runtimeTargetId"],
            frame.get("machineId") or "",
            frame["sourceRelayId"],
            frame.get("targetRelayId") or "",
            frame["direction"],
            str(frame["issuedAtMs"]),
            frame["payload"],
        )
    )
    mac = hmac.new(key.encode(), base.encode(), hashlib.sha256).digest()
    return {**frame, "signature": base64.urlsafe_b64encode(mac).rstrip(b"=").decode()}


def bus_frame(
    fleet: Fleet,
    direction: str,
    payload: str,
    *,
    source: str = "elsewhere",
    target_relay: str | None = "b",
    age: float = 0.0,
    key: str = BUS_KEY,
) -> dict[str, Any]:
    """A signed frame for the fleet's target, issued `age` seconds ago."""
    frame = {
        "workspaceId": fleet.workspace,
        "runtimeTargetId": fleet.target,
        "sourceRelayId": source,
        "targetRelayId": target_relay,
        "direction": direction,
        "payload": payload,
        "issuedAtMs": int((time.time() - age) * 1000),
    }
    return signed(frame, key)
