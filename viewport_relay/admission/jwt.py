"""Reading and checking one token (RFC 7515, RFC 7519), without any I/O.

`read_header` tells which key a token asks for, `payload_signed_by` checks the signature with the algorithm of PyJWT's
that belongs to the key, and `check_payload` the claims that the relay itself looks at. Which keys there are is
`keys.py`'s, whether the platform still likes the token is `platform.py`'s. No error text holds any part of a token but
its `kid`.

A compact JWS is taken apart here and not by `jwt.PyJWS`, which looks at every character in Python and decodes the header
that was read before: two thirds of its time, and a tenth of an upgrade's. A property test holds the two together.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import frozen

from viewport_relay.admission.keys import ALGORITHMS, DEFAULT_KID, Key, printable
from viewport_relay.protocol.grant import UpgradeQuery
from viewport_relay.protocol.json import parse_json
from viewport_relay.reasons import Reason, Refusal

_SEGMENTS: Final = re.compile(r"[A-Za-z0-9_-]+={0,2}\.[A-Za-z0-9_-]+={0,2}\.[A-Za-z0-9_-]*={0,2}")


@frozen
class TokenRules:
    """What a token must say. `skew` is the tolerance for exp, nbf and iat in seconds."""

    issuer: str
    audience: str
    skew: float


@frozen
class TokenHeader:
    """The members of a token's header that matter here."""

    algorithm: str
    kid: str


def read_header(token: str) -> TokenHeader:
    """The header of a compact JWS. Raises Refusal JWT_MALFORMED or JWT_ALGORITHM_NOT_ALLOWED."""
    if not _SEGMENTS.fullmatch(token):
        raise Refusal(Reason.JWT_MALFORMED, "it is not three parts of base64url")
    header = _object(token.partition(".")[0])
    if header is None:
        raise Refusal(Reason.JWT_MALFORMED, "its header is not a JSON object")
    if "crit" in header or header.get("b64", True) is not True:
        # RFC 7515 section 4.1.11: extensions that are not understood must be refused.
        raise Refusal(Reason.JWT_MALFORMED, "its header demands an extension")
    kid = header.get("kid", DEFAULT_KID)
    if not isinstance(kid, str):
        raise Refusal(Reason.JWT_MALFORMED, "its kid is not a string")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        named = printable(algorithm, 16) if isinstance(algorithm, str) else "missing"
        raise Refusal(Reason.JWT_ALGORITHM_NOT_ALLOWED, f"alg is {named}")
    return TokenHeader(algorithm, kid)


def unverified(token: str) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Header and payload as they stand, None where there is no JSON object. For inspection, never for a decision."""
    header, _, rest = token.partition(".")
    return _object(header), _object(rest.partition(".")[0])


def payload_signed_by(token: str, header: TokenHeader, keys: Iterable[Key]) -> Mapping[str, Any]:
    """The payload of a token that one of `keys` (those of its kid) signed.

    Raises Refusal: JWT_SIGNATURE_MISMATCH for no key or another key, JWT_ALGORITHM_NOT_ALLOWED when the kid's
    keys are all of another algorithm, JWT_MALFORMED for a payload that is no JSON object.
    """

    def refused(reason: Reason, words: str) -> Refusal:
        kid = printable(header.kid)
        return Refusal(reason, words.format(kid=kid), details={"kid": kid})

    candidates = list(keys)
    if not candidates:
        raise refused(Reason.JWT_SIGNATURE_MISMATCH, "kid {kid} is not in the JWKS")
    fitting = [key for key in candidates if key.algorithm == header.algorithm]
    if fitting:
        signed, _, last = token.rpartition(".")
        raw, signature = _decoded(signed.partition(".")[2]), _decoded(last)
        if raw is None or signature is None:
            raise refused(Reason.JWT_MALFORMED, "it cannot be decoded")
        for key in fitting:
            if key.jwk.Algorithm.verify(signed.encode("ascii"), key.jwk.key, signature):
                payload = _json_object(raw)
                if payload is None:
                    raise refused(Reason.JWT_MALFORMED, "its payload is not a JSON object")
                return payload
        raise refused(Reason.JWT_SIGNATURE_MISMATCH, "the key {kid} did not sign it")
    words = f"alg is {header.algorithm}, the key {{kid}} is for {candidates[0].algorithm}"
    raise refused(Reason.JWT_ALGORITHM_NOT_ALLOWED, words)


def check_payload(payload: Mapping[str, Any], query: UpgradeQuery, rules: TokenRules, now: float) -> float:
    """Check times, issuer, audience and binding; gives exp (seconds since the epoch, as `now` is).

    Raises Refusal JWT_EXPIRED, JWT_NOT_YET_VALID, JWT_ISSUER_MISMATCH, JWT_AUDIENCE_MISMATCH, or
    JWT_CLAIM_MISMATCH, which also stands for a time that is missing or no number.
    """
    expires = _time(payload, "exp")
    if expires is None:
        raise Refusal(Reason.JWT_CLAIM_MISMATCH, "exp is missing")
    if now >= expires + rules.skew:
        late = math.ceil(now - expires)
        raise Refusal(Reason.JWT_EXPIRED, f"exp passed {late} s ago", details={"secondsAgo": late})
    for name in ("nbf", "iat"):
        begins = _time(payload, name)
        if begins is not None and begins > now + rules.skew:
            early = math.ceil(begins - now)
            words = f"{name} is {early} s in the future"
            raise Refusal(Reason.JWT_NOT_YET_VALID, words, details={"secondsAhead": early})
    if payload.get("iss") != rules.issuer:
        raise Refusal(Reason.JWT_ISSUER_MISMATCH, f"iss is {_shown(payload, 'iss')}")
    audience = payload.get("aud")
    if audience != rules.audience and not (isinstance(audience, list) and rules.audience in audience):
        raise Refusal(Reason.JWT_AUDIENCE_MISMATCH, f"aud is {_shown(payload, 'aud')}")
    asked = {"role": query.role.value, "workspaceId": query.workspace_id}
    if query.runtime_target_id is not None:
        asked["runtimeTargetId"] = query.runtime_target_id
    for name, value in asked.items():
        if name in payload and payload[name] != value:
            raise Refusal(
                Reason.JWT_CLAIM_MISMATCH, f"{name} is {_shown(payload, name)}, the query says {value}"
            )
    return expires


def _time(payload: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2), None if absent."""
    if name not in payload:
        return None
    value = payload[name]
    # bool is an int to Python, and 1e999 is a float
    if type(value) not in (int, float) or not -1e15 < value < 1e15:
        raise Refusal(Reason.JWT_CLAIM_MISMATCH, f"{name} is no time in seconds")
    return float(value)


def _shown(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if isinstance(value, str):
        return printable(value)
    return "missing" if name not in payload else "not a string"


def _decoded(segment: str) -> bytes | None:
    """The bytes of one segment (RFC 7515 section 2), None unless it is the one way to write them; padding may stand."""
    bare = segment.rstrip("=")
    if len(bare) % 4 == 1 or (len(bare) != len(segment) and len(segment) % 4):
        return None
    try:
        raw = base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except ValueError:  # binascii.Error, and what is not ASCII
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=") == bare.encode("ascii") else None


def _object(segment: str) -> Mapping[str, Any] | None:
    raw = _decoded(segment)
    return None if raw is None else _json_object(raw)


def _json_object(raw: bytes) -> Mapping[str, Any] | None:
    try:
        value = parse_json(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
