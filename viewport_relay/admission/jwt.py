"""The relay's own check of a token (RFC 7515, RFC 7519), without any I/O.

PyJWT reads a token and checks its signature, with one key and the algorithm of that key only. The policy is here: which
algorithms, issuer, audience, times, role, workspace and target are accepted, and the words of a refusal. No text holds any
part of a token but its kid and the claims that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeGuard

import jwt
from attrs import frozen
from jwt.utils import base64url_decode, base64url_encode

from viewport_relay.admission.keys import ALGORITHMS, DEFAULT_KID, Key, KeySet, printable
from viewport_relay.protocol.grant import UpgradeQuery
from viewport_relay.protocol.json import parse_json
from viewport_relay.reasons import Reason, Refusal

#: A difference between the two clocks, seconds, from which on a refused time is likely the clock's fault.
CLOCK_SUSPECT: Final = 5.0


class _Jws(jwt.PyJWS):
    """PyJWT's reader of signed tokens, which decodes a well-formed segment with half as many tests.

    PyJWT looks at each character of a segment in Python, and then whether the decoded bytes make the same segment when they
    are encoded. A segment that passes the second test passes the first.
    """

    @staticmethod
    def _decode_base64url_segment(segment: bytes, name: str) -> bytes:
        """Called by PyJWT. A segment with padding, or one that is to be refused, is left to PyJWT."""
        try:
            decoded = base64url_decode(segment)
        except ValueError:
            return jwt.PyJWS._decode_base64url_segment(segment, name)
        if base64url_encode(decoded) == segment:
            return decoded
        return jwt.PyJWS._decode_base64url_segment(segment, name)


#: The claims are `check_payload`'s, whose refusals say more than PyJWT's.
_JWS: Final = _Jws()
_NOTHING: Final[Any] = {"verify_signature": False}

#: Header segments whose reading is remembered.
_HEADERS_MAX: Final = 64
#: A payload for PyJWT where the header alone is read: `{}` in base64url.
_EMPTY_OBJECT: Final = "e30"
_NOT_THREE_PARTS: Final = "it is not three parts of base64url, the first a JSON object"


@frozen
class TokenRules:
    """The rules that a token's claims must meet. `skew` is the tolerance for exp, nbf and iat in seconds."""

    issuer: str
    audience: str
    skew: float


@frozen
class TokenHeader:
    """The members of a token's header that matter here."""

    algorithm: str
    kid: str


def read_header(token: str) -> TokenHeader:
    """The header of a compact JWS (RFC 7515 section 7.1). Raises Refusal JWT_MALFORMED or JWT_ALGORITHM_NOT_ALLOWED.

    Payload and signature are decoded once, when the signature is checked.
    """
    header, _, rest = token.partition(".")
    if rest.count(".") != 1:
        raise Refusal(Reason.JWT_MALFORMED, _NOT_THREE_PARTS)
    return _header(header)


@lru_cache(maxsize=_HEADERS_MAX)
def _header(segment: str) -> TokenHeader:
    """The header in this segment, read by PyJWT. The tokens of a platform have one header for each of its keys."""
    try:
        header = jwt.get_unverified_header(f"{segment}.{_EMPTY_OBJECT}.")
    except (jwt.DecodeError, ValueError):
        raise Refusal(Reason.JWT_MALFORMED, _NOT_THREE_PARTS) from None
    except jwt.PyJWTError:
        words = "its header demands an extension, or its kid is not a string"
        raise Refusal(Reason.JWT_MALFORMED, words) from None
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        named = printable(algorithm, 16) if isinstance(algorithm, str) else "missing"
        raise Refusal(Reason.JWT_ALGORITHM_NOT_ALLOWED, f"alg is {named}", details={"alg": named})
    return TokenHeader(algorithm, header.get("kid", DEFAULT_KID))


def unverified(token: str) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Header and payload as they stand, None where there is no JSON object. Never for a decision."""
    header: Mapping[str, Any] | None
    payload: Mapping[str, Any] | None
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        header = None
    try:
        payload = jwt.decode(token, options=_NOTHING)
    except (jwt.PyJWTError, ValueError):
        payload = None
    return header, payload


def payload_signed_by(token: str, header: TokenHeader, keys: KeySet) -> Mapping[str, Any]:
    """The payload of a token that a key of its kid signed.

    Raises Refusal: JWT_SIGNATURE_MISMATCH for no such key or another key, JWT_ALGORITHM_NOT_ALLOWED when the kid's keys are
    all of another algorithm, JWT_MALFORMED for a payload that is no JSON object.
    """
    candidates = keys.for_kid(header.kid)
    for key in candidates:
        if key.algorithm == header.algorithm:
            payload = verified(token, key)
            if payload is not None:
                return payload
    kid = printable(header.kid)
    details = _about(token, kid, keys)
    if not candidates:
        published = ", ".join(keys.kids) or "none"
        words = f"kid {kid} is not in the JWKS, which has {published}"
        raise Refusal(Reason.JWT_SIGNATURE_MISMATCH, words, details=details)
    if all(key.algorithm != header.algorithm for key in candidates):
        words = f"alg is {header.algorithm}, the key {kid} is for {candidates[0].algorithm}"
        raise Refusal(Reason.JWT_ALGORITHM_NOT_ALLOWED, words, details=details)
    raise Refusal(Reason.JWT_SIGNATURE_MISMATCH, f"the key {kid} did not sign the token", details=details)


def verified(token: str, key: Key) -> Mapping[str, Any] | None:
    """The payload of a token that `key` signed, None if it did not. Raises Refusal JWT_MALFORMED."""
    try:
        signed: bytes = _JWS.decode_complete(token, key.jwk, [key.algorithm])["payload"]
        payload = parse_json(signed.decode("utf-8"))
    except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
        return None
    except (jwt.PyJWTError, ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        words = "the payload is not a JSON object in base64url, or its signature is not base64url"
        raise Refusal(Reason.JWT_MALFORMED, words)
    return payload


def _about(token: str, kid: str, keys: KeySet) -> dict[str, Any]:
    """Details for the operator to compare: kid and issuer of the token, and the kids that are published."""
    _, claims = unverified(token)
    issuer = {} if claims is None or "iss" not in claims else {"iss": _shown(claims, "iss")}
    return {"kid": kid, "kids": keys.kids, **issuer}


def check_payload(
    payload: Mapping[str, Any],
    query: UpgradeQuery,
    rules: TokenRules,
    now: float,
    clock_offset: Callable[[], float | None] = lambda: None,
) -> float:
    """Check times, issuer, audience and binding; gives exp (seconds since the epoch, as `now` is).

    `clock_offset`, called for the words of a refusal only, says by how many seconds this clock is ahead of the
    platform's. Raises Refusal JWT_EXPIRED, JWT_NOT_YET_VALID, JWT_ISSUER_MISMATCH, JWT_AUDIENCE_MISMATCH, or
    JWT_CLAIM_MISMATCH, which also stands for a time that is missing or no number.
    """
    expires = _check_times(payload, rules, now, clock_offset)
    if payload.get("iss") != rules.issuer:
        raise _other(
            Reason.JWT_ISSUER_MISMATCH, "iss", _shown(payload, "iss"), "RELAY_TOKEN_ISSUER", rules.issuer
        )
    audience = payload.get("aud")
    if audience != rules.audience and not (_is_text_list(audience) and rules.audience in audience):
        got = _shown(payload, "aud")
        raise _other(Reason.JWT_AUDIENCE_MISMATCH, "aud", got, "RELAY_TOKEN_AUDIENCE", rules.audience)
    _check_binding(payload, query)
    return expires


def _check_times(
    payload: Mapping[str, Any], rules: TokenRules, now: float, clock_offset: Callable[[], float | None]
) -> float:
    """Check exp, nbf and iat; gives exp."""
    expires = _time(payload, "exp")
    if expires is None:
        raise Refusal(Reason.JWT_CLAIM_MISMATCH, "exp is missing")
    if now >= expires + rules.skew:
        late = math.ceil(now - expires)
        words, details = _times(payload, f"exp passed {late} s ago", now, clock_offset())
        raise Refusal(Reason.JWT_EXPIRED, words, details={"secondsAgo": late, **details})
    for name in ("nbf", "iat"):
        begins = _time(payload, name)
        if begins is not None and begins > now + rules.skew:
            early = math.ceil(begins - now)
            words, details = _times(payload, f"{name} is {early} s in the future", now, clock_offset())
            raise Refusal(Reason.JWT_NOT_YET_VALID, words, details={"secondsAhead": early, **details})
    return expires


def _check_binding(payload: Mapping[str, Any], query: UpgradeQuery) -> None:
    """Check that what the token says of role, workspace and target is what the query says."""
    asked = {"role": query.role.value, "workspaceId": query.workspace_id}
    if query.runtime_target_id is not None:
        asked["runtimeTargetId"] = query.runtime_target_id
    for name, value in asked.items():
        if name in payload and payload[name] != value:
            got = _shown(payload, name)
            details = {"claim": name, "got": got, "expected": value}
            raise Refusal(
                Reason.JWT_CLAIM_MISMATCH, f"{name} is {got}, the query says {value}", details=details
            )


def _other(reason: Reason, claim: str, got: str, variable: str, expected: str) -> Refusal:
    """The refusal of another issuer or audience than the one of the settings."""
    details = {"claim": claim, "got": got, "expected": expected}
    if got in _NO_TEXT:
        return Refusal(reason, f"{claim} is {got}, {variable} expects '{expected}'", details=details)
    right = f"{variable} to one of them" if ", " in got else f"{variable}={got}"
    details["hint"] = f"if these tokens are meant for this relay, set {right}"
    return Refusal(reason, f"{claim} is '{got}', {variable} expects '{expected}'", details=details)


def _times(
    payload: Mapping[str, Any], words: str, now: float, clock_offset: float | None
) -> tuple[str, dict[str, Any]]:
    """Words and details of a refused time: the token's, this clock's, and how far the platform's clock is away."""
    stamps = {name: _stamp(payload[name]) for name in ("iat", "nbf", "exp") if name in payload}
    details: dict[str, Any] = {**stamps, "now": _stamp(now)}
    shown = ", ".join(f"{name} {stamp}" for name, stamp in stamps.items())
    words = f"{words} ({shown}, the relay's clock {details['now']}"
    if clock_offset is None:
        return words + ")", details
    apart = abs(round(clock_offset))
    details["clockOffset"] = round(clock_offset, 1)
    if abs(clock_offset) < CLOCK_SUSPECT:
        return words + ", the platform's alike)", details
    side = ("ahead of", "behind") if clock_offset > 0 else ("behind", "ahead of")
    details["hint"] = (
        f"the relay's clock is {apart} s {side[0]} the platform's: synchronise both (chrony, NTP)"
    )
    return f"{words}, the platform's {apart} s {side[1]} it)", details


def _stamp(seconds: object) -> str:
    """A NumericDate as UTC."""
    try:
        return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError, OSError):
        return "no time"


def _time(payload: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2), None if absent."""
    if name not in payload:
        return None
    value = payload[name]
    # bool is an int to Python, and 1e999 is a float
    if type(value) not in (int, float) or not -1e15 < value < 1e15:
        raise Refusal(Reason.JWT_CLAIM_MISMATCH, f"{name} is no time in seconds")
    return float(value)


def _is_text_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


_NO_TEXT: Final = ("missing", "not a string")


def _shown(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if isinstance(value, str):
        return printable(value)
    if value and _is_text_list(value):
        return printable(", ".join(value))
    return _NO_TEXT[0] if name not in payload else _NO_TEXT[1]
