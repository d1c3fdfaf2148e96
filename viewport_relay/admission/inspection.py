"""Inspection of a token for `viewport-relay token inspect`: content, signing key, and the local verdict. No I/O.

A report holds the claims of the token, but no part of its signature. It must not be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from viewport_relay.admission.jwt import (
    TokenRules,
    check_payload,
    payload_signed_by,
    read_header,
    unverified,
    verified,
)
from viewport_relay.admission.keys import Key, KeySet
from viewport_relay.admission.token import TOKEN_CHARS
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal


@frozen
class TokenReport:
    """The content of a token. `header` and `claims` are not verified, None where they cannot be read.

    `signed_by` is the key of the set that signed the token, under any kid. `refusal` is that of the local check for the query
    that the token's own claims name, None if it passes.
    """

    header: Mapping[str, Any] | None
    claims: Mapping[str, Any] | None
    signed_by: Key | None
    refusal: Refusal | None


def inspect_token(token: str, keys: KeySet, rules: TokenRules, now: float) -> TokenReport:
    """The report on `token`. `now` is seconds since the epoch. Raises nothing."""
    header, claims = unverified(token)
    signer = _signer(token, keys)
    refusal: Refusal | None = None
    try:
        if not TOKEN_CHARS[0] <= len(token) <= TOKEN_CHARS[1]:
            raise Refusal(Reason.TOKEN_MISSING, f"it has {len(token)} characters")
        read = read_header(token)
        payload = payload_signed_by(token, read, keys)
        check_payload(payload, _own_query(payload), rules, now)
    except Refusal as refused:
        refusal = refused
    return TokenReport(header, claims, signer, refusal)


def _signer(token: str, keys: KeySet) -> Key | None:
    for key in keys:
        try:
            if verified(token, key) is not None:
                return key
        except Refusal:
            continue
    return None


def _own_query(payload: Mapping[str, Any]) -> UpgradeQuery:
    role = next((role for role in Role if role.value == payload.get("role")), Role.CLIENT)
    workspace = payload.get("workspaceId")
    return UpgradeQuery(role, workspace if isinstance(workspace, str) else "", None)
