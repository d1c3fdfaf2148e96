"""What can go wrong between two peers, as one exception with a code.

The texts say what happened in terms of the wire; they never carry a key, a token or a payload, so they may be
logged as they are. Refusals by the relay (HTTP status, close codes) have types of their own in `connection`.
"""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Why a peer refused something, stable names for tests and for people."""

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
    """A peer refuses a message, or cannot do what it was asked.

    `code` is for programs, `detail` for people.
    """

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail


def require(holds: bool, code: Code, detail: str) -> None:
    """Raise PeerError unless a condition holds."""
    if not holds:
        raise PeerError(code, detail)
