"""A token taken apart for an operator: what it says, which key signs it, and what this relay would say. No I/O.

For `viewport-relay token inspect` and `doctor`. A report has no part of the signature, but it has the claims:
it is for the one who holds the token, not for a log.
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
    """What is in a token. `header` and `claims` are None where they cannot be read, and unverified where they can.

    `signed_by` is the key that signs it, wherever in the set it stands; `refusal` what the local check would say
    for the query that the token's own claims fit, None if it would pass.
    """

    header: Mapping[str, Any] | None
    claims: Mapping[str, Any] | None
    signed_by: Key | None
    refusal: Refusal | None


def inspect_token(token: str, keys: KeySet, rules: TokenRules, now: float) -> TokenReport:
    """Take `token` apart. `now` is seconds since the epoch. Raises nothing."""
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
