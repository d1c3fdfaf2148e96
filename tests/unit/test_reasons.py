"""The catalogue of reasons: documented texts, and rules for every entry."""

from __future__ import annotations

import re

import pytest

from viewport_relay.reasons import CloseCode, Reason, Refusal

DOCUMENTED = {
    "JWKS_UNREACHABLE": "JWT validation failed: JWKS unreachable",
    "JWT_SIGNATURE_MISMATCH": "JWT validation failed: signature mismatch",
    "JWT_EXPIRED": "JWT validation failed: token expired",
    "NOISE_INVALID_PSK": "Noise handshake failed: invalid psk",
    "WORKSPACE_NOT_FOUND": "Workspace not found",
    "INTERNAL_KEY_MISMATCH": "RELAY_INTERNAL_KEY mismatch",
    "FRAME_TOO_LARGE": "frame too large",
    "RATE_LIMIT_EXCEEDED": "rate limit exceeded",
    "NOISE_HANDSHAKE_MALFORMED": "Noise handshake failed: malformed message",
    "NOISE_STATIC_KEY_MISMATCH": "Noise handshake failed: static key mismatch",
    "NOISE_TIMEOUT": "Noise handshake failed: timeout",
    "NOISE_DECRYPT_FAILED": "Noise transport failed: decrypt",
    "NOISE_LINK_REQUIRED": "Noise link required",
    "NOISE_PSK_UNAVAILABLE": "Noise handshake failed: psk unavailable",
}

#: Close texts of the wire protocol; the reason's code is the text in upper snake case.
CLOSE_TEXTS_4008 = [
    "missing workspace claim",
    "workspace claim mismatch",
    "runtime target claim mismatch",
    "invalid scope claim",
    "missing runtime target claim",
    "stale daemon generation",
    "replaced by newer daemon",
    "daemon already connected",
    "pairing scope only",
    "runtime scope only",
    "session-events scope required",
    "client frame profile mismatch",
    "daemon frame profile mismatch",
    "buffer overflow",
    "key exchange rate limit exceeded",
    "pairing rate limit exceeded",
    "runtime rate limit exceeded",
    "daemon rate limit exceeded",
    "worker rate limit exceeded",
    "presence rate limit exceeded",
]

STATUSES = {
    "RATE_LIMIT_EXCEEDED": 429,
    "TOO_MANY_CONNECTIONS": 503,
    "TOO_MANY_CONNECTIONS_PER_IP": 429,
    "TOO_MANY_CLIENTS": 429,
    "NOT_FOUND": 404,
    "QUERY_INVALID": 400,
    "ORIGIN_NOT_ALLOWED": 403,
    "TOKEN_MISSING": 401,
    "VALIDATION_DENIED": 401,
    "WORKSPACE_NOT_FOUND": 403,
    "INTERNAL_KEY_MISMATCH": 502,
    "VALIDATION_RESPONSE_INVALID": 502,
    "ADMISSION_RESPONSE_TOO_LARGE": 502,
    "JWKS_UNREACHABLE": 503,
    "PLATFORM_UNREACHABLE": 503,
    "UPGRADE_REQUIRED": 426,
}


@pytest.mark.parametrize(("code", "text"), DOCUMENTED.items())
def test_documented_text(code: str, text: str) -> None:
    assert Reason[code].text == text


@pytest.mark.parametrize("text", CLOSE_TEXTS_4008)
def test_close_text_and_code_are_equal(text: str) -> None:
    reason = Reason[re.sub(r"[ -]", "_", text).upper()]
    assert reason.entry.close == CloseCode.POLICY == 4008
    assert reason.entry.close_text == text


@pytest.mark.parametrize(("code", "status"), STATUSES.items())
def test_status(code: str, status: int) -> None:
    assert Reason[code].entry.status == status


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.code.startswith("JWT_")])
def test_token_reasons_are_bad_credentials(reason: Reason) -> None:
    entry = reason.entry
    assert (entry.status, entry.close, entry.close_text) == (401, 4401, "invalid_token")


@pytest.mark.parametrize(
    "code",
    [
        "JWKS_UNREACHABLE",
        "PLATFORM_UNREACHABLE",
        "INTERNAL_KEY_MISMATCH",
        "VALIDATION_RESPONSE_INVALID",
        "ADMISSION_RESPONSE_TOO_LARGE",
    ],
)
def test_an_outage_of_the_platform_is_no_bad_credential(code: str) -> None:
    entry = Reason[code].entry
    assert entry.status >= 500
    assert (entry.close, entry.close_text) == (1013, "try again later")
    assert entry.level == "error"


def test_other_closes() -> None:
    assert (CloseCode.GOING_AWAY, CloseCode.TOO_BIG) == (1001, 1009)
    assert Reason.RELAY_SHUTTING_DOWN.entry.close_text == "relay shutting down"
    assert Reason.RELAY_SHUTTING_DOWN.entry.close == 1001
    assert (Reason.FRAME_TOO_LARGE.entry.close, Reason.FRAME_TOO_LARGE.entry.close_text) == (
        1009,
        "frame too large",
    )
    assert Reason.WORKSPACE_NOT_FOUND.entry.close == 4403
    assert Reason.WORKSPACE_NOT_FOUND.entry.close_text == "workspace_not_found"


def test_no_two_reasons_are_equal() -> None:
    """Equal values would make one member an alias of the other, and the log would lose its code."""
    assert list(Reason.__members__) == [reason.name for reason in Reason]
    texts = [reason.text for reason in Reason]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_entry_is_complete(reason: Reason) -> None:
    entry = reason.entry
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", reason.code)
    assert entry.text
    assert entry.cause
    assert entry.fix
    assert not entry.cause.endswith(".")
    assert not entry.fix.endswith(".")
    assert entry.level in {"info", "warn", "error"}
    assert entry.status == 0 or 400 <= entry.status < 600
    assert bool(entry.close) == bool(entry.close_text)
    assert len(entry.close_text.encode()) <= 123, (
        "RFC 6455 section 5.5: control frames carry at most 125 bytes"
    )
    if entry.close:
        assert entry.close in vars(CloseCode).values()


def test_refusal_names_reason_and_detail() -> None:
    assert str(Refusal(Reason.JWT_EXPIRED)) == "JWT_EXPIRED: JWT validation failed: token expired"
    refusal = Refusal(Reason.QUERY_INVALID, "role is missing", details={"parameter": "role"})
    assert str(refusal) == "QUERY_INVALID: role is missing"
    with pytest.raises(Refusal) as caught:
        raise refusal
    assert caught.value.details == {"parameter": "role"}


#: Faults of the relay, its environment or the platform: level error.
OURS = {
    "TOO_MANY_CONNECTIONS", "JWKS_UNREACHABLE", "PLATFORM_UNREACHABLE", "INTERNAL_KEY_MISMATCH",
    "ADMISSION_RESPONSE_TOO_LARGE", "VALIDATION_RESPONSE_INVALID", "MISSING_WORKSPACE_CLAIM", "INVALID_SCOPE_CLAIM",
    "WORKER_TRANSPORT_FORWARD_FAILED", "BACKPLANE_REFUSED", "BACKPLANE_UNREACHABLE",
    "BUS_SIGNATURE_INVALID", "BUS_SIGNATURE_STALE",
    "BUS_SIGNATURE_REPLAYED", "BUS_FRAME_REFUSED",
}  # fmt: skip

#: Events of every healthy deployment: level info. All other reasons are faults of a peer.
NORMAL = {
    "REPLACED_BY_NEWER_DAEMON", "NO_OWNER", "PONG_TIMEOUT", "IDLE_TIMEOUT", "NOISE_NONCE_EXHAUSTED", "RELAY_SHUTTING_DOWN",
    "DISCONNECTED_BY_OPERATOR", "ADMIN_ENDPOINTS_DISABLED",
}  # fmt: skip


def test_severity_by_responsibility():
    assert {reason.name for reason in Reason if reason.entry.level == "error"} == OURS
    assert {reason.name for reason in Reason if reason.entry.level == "info"} == NORMAL
