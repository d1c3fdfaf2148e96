"""The platform's claims: their form, and their comparison with the query of the upgrade. No I/O.

`parse_claims` refuses an answer whose claims have a wrong form; `grant_for` gives the grant, or the refusal
that closes the connection after its upgrade (wire protocol, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, TypeVar

from viewport_relay.admission.query import is_identifier
from viewport_relay.protocol.frames import CHANNEL_PREFIX
from viewport_relay.protocol.grant import Claims, Grant, Profile, Role, Scope, UpgradeQuery
from viewport_relay.protocol.json import as_integer, trimmed
from viewport_relay.reasons import Reason, Refusal

LIST_MAX: Final = 64
CRYPTO_PAIRING: Final = "crypto_pairing"

E = TypeVar("E", bound=Enum)


def parse_claims(claims: Mapping[str, Any], query: UpgradeQuery) -> Claims:
    """The claims of an accepted answer. Raises Refusal VALIDATION_RESPONSE_INVALID that names the claim.

    Unknown claims are ignored; lengths count as JavaScript counts them (UTF-16 code units).
    """
    read: dict[str, Any] = {}
    for name, value in claims.items():
        if name in _FORMS:
            attribute, form, *bounds = _FORMS[name]
            read[attribute] = form(value, name, *bounds)
    read.pop(_UNUSED, None)
    if read.get("role", query.role) is not query.role:
        raise _wrong("role", "is not the role of the query")
    return Claims(**read)


def grant_for(query: UpgradeQuery, claims: Claims, connection_id: str) -> Grant | Refusal:
    """The grant of a connection, or the refusal with which it is closed (4008) after its upgrade.

    `connection_id` is the clientId of a client whose claims have none. Before the close for MISSING_RUNTIME_TARGET_CLAIM the
    caller sends the frame RUNTIME_TARGET_REQUIRED.
    """
    if claims.workspace_id is None:
        return Refusal(Reason.MISSING_WORKSPACE_CLAIM)
    if claims.workspace_id != query.workspace_id:
        return Refusal(Reason.WORKSPACE_CLAIM_MISMATCH, "the claim names another workspace than the query")
    target = query.runtime_target_id
    if target is None:
        target = claims.runtime_target_id
        if target is not None and not is_identifier(target):
            # It becomes part of Redis keys and signed texts, which rely on the alphabet of the query.
            return Refusal(Reason.RUNTIME_TARGET_CLAIM_MISMATCH, "the claim is not 1 to 128 of A-Za-z0-9._:-")
    elif claims.runtime_target_id != target:
        named = "no target" if claims.runtime_target_id is None else "another target than the query"
        return Refusal(Reason.RUNTIME_TARGET_CLAIM_MISMATCH, f"the claims name {named}")
    scope = claims.scope if query.role is Role.CLIENT else None
    if query.role is Role.CLIENT and scope is None:
        return Refusal(Reason.INVALID_SCOPE_CLAIM)
    needs_target = query.role is Role.DAEMON or scope in (Scope.RUNTIME, Scope.SESSION_EVENTS)
    if needs_target and target is None:
        return Refusal(Reason.MISSING_RUNTIME_TARGET_CLAIM)
    return Grant(
        role=query.role,
        workspace_id=query.workspace_id,
        runtime_target_id=target,
        scope=scope,
        client_id=claims.client_id or connection_id,
        claims=claims,
        required_profile=required_profile(claims),
    )


def required_profile(claims: Claims) -> Profile | None:
    """The profile that `policyMode` and `e2eeProfile` require (wire protocol, section 3), None for any."""
    return Profile.IKPSK2 if claims.policy_mode == CRYPTO_PAIRING else claims.e2ee_profile


# The forms of claims: each takes a value, the claim's name and bounds, and raises a Refusal that names the claim.


def _text(value: object, name: str, most: int = 128) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "is null" if value is None else "is not a string")
    if not value:
        raise _wrong(name, "is empty")
    try:
        units = len(value) if value.isascii() else len(value.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        # UTF-8 cannot hold it: neither a log line nor a signature could be made of it.
        raise _wrong(name, "has a lone surrogate") from None
    if units > most:
        raise _wrong(name, f"is longer than {most} characters")
    return value


def _text_or_null(value: object, name: str, most: int) -> str | None:
    return None if value is None else _text(value, name, most)


def _texts(value: object, name: str, most: int = 128) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(name, "is not a list")
    if len(value) > LIST_MAX:
        raise _wrong(name, f"has more than {LIST_MAX} entries")
    return [_text(entry, name, most) for entry in value]


def _channels(value: object, name: str, most: int) -> frozenset[str]:
    channels = frozenset(trimmed(channel) for channel in _texts(value, name, most))
    if not all(channel.startswith(CHANNEL_PREFIX) and channel != CHANNEL_PREFIX for channel in channels):
        raise _wrong(name, f"has an entry that is not {CHANNEL_PREFIX}…")
    return channels


def _audience(value: object, name: str, most: int) -> None:
    for entry in value if isinstance(value, list) else [value]:
        _text(entry, name, most)


def _choice(value: object, name: str, kind: type[E]) -> E:
    try:
        return kind(_text(value, name))
    except ValueError:
        raise _wrong(name, "has a value that is not known") from None


def _number(value: object, name: str, least: int | None = None) -> int:
    number = as_integer(value)
    if number is None:
        raise _wrong(name, "is not an integer")
    if least is not None and number < least:
        raise _wrong(name, f"is below {least}")
    return number


def _seconds(value: object, name: str) -> float:
    return float(_number(value, name))


def _wrong(name: str, what: str) -> Refusal:
    return Refusal(
        Reason.VALIDATION_RESPONSE_INVALID, f"claim {name} {what}", details={"claim": name, "problem": what}
    )


#: The attribute of a claim whose form is checked, and whose value the relay does not use.
_UNUSED: Final = ""
#: The claims: attribute of `Claims`, form, bounds.
_FORMS: Final[Mapping[str, tuple[Any, ...]]] = {
    "role": ("role", _choice, Role),
    "workspaceId": ("workspace_id", _text),
    "runtimeTargetId": ("runtime_target_id", _text),
    "clientId": ("client_id", _text),
    "userId": ("user_id", _text),
    "machineId": ("machine_id", _text, 255),
    "managedExecutorId": ("managed_executor_id", _text),
    "installId": (_UNUSED, _text),
    "scope": ("scope", _choice, Scope),
    "sessionIds": (_UNUSED, _texts),
    "sessionChannels": ("session_channels", _channels, 255),
    "e2eeProfile": ("e2ee_profile", _choice, Profile),
    "policyMode": ("policy_mode", _text),
    "daemonPublicKey": ("daemon_public_key", _text_or_null, 512),
    "pairingSecret": ("pairing_secret", _text_or_null, 1024),
    "relayWsBaseUrl": (_UNUSED, _text_or_null, 512),
    "daemonIssueGeneration": ("daemon_issue_generation", _number, 0),
    "iss": (_UNUSED, _text, 255),
    "aud": (_UNUSED, _audience, 255),
    "iat": (_UNUSED, _number),
    "nbf": (_UNUSED, _number),
    "ver": (_UNUSED, _number),
    "exp": ("expires_at", _seconds),
    "jti": ("token_id", _text, 255),
}
