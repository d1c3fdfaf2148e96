"""A sample log line for each reason, for the troubleshooting page.

Names of details are those of real lines: `tests/integration/admission/test_troubleshooting.py` provokes them and
compares. Values are made up, and so are the addresses (RFC 5737).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason

#: Time stamp of all samples: the first second of 2026.
SAMPLE_TIME: Final = 1_767_225_600.0

#: For refusals before the query is parsed: only the peer's address is known.
NAMELESS: Final = frozenset(
    {
        Reason.RATE_LIMIT_EXCEEDED,
        Reason.HTTP_RATE_LIMIT_EXCEEDED,
        Reason.CONNECTION_RATE_LIMIT_EXCEEDED,
        Reason.TOO_MANY_CONNECTIONS,
        Reason.TOO_MANY_CONNECTIONS_PER_IP,
        Reason.NOT_FOUND,
        Reason.UPGRADE_REQUIRED,
        Reason.UPGRADE_MALFORMED,
        Reason.QUERY_INVALID,
        Reason.RELAY_SHUTTING_DOWN,
    }
)

_PEER: Final = {"role": "client", "workspaceId": "ws-1", "runtimeTargetId": "rt-1"}
_IP: Final = {"ip": "192.0.2.7"}
_BUS: Final = {"sourceRelayId": "relay-b"}

#: Details of a line beyond its text, for reasons of admission and of the backplane.
_JWKS_URL: Final = "https://platform.example/api/.well-known/jwks.json"
_VALIDATE_URL: Final = "https://platform.example/api/runtime/internal/relay/validate"

DETAILS: Final[Mapping[Reason, Mapping[str, object]]] = {
    Reason.RATE_LIMIT_EXCEEDED: {
        "detail": "121 attempts within 8 s, RELAY_RATE_LIMIT_PER_IP=120 (the default) a minute"
    },
    Reason.HTTP_RATE_LIMIT_EXCEEDED: {
        "detail": "1201 requests within 5 s, RELAY_HTTP_RATE_PER_IP=1200 (the default) a minute"
    },
    Reason.CONNECTION_RATE_LIMIT_EXCEEDED: {
        "detail": "requests went on after 20 answers 429 HTTP_RATE_LIMIT_EXCEEDED"
    },
    Reason.TOO_MANY_CONNECTIONS: {
        "detail": "2000 connections, RELAY_MAX_TOTAL_CONNECTIONS (default 2000) or the limit on open files allows 2000"
    },
    Reason.TOO_MANY_CONNECTIONS_PER_IP: {
        "detail": "50 connections, RELAY_MAX_CONNECTIONS_PER_IP=50 (the default)"
    },
    Reason.TOO_MANY_CLIENTS: {"detail": "100 clients, RELAY_MAX_CLIENTS_PER_WORKSPACE=100 (the default)"},
    Reason.KEY_EXCHANGE_RATE_LIMIT_EXCEEDED: {
        "detail": "RELAY_KEX_INIT_RATE_PER_MINUTE=60 (the default) a minute"
    },
    Reason.PAIRING_RATE_LIMIT_EXCEEDED: {"detail": "RELAY_PAIRING_RATE_PER_MINUTE=30 (the default) a minute"},
    Reason.RUNTIME_RATE_LIMIT_EXCEEDED: {
        "detail": "RELAY_RUNTIME_RATE_PER_MINUTE=240 (the default) a minute"
    },
    Reason.PRESENCE_RATE_LIMIT_EXCEEDED: {
        "detail": "RELAY_RUNTIME_RATE_PER_MINUTE=240 (the default) a minute"
    },
    Reason.DAEMON_RATE_LIMIT_EXCEEDED: {
        "detail": "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE=2400 (the default) a minute"
    },
    Reason.WORKER_RATE_LIMIT_EXCEEDED: {
        "detail": "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE=2400 (the default) a minute"
    },
    Reason.UPGRADE_REQUIRED: {"detail": "Sec-WebSocket-Version is not 13"},
    Reason.UPGRADE_MALFORMED: {"detail": "Sec-WebSocket-Key is not base64 of 16 bytes"},
    Reason.TOKEN_MISSING: {"detail": "the request carries none"},
    Reason.QUERY_INVALID: {"detail": "workspaceId is missing"},
    Reason.ORIGIN_NOT_ALLOWED: {
        "detail": "Origin is 'https://elsewhere.example', RELAY_ALLOWED_ORIGINS has https://app.example"
    },
    Reason.JWKS_UNREACHABLE: {
        "why": "connection refused",
        "url": _JWKS_URL,
        "hint": "nothing listens at platform.example: check that the platform runs, and the port",
        "detail": f"connection refused ({_JWKS_URL})",
    },
    Reason.JWT_SIGNATURE_MISMATCH: {
        "kid": "v2",
        "kids": ["v1"],
        "iss": "viewport-server",
        "url": _JWKS_URL,
        "detail": "kid v2 is not in the JWKS, which has v1",
    },
    Reason.JWT_EXPIRED: {
        "secondsAgo": 400,
        "iat": "2025-12-31T23:48:20Z",
        "exp": "2025-12-31T23:53:20Z",
        "now": "2026-01-01T00:00:00Z",
        "clockOffset": 0.3,
        "detail": "exp passed 400 s ago (iat 2025-12-31T23:48:20Z, exp 2025-12-31T23:53:20Z, the relay's clock "
        "2026-01-01T00:00:00Z, the platform's alike)",
    },
    Reason.JWT_MALFORMED: {"detail": "it is not three parts of base64url, the first a JSON object"},
    Reason.JWT_ALGORITHM_NOT_ALLOWED: {"alg": "HS256", "detail": "alg is HS256"},
    Reason.JWT_NOT_YET_VALID: {
        "secondsAhead": 90,
        "iat": "2026-01-01T00:00:00Z",
        "nbf": "2026-01-01T00:01:30Z",
        "exp": "2026-01-01T00:06:30Z",
        "now": "2026-01-01T00:00:00Z",
        "clockOffset": 0.3,
        "detail": "nbf is 90 s in the future (iat 2026-01-01T00:00:00Z, nbf 2026-01-01T00:01:30Z, "
        "exp 2026-01-01T00:06:30Z, the relay's clock 2026-01-01T00:00:00Z, the platform's alike)",
    },
    Reason.JWT_ISSUER_MISMATCH: {
        "claim": "iss",
        "got": "https://platform.example",
        "expected": "viewport-server",
        "hint": "if these tokens are meant for this relay, set RELAY_TOKEN_ISSUER=https://platform.example",
        "detail": "iss is 'https://platform.example', RELAY_TOKEN_ISSUER expects 'viewport-server'",
    },
    Reason.JWT_AUDIENCE_MISMATCH: {
        "claim": "aud",
        "got": "another-service",
        "expected": "viewport-relay",
        "hint": "if these tokens are meant for this relay, set RELAY_TOKEN_AUDIENCE=another-service",
        "detail": "aud is 'another-service', RELAY_TOKEN_AUDIENCE expects 'viewport-relay'",
    },
    Reason.JWT_CLAIM_MISMATCH: {
        "claim": "workspaceId",
        "got": "ws-2",
        "expected": "ws-1",
        "detail": "workspaceId is ws-2, the query says ws-1",
    },
    Reason.PLATFORM_UNREACHABLE: {
        "why": "time out",
        "url": _VALIDATE_URL,
        "hint": "there was no whole answer within 2 s: look at the load of the host and the network to it",
        "detail": f"time out ({_VALIDATE_URL})",
    },
    Reason.WORKSPACE_NOT_FOUND: {"httpStatus": 404, "platformWord": "WORKSPACE_NOT_FOUND"},
    Reason.INTERNAL_KEY_MISMATCH: {
        "why": "the answer is HTTP 401",
        "url": _VALIDATE_URL,
        "httpStatus": 401,
        "platformWord": "invalid relay internal key",
        "detail": f"the answer is HTTP 401 ({_VALIDATE_URL})",
    },
    Reason.VALIDATION_DENIED: {"httpStatus": 403, "platformWord": "SEAT_TAKEN", "detail": "SEAT_TAKEN"},
    Reason.ADMISSION_RESPONSE_TOO_LARGE: {
        "why": "the answer is longer than 262144 bytes",
        "url": _VALIDATE_URL,
        "httpStatus": 200,
        "detail": f"the answer is longer than 262144 bytes ({_VALIDATE_URL})",
    },
    Reason.VALIDATION_RESPONSE_INVALID: {
        "why": "the answer (HTTP 200, text/html) is not a JSON object",
        "url": _VALIDATE_URL,
        "httpStatus": 200,
        "detail": f"the answer (HTTP 200, text/html) is not a JSON object ({_VALIDATE_URL})",
    },
    Reason.WORKSPACE_CLAIM_MISMATCH: {"detail": "the claim names another workspace than the query"},
    Reason.RUNTIME_TARGET_CLAIM_MISMATCH: {"detail": "the claims name another target than the query"},
    Reason.DAEMON_ALREADY_CONNECTED: {
        "detail": "the seat is held by the daemon machine-1 at 192.0.2.8",
        "holderClientId": "machine-1",
        "holderIp": "192.0.2.8",
    },
    Reason.FRAME_TOO_LARGE: {"detail": "1048577 bytes announced, 1048576 allowed"},
    Reason.BACKPLANE_UNREACHABLE: {
        "part": "commands",
        "detail": "cannot connect to Redis 10.0.0.5:6379: connection refused",
    },
    Reason.BACKPLANE_REFUSED: {
        "part": "bus",
        "detail": "Redis 10.0.0.5:6379 refuses BLPOP: NOPERM this user has no permissions to run the 'blpop' command "
        "(allow the command and the keys in the ACL of the relay's user)",
    },
    Reason.BUS_SIGNATURE_INVALID: {"detail": "the signature is not this frame's", **_BUS},
    Reason.BUS_SIGNATURE_STALE: {"detail": "issued 31.5 s ago", **_BUS},
    Reason.BUS_SIGNATURE_REPLAYED: {"detail": "seen before", **_BUS},
    Reason.BUS_FRAME_REFUSED: {"detail": "no workspaceId or runtimeTargetId", **_BUS},
}


def event_of(reason: Reason) -> str:
    """The event under which the relay logs a reason."""
    code = reason.code
    if code.startswith("BACKPLANE_"):
        return code.lower()
    if reason is Reason.PEER_FLAPPING:
        return "flapping"
    for prefix, event in (
        ("ADMIN_", "admin_refused"), ("WORKER_TRANSPORT_", "worker_request"), ("BUS_", "bus_drop"),
        ("HTTP_", "http_refused"), ("CONNECTION_", "connection_refused"),
    ):  # fmt: skip
        if code.startswith(prefix):
            return event
    if reason.entry.status:
        return "refuse"
    return "close" if reason.entry.close or reason in (Reason.PONG_TIMEOUT, Reason.IDLE_TIMEOUT) else "drop"


def sample_line(reason: Reason) -> str:
    """A log line with this reason, from the relay's own formatter."""
    event = event_of(reason)
    about: dict[str, object] = {}
    connection_id = None
    if event in ("http_refused", "connection_refused"):
        about = {**_IP}
    elif event == "admin_refused":
        about = {**_IP, "path": "/logs"}
    elif event != "bus_drop" and not event.startswith("backplane_"):
        connection_id = "4f1d0c6a9be2735d08"
        known = {} if reason in NAMELESS else _PEER
        client = {} if event == "refuse" else {"clientId": "client-1"}
        method = {"method": "POST"} if event == "worker_request" else {}
        about = {**known, **client, **_IP, **method}
    out = io.StringIO()
    log = EventLog(out, max_entries=1, now=lambda: SAMPLE_TIME)
    log.event(event, reason=reason, connection_id=connection_id, **about, **DETAILS.get(reason, {}))  # type: ignore[arg-type]
    return out.getvalue().strip()
