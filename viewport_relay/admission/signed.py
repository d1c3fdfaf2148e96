"""Which tokens bear a good signature, remembered: to check one again costs an upgrade more than anything else.

A token is known by its digest (SHA-256), and only as long as the key set that it was checked with is the one in use:
with another set everything is forgotten. Remembered is what the token says, not that it may come in: times, issuer,
audience and binding are looked at each time, and the platform has its own say. No I/O, no timers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from attrs import frozen

from viewport_relay.admission.keys import KeySet

#: Tokens remembered at most.
TOKENS_MAX: Final = 4096

Payload: TypeAlias = Mapping[str, Any]


@frozen
class _Known:
    payload: Payload
    expires: float


class SignedTokens:
    """Payloads by token, for one key set at a time; the oldest go first."""

    def __init__(self) -> None:
        self._keys: KeySet | None = None
        self._known: dict[bytes, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def payload(self, digest: bytes, keys: KeySet | None) -> Payload | None:
        """What the token of this digest says, if a key of this very set is known to have signed it."""
        if keys is None or keys is not self._keys:
            return None
        known = self._known.get(digest)
        return None if known is None else known.payload

    def remember(self, digest: bytes, keys: KeySet, payload: Payload, expires: float) -> None:
        """A key of `keys` signed the token. `expires`: when it may be forgotten, seconds since the epoch."""
        if keys is not self._keys:
            self._keys = keys
            self._known.clear()
        if len(self._known) >= TOKENS_MAX:
            del self._known[next(iter(self._known))]
        self._known[digest] = _Known(payload, expires)

    def expire(self, now: float) -> None:
        """Forget the tokens that have run out."""
        for digest in [digest for digest, known in self._known.items() if now >= known.expires]:
            del self._known[digest]

    def clear(self) -> None:
        self._keys = None
        self._known.clear()


def digest_of(token: str) -> bytes:
    """What a token goes by in memory (SHA-256)."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
