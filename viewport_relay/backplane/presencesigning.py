"""Signatures of presence entries, kept beside the entry in a key that the wire protocol does not know.

    HMAC-SHA256 (RFC 2104) keyed RELAY_BUS_HMAC_KEY over "viewport-relay-presence-v1", workspaceId, runtimeTargetId and the
    entry's bytes, joined by newlines; as base64url without padding

The entry itself stays as the wire protocol says. Nothing here does I/O.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Final

from viewport_relay.backplane.interface import TargetKey
from viewport_relay.backplane.signing import signature_of
from viewport_relay.protocol.base64url import base64url
from viewport_relay.protocol.json import as_integer

_DOMAIN: Final = "viewport-relay-presence-v1"


class PresenceSigner:
    """Signs and verifies entries. `ttl` is seconds for which an entry lives, `skew` by how much clocks may differ.

    `now` gives seconds since the epoch. Without a key nothing is signed and every entry is unsigned.
    """

    def __init__(self, key: str | None, ttl: float, skew: float, now: Callable[[], float]) -> None:
        self._key = None if key is None else key.encode()
        self._oldest = ttl + skew
        self._now = now

    def sign(self, target: TargetKey, entry: bytes) -> str:
        """The signature, or an empty text without a key."""
        if self._key is None:
            return ""
        return base64url(signature_of(self._key, (_DOMAIN, *target), entry))

    def is_signed(
        self, target: TargetKey, entry: bytes, fields: Mapping[str, object], signature: bytes | None
    ) -> bool:
        """Whether the signature is this entry's, and the entry is no older than it may live."""
        if self._key is None or signature is None:
            return False
        if not hmac.compare_digest(self.sign(target, entry).encode(), signature):
            return False
        updated = as_integer(fields.get("updatedAtMs"))
        return updated is not None and abs(self._now() - updated / 1000) <= self._oldest
