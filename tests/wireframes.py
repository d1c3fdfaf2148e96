"""One valid example of each frame of the wire protocol, section 4, and functions that change one.

example("e2ee", sessionId="s-1", tag=...)      # a dict; `...` removes a member
encoded("e2ee", seq=7)                         # the bytes of a message
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, Final

CHANNEL: Final = "agent-session:alpha"

EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "e2ee": {
        "type": "e2ee",
        "version": 2,
        "profile": "noise-ik",
        "sessionId": "session-1",
        "epoch": 1,
        "seq": 1,
        "iv": "aXYtaXYtaXYt",
        "tag": "dGFnLXRhZw",
        "ciphertext": "b3BhcXVl",
    },
    "init v3": {
        "type": "relay_key_exchange_init",
        "version": 3,
        "profile": "noise-ik",
        "requestId": "request-1",
        "clientEphemeralPublicKey": "BGVwaA",
        "encryptedClientStatic": "c3RhdGlj",
    },
    "init v2": {
        "type": "relay_key_exchange_init",
        "version": 2,
        "profile": "noise-ik",
        "requestId": "request-1",
        "clientPublicKey": "BHB1Yg",
        "clientNonce": "bm9uY2U",
        "clientProof": "cHJvb2Y",
    },
    "response v3": {
        "type": "relay_key_exchange_response",
        "version": 3,
        "profile": "noise-ik",
        "requestId": "request-1",
        "daemonPublicKey": "BGRhZW1vbg",
        "daemonEphemeralPublicKey": "BGVwaA",
        "encryptedMetadata": "bWV0YQ",
        "sessionId": "session-1",
        "epoch": 1,
        "proof": "cHJvb2Y",
    },
    "response v2": {
        "type": "relay_key_exchange_response",
        "version": 2,
        "profile": "noise-ik",
        "requestId": "request-1",
        "daemonNonce": "bm9uY2U",
        "sessionId": "session-1",
        "epoch": 1,
        "proof": "cHJvb2Y",
    },
    "key update": {"type": "relay_key_update_required", "sessionId": "session-1", "nextEpoch": 2},
    "offer request": {
        "type": "relay_pairing_offer_request",
        "requestId": "request-1",
        "clientChannelPublicKey": "BGNo",
    },
    "redeem request": {
        "type": "relay_pairing_redeem_request",
        "requestId": "request-1",
        "offerId": "offer-1",
        "encIv": "aXY",
        "encTag": "dGFn",
        "encCiphertext": "Y3Q",
    },
    "offer response": {
        "type": "relay_pairing_offer_response",
        "requestId": "request-1",
        "ok": True,
        "daemonChannelPublicKey": "BGRj",
        "encIv": "aXY",
        "encTag": "dGFn",
        "encCiphertext": "Y3Q",
    },
    "offer failure": {
        "type": "relay_pairing_offer_response",
        "requestId": "request-1",
        "ok": False,
        "errorCode": "PAIRING_DISABLED",
    },
    "redeem response": {"type": "relay_pairing_redeem_response", "requestId": "request-1", "ok": True},
    "redeem failure": {
        "type": "relay_pairing_redeem_response",
        "requestId": "request-1",
        "ok": False,
        "errorCode": "OFFER_EXPIRED",
    },
    "subscribe": {"type": "viewport.session_events.subscribe/v1", "channel": CHANNEL},
    "unsubscribe": {"type": "viewport.session_events.unsubscribe/v1", "channel": CHANNEL},
    "presence": {
        "type": "viewport.session_viewer_presence/v1",
        "channel": CHANNEL,
        "action": "joined",
        "userId": "user-1",
    },
    "session event": {
        "schema": "viewport.session_event_relay_frame/v1",
        "channel": CHANNEL,
        "event": {"sequence": 1},
    },
    "worker request": {
        "type": "viewport.worker_transport.request/v1",
        "requestId": "request-1",
        "method": "GET",
        "path": "/api/runtime/workspaces/w/managed-executors/x",
    },
}

#: Names of examples, by sender.
CLIENT_FRAMES: Final = (
    "e2ee",
    "init v3",
    "init v2",
    "offer request",
    "redeem request",
    "subscribe",
    "unsubscribe",
    "presence",
)
DAEMON_FRAMES: Final = (
    "e2ee",
    "response v3",
    "response v2",
    "key update",
    "offer response",
    "offer failure",
    "redeem response",
    "redeem failure",
    "session event",
)
WORKER_FRAMES: Final = ("worker request",)


def example(name: str, **changes: Any) -> dict[str, Any]:
    """The example with members changed; the value `...` removes a member."""
    frame = {**EXAMPLES[name], **changes}
    return {member: value for member, value in frame.items() if value is not ...}


def encoded(name: str, **changes: Any) -> bytes:
    """The example as the bytes of a message."""
    return json.dumps(example(name, **changes), ensure_ascii=False).encode()


def masked_frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = None) -> bytes:
    """A masked frame, as a client sends it (RFC 6455, section 5.2)."""
    key = os.urandom(4) if mask is None else mask
    length = len(payload)
    head = bytes([(0x80 if fin else 0) | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65_536:
        head += b"\xfe" + struct.pack("!H", length)
    else:
        head += b"\xff" + struct.pack("!Q", length)
    whole = int.from_bytes(payload, "big") ^ int.from_bytes((key * (length // 4 + 1))[:length], "big")
    return head + key + whole.to_bytes(length, "big")
