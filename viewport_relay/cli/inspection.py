"""Inspection of a token for `viewport-relay token inspect`: content, signing key, and the relay's local verdict. No I/O.

The checks are the relay's own. A report holds the claims of the token, but no part of its signature. It must not be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
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
from viewport_relay.admission.keys import Key, KeySet, printable
from viewport_relay.admission.token import TOKEN_CHARS
from viewport_relay.observe.redaction import Redactor
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
class Report:
    """The result of an inspection, without secrets. `header` and `claims` are not verified where `verified` is False.

    `signed_by` is the key of the set that signed the token, under any kid, in words. `reason` is None when the platform would
    be asked about the token.
    """

    header: Mapping[str, object]
    claims: Mapping[str, object]
    verified: bool
    signed_by: str
    keys: tuple[str, ...]
    valid_until: str
    reason: str | None
    said: str
    fix: str


def inspect_token(token: str, keys: KeySet | str, asked: Asked, rules: TokenRules, now: float) -> Report:
    """Judge one token at `now` (seconds since the epoch) for the upgrade `asked`, without the platform. Raises nothing.

    `keys` is the key set, or the text why there is none.
    """
    known = keys if isinstance(keys, KeySet) else KeySet(())
    header, claims = (part or {} for part in unverified(token))
    refusal = _refusal(token, known, asked, rules, now)
    if isinstance(keys, str) and refusal is not None and refusal.reason is Reason.JWT_SIGNATURE_MISMATCH:
        refusal = Refusal(Reason.JWKS_UNREACHABLE, keys)
    said = "the local check passes; the platform has the last word (POST RELAY_VALIDATE_URL)"
    if refusal is not None:
        said = refusal.reason.text + (f": {refusal.detail}" if refusal.detail else "")
    redactor, signer = Redactor(), _signer(token, known)
    unsigned = "not known" if isinstance(keys, str) else "no key of the JWKS"
    return Report(
        header={name: redactor.detail(name, value) for name, value in header.items()},
        claims={name: redactor.detail(name, value) for name, value in claims.items()},
        verified=signer is not None,
        signed_by=unsigned if signer is None else _in_words(signer),
        keys=tuple(_in_words(key) for key in known),
        valid_until=_until(claims.get("exp"), now),
        reason=refusal.reason.code if refusal else None,
        said=said,
        fix=refusal.reason.entry.fix if refusal else "",
    )


def _refusal(token: str, keys: KeySet, asked: Asked, rules: TokenRules, now: float) -> Refusal | None:
    """The refusal of the relay's local checks, None if the token passes them."""
    try:
        if not TOKEN_CHARS[0] <= len(token) <= TOKEN_CHARS[1]:
            raise Refusal(Reason.TOKEN_MISSING, f"the token has {len(token)} characters")
        payload = payload_signed_by(token, read_header(token), keys)
        check_payload(payload, asked.query(payload), rules, now)
    except Refusal as refused:
        return refused
    return None


def _signer(token: str, keys: KeySet) -> Key | None:
    for key in keys:
        try:
            if verified(token, key) is not None:
                return key
        except Refusal:
            continue
    return None


def _in_words(key: Key) -> str:
    return f"{printable(key.kid)} ({key.algorithm})"


def _until(exp: object, now: float) -> str:
    if isinstance(exp, bool) or not isinstance(exp, int | float):
        return "no exp"
    try:
        moment = datetime.fromtimestamp(exp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "exp is no time"
    left = exp - now
    return f"{moment}, {'in ' + _span(left) if left >= 0 else _span(-left) + ' ago'}"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
