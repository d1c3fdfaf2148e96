"""The platform's public keys: a JWK set (RFC 7517) read, filtered and ordered by `kid`. No I/O.

Only what may sign a relay token is kept: RSA of 2048 to 8192 bits (RS256), P-256 (ES256) and Ed25519 (EdDSA,
RFC 8037), for signatures, without a private part. Everything else in a set is ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jwt
from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm

from viewport_relay.protocol.json import parse_json

ALGORITHMS: Final = frozenset({"RS256", "ES256", "EdDSA"})
#: The kid of a token, or of a key, that names none.
DEFAULT_KID: Final = "v1"
#: Most keys in a set, and most bytes of it.
KEYS_MAX: Final = 64
JWKS_MAX_BYTES: Final = 262_144
KID_MAX_CHARS: Final = 256
RSA_BITS: Final = (2048, 8192)
#: Base64url characters of the longest modulus, with room to spare: longer ones are not even decoded.
_NUMBER_MAX_CHARS: Final = 1400
_EXPONENT_MAX_CHARS: Final = 12

_PUBLIC_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_FITTING_ALGS: Final = {"RS256": ("RS256",), "ES256": ("ES256",), "EdDSA": ("EdDSA", "Ed25519")}


def printable(text: str, most: int = 64) -> str:
    """`text` for a log: what cannot be seen becomes a question mark, what is too long is cut."""
    shown = "".join(ch if ch.isprintable() else "?" for ch in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


class KeySetError(Exception):
    """A document that is no usable JWK set; `why` says in a few words what is wrong with it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@frozen
class Key:
    """One key and the one algorithm it is for."""

    kid: str
    algorithm: str
    jwk: jwt.PyJWK = field(repr=False)


@frozen(eq=False)
class KeySet:
    """The usable keys of one document. Two sets are the same only if they are one object."""

    keys: tuple[Key, ...]
    ignored: Mapping[str, int]  # why -> how many
    _by_kid: Mapping[str, tuple[Key, ...]] = field(repr=False)

    @classmethod
    def of(cls, keys: tuple[Key, ...], ignored: Mapping[str, int]) -> KeySet:
        """A set of these keys; several may share a kid."""
        by_kid: dict[str, tuple[Key, ...]] = {}
        for key in keys:
            by_kid[key.kid] = (*by_kid.get(key.kid, ()), key)
        return cls(keys, ignored, by_kid)

    @classmethod
    def parse(cls, body: bytes) -> KeySet:
        """Read a JWK set. Raises KeySetError for no JSON, no set, too many keys, or none that is usable."""
        try:
            document = parse_json(body.decode("utf-8"))
        except (ValueError, RecursionError):
            raise KeySetError("the answer is not JSON") from None
        members = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(members, list):
            raise KeySetError("the answer is not a JWK set")
        if len(members) > KEYS_MAX:
            raise KeySetError(f"the set has {len(members)} keys, at most {KEYS_MAX} are taken")
        keys: list[Key] = []
        ignored: Counter[str] = Counter()
        for member in members:
            usable = read_key(member)
            if isinstance(usable, Key):
                keys.append(usable)
            else:
                ignored[usable] += 1
        if not keys:
            said = ", ".join(f"{count} {why}" for why, count in sorted(ignored.items()))
            raise KeySetError(f"the set has no usable key ({said})" if said else "the set has no key")
        return cls.of(tuple(keys), dict(ignored))

    def for_kid(self, kid: str) -> tuple[Key, ...]:
        """The keys with this kid, often one, none if it is unknown."""
        return self._by_kid.get(kid, ())

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def read_key(member: object) -> Key | str:
    """A key that may sign relay tokens, or in a few words why this member of a set is ignored."""
    if not isinstance(member, dict):
        return "not an object"
    kid = member.get("kid", DEFAULT_KID)
    if not isinstance(kid, str) or len(kid) > KID_MAX_CHARS:
        return "with an unusable kid"
    algorithm = _algorithm(member)
    if algorithm is None:
        return "of another type or curve"
    if member.get("use", "sig") != "sig":
        return "for another use"
    operations = member.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return "for another use"
    if member.get("alg", algorithm) not in _FITTING_ALGS[algorithm]:
        return "for another algorithm"
    if "d" in member:
        return "with its private part published"
    numbers = {name: member.get(name) for name in _PUBLIC_MEMBERS[member["kty"]]}
    if not all(isinstance(text, str) and len(text) <= _NUMBER_MAX_CHARS for text in numbers.values()):
        return "malformed"
    if len(numbers.get("e") or "") > _EXPONENT_MAX_CHARS:
        return "malformed"
    try:
        jwk = jwt.PyJWK({"kty": member["kty"], **numbers}, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return "malformed"
    if algorithm == "RS256" and not RSA_BITS[0] <= jwk.key.key_size <= RSA_BITS[1]:
        return "of a bad size"
    return Key(kid, algorithm, jwk)


def _algorithm(member: Mapping[str, Any]) -> str | None:
    match member.get("kty"), member.get("crv"):
        case "RSA", _:
            return "RS256"
        case "EC", "P-256":
            return "ES256"
        case "OKP", "Ed25519":
            return "EdDSA"
    return None
