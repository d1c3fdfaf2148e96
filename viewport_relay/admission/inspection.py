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
class Asked:
    """Role, workspace and target of the upgrade's query; None: those of the token's claims."""

    role: Role | None = None
    workspace_id: str | None = None
    target_id: str | None = None

    def query(self, payload: Mapping[str, Any]) -> UpgradeQuery:
        """The query of an upgrade with the token of this payload."""
        claimed = next((role for role in Role if role.value == payload.get("role")), Role.CLIENT)
        workspace = payload.get("workspaceId")
        own = workspace if isinstance(workspace, str) else ""
        return UpgradeQuery(self.role or claimed, self.workspace_id or own, self.target_id)


@frozen
class TokenReport:
    """The content of a token. `header` and `claims` are not verified, None where they cannot be read.

    `signed_by` is the key of the set that signed the token, under any kid. `refusal` is that of the local check, None if it
    passes.
    """

    header: Mapping[str, Any] | None
    claims: Mapping[str, Any] | None
    signed_by: Key | None
    refusal: Refusal | None


def inspect_token(
    token: str, keys: KeySet, rules: TokenRules, now: float, asked: Asked = Asked()
) -> TokenReport:
    """The report on `token` for the upgrade `asked`. `now` is seconds since the epoch. Raises nothing."""
    header, claims = unverified(token)
    signer = _signer(token, keys)
    refusal: Refusal | None = None
    try:
        if not TOKEN_CHARS[0] <= len(token) <= TOKEN_CHARS[1]:
            raise Refusal(Reason.TOKEN_MISSING, f"the token has {len(token)} characters")
        read = read_header(token)
        payload = payload_signed_by(token, read, keys)
        check_payload(payload, asked.query(payload), rules, now)
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
