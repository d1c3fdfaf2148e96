"""The token of an upgrade: finds it in the request, unchecked. Also the sub-protocol that the answer selects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, Literal, TypeAlias

from attrs import field, frozen

from viewport_relay.config import Mode
from viewport_relay.protocol.grant import LINK_SUBPROTOCOL

#: Length of a usable token, characters.
TOKEN_CHARS: Final = (10, 4096)
#: What a sub-protocol entry that carries a token begins with.
AUTH_PREFIX: Final = "auth."

Via: TypeAlias = Literal["header", "subprotocol", "query"]


@frozen
class TokenSource:
    """A token, where it stood in the request, and its SHA-256, by which it is remembered. Its text is not in `repr`."""

    token: str = field(repr=False)
    via: Via
    digest: bytes = field(init=False, repr=False)

    @digest.default
    def _digest(self) -> bytes:
        return hashlib.sha256(self.token.encode("utf-8", "surrogatepass")).digest()


def token_from(
    authorization: Sequence[str], subprotocols: Sequence[str], query_token: str | None, mode: Mode
) -> TokenSource | None:
    """The first usable token (10 to 4096 characters), or None.

    `authorization` are the values of that header, `subprotocols` the entries of Sec-WebSocket-Protocol, both in
    order; `query_token` is the first `?token=`, which counts in RELAY_MODE=dev only.
    """
    for token, via in _tokens(authorization, subprotocols, query_token, mode):
        if TOKEN_CHARS[0] <= len(token) <= TOKEN_CHARS[1]:
            return TokenSource(token, via)
    return None


def why_no_token(
    authorization: Sequence[str], subprotocols: Sequence[str], query_token: str | None, mode: Mode
) -> str:
    """The reason why a request has no usable token. No part of a token is in the text."""
    found = islice(_tokens(authorization, subprotocols, query_token, mode), 3)
    lengths = [f"the {via}'s has {len(token)} characters" for token, via in found]
    if lengths:
        return f"{', '.join(lengths)}; a token has {TOKEN_CHARS[0]} to {TOKEN_CHARS[1]}"
    if query_token is not None:
        return f"?token= does not count in RELAY_MODE={mode}"
    return "the Authorization header names no Bearer" if authorization else "the request carries none"


def _tokens(
    authorization: Sequence[str], subprotocols: Sequence[str], query_token: str | None, mode: Mode
) -> Iterator[tuple[str, Via]]:
    for value in authorization:
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            yield token.strip(), "header"
    for entry in subprotocols:
        if _is_auth(entry):
            yield entry.removeprefix(AUTH_PREFIX), "subprotocol"
    if query_token is not None and mode == "dev":
        yield query_token, "query"


def select_subprotocol(offered: Sequence[str], *, link_enabled: bool) -> str | None:
    """The entry that the 101 names; None if nothing was offered that can be named.

    A browser fails a connection whose answer selects none of the entries that it offered, so an `auth.…` entry is the last
    choice. The answer then holds a token: it must not be logged.
    """
    if link_enabled and LINK_SUBPROTOCOL in offered:
        return LINK_SUBPROTOCOL
    plain = (entry for entry in offered if entry != LINK_SUBPROTOCOL and not _is_auth(entry))
    return next(plain, None) or next((entry for entry in offered if _is_auth(entry)), None)


def _is_auth(entry: str) -> bool:
    return entry.startswith(AUTH_PREFIX)
