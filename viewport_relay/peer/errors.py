"""The errors of a peer, as one exception with a code.

The texts use the terms of the wire protocol and never hold a key, a token or a payload: they may be logged. Refusals by
the relay (HTTP status, close codes) have types of their own in `upgrade`.
"""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Why a peer refused a message or an operation. The names are stable."""

    MALFORMED = "MALFORMED"
    PROFILE_MISMATCH = "PROFILE_MISMATCH"
    REQUEST_MISMATCH = "REQUEST_MISMATCH"
    SESSION_MISMATCH = "SESSION_MISMATCH"
    DAEMON_KEY_MISMATCH = "DAEMON_KEY_MISMATCH"
    DECRYPT_FAILED = "DECRYPT_FAILED"
    PROOF_MISMATCH = "PROOF_MISMATCH"
    PAIRING_UNKNOWN = "PAIRING_UNKNOWN"
    REPLAYED = "REPLAYED"
    REFLECTED = "REFLECTED"
    SESSION_UNKNOWN = "SESSION_UNKNOWN"
    SESSION_EXHAUSTED = "SESSION_EXHAUSTED"
    TOO_LARGE = "TOO_LARGE"
    OUT_OF_ORDER = "OUT_OF_ORDER"
    NOT_CONNECTED = "NOT_CONNECTED"
    DAEMON_UNAVAILABLE = "DAEMON_UNAVAILABLE"
    TIMEOUT = "TIMEOUT"


class PeerError(Exception):
    """A peer refuses a message, or cannot carry out an operation; `detail` explains the `code` in words."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail


def require(holds: bool, code: Code, detail: str) -> None:
    """Raise PeerError unless a condition holds."""
    if not holds:
        raise PeerError(code, detail)
