"""Tokens whose signature was found good: to check it again costs an upgrade more than anything else.

A token is known by its digest, and only as long as the key set that it was checked with is in use. What is remembered is
what the token says, not that it is admitted: times, issuer, audience and binding are checked each time, and so is the
platform's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.keys import KeySet
from viewport_relay.deferredcache import DeferredCache

#: Tokens remembered at most.
TOKENS_MAX: Final = 4096

Payload: TypeAlias = Mapping[str, Any]


class SignedTokens:
    """Payloads by token, for one key set at a time."""

    def __init__(self, clock: IReactorTime) -> None:
        self._keys: KeySet | None = None
        self._payloads: DeferredCache[bytes, Payload] = DeferredCache(clock, TOKENS_MAX)

    def __len__(self) -> int:
        """How many tokens are remembered."""
        return len(self._payloads)

    def payload(self, digest: bytes, keys: KeySet | None) -> Payload | None:
        """What the token of this digest says, if a key of this very set is known to have signed it."""
        return None if keys is None or keys is not self._keys else self._payloads.peek(digest)

    def remember(self, digest: bytes, keys: KeySet, payload: Payload, ttl: float) -> None:
        """A key of `keys` signed the token, which may be forgotten after `ttl` seconds."""
        if keys is not self._keys:
            self.clear()
            self._keys = keys
        self._payloads.put(digest, payload, ttl)

    def expire(self) -> None:
        """Forget the tokens that have run out."""
        self._payloads.expire()

    def clear(self) -> None:
        """Forget all."""
        self._keys = None
        self._payloads.flush()
