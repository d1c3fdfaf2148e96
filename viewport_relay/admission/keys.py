"""The platform's public keys: a JWK set (RFC 7517), filtered and ordered by `kid`. No I/O.

A key is `jwt.PyJWK`'s to read. Kept is what may sign a relay token: RSA of 2048 to 4096 bits (RS256), P-256 (ES256) and
Ed25519 (EdDSA, RFC 8037), for signatures, without a private part. Any other member of a set is ignored with a reason, and
harms no other. `jwt.PyJWKSet` does the same but does not say what it leaves out.

A token that is signed by no key is tried with every key of its kid and algorithm. The bounds on the size of an RSA key and on
the keys of one kid are bounds on what such a token costs.

Sets are read as platforms publish them: a member of a key that is null or empty is absent, base64url may be padded, the
document may begin with a byte order mark.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jwt
from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm

from viewport_relay.protocol.json import TooManyComposites, parse_json

ALGORITHMS: Final = frozenset({"RS256", "ES256", "EdDSA"})
#: The kid of a token, or of a key, that names none.
DEFAULT_KID: Final = "v1"
#: Most keys in a set, and most bytes of it.
KEYS_MAX: Final = 64
JWKS_MAX_BYTES: Final = 262_144
#: Most arrays and objects of a set, and of a validate answer: real ones have a handful for each key, and parsing many holds
#: up every connection.
COMPOSITES_MAX: Final = 4_096
KID_MAX_CHARS: Final = 256
#: Most keys of one kid and algorithm: those that a token may be tried with.
KEYS_OF_A_KID_MAX: Final = 8
RSA_BITS: Final = (2048, 4096)
#: Base64url characters of the longest modulus, with room for one that is too long but has its size named. Longer ones are not
#: even decoded.
_NUMBER_MAX_CHARS: Final = 1400
_EXPONENT_MAX_CHARS: Final = 12

#: Ignored keys that a message names at most.
_NAMED_MAX: Final = 8

_PUBLIC_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_FITTING_ALGS: Final = {"RS256": ("RS256",), "ES256": ("ES256",), "EdDSA": ("EdDSA", "Ed25519")}


def printable(text: str, most: int = 64) -> str:
    """`text` for a log: what cannot be seen becomes a question mark, what is too long is cut."""
    shown = "".join(ch if ch.isprintable() else "?" for ch in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


class KeySetError(Exception):
    """A document is no usable JWK set; `why` says in a few words what is wrong with it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@frozen
class Key:
    """A key, and the one algorithm that it is for."""

    kid: str
    algorithm: str
    jwk: jwt.PyJWK = field(repr=False)


@frozen
class IgnoredKey:
    """A member of a set that cannot sign relay tokens. `kid` is printable, empty if there is none."""

    kid: str
    why: str

    def __str__(self) -> str:
        return f"{self.kid or 'without kid'} ({self.why})"


@frozen(eq=False)
class KeySet:
    """The usable keys of one document; several may share a kid. Two sets are the same only if they are one object."""

    keys: Sequence[Key]
    ignored: Sequence[IgnoredKey] = ()

    @classmethod
    def parse(cls, body: bytes) -> KeySet:
        """Read a JWK set. Raises KeySetError for no JSON, no set, too many keys, or none that is usable."""
        members = _members(body)
        keys: list[Key] = []
        ignored: list[IgnoredKey] = []
        of_a_kid: Counter[tuple[str, str]] = Counter()
        for key in map(read_key, members):
            if isinstance(key, IgnoredKey):
                ignored.append(key)
            elif of_a_kid[key.kid, key.algorithm] == KEYS_OF_A_KID_MAX:
                why = f"more than {KEYS_OF_A_KID_MAX} {key.algorithm} keys have this kid"
                ignored.append(IgnoredKey(printable(key.kid), why))
            else:
                of_a_kid[key.kid, key.algorithm] += 1
                keys.append(key)
        if not keys:
            raise KeySetError(
                f"the set has no usable key: {listed(ignored)}" if members else "the set has no key"
            )
        return cls(keys, ignored)

    def for_kid(self, kid: str) -> tuple[Key, ...]:
        """The keys with this kid, often one, none if it is unknown."""
        return tuple(key for key in self.keys if key.kid == kid)

    @property
    def kids(self) -> list[str]:
        """The first kids, printable, for a log."""
        return [printable(kid) for kid in list(dict.fromkeys(key.kid for key in self.keys))[:_NAMED_MAX]]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def _members(body: bytes) -> list[object]:
    """The members of a JWK set, unread. Raises KeySetError for no JSON, no set, or too many members."""
    try:
        document = parse_json(
            body.removeprefix(codecs.BOM_UTF8).decode("utf-8"), most_composites=COMPOSITES_MAX
        )
    except TooManyComposites as error:
        raise KeySetError(f"the answer has {error}") from None
    except (ValueError, RecursionError):
        raise KeySetError("the answer is not JSON") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise KeySetError("the answer is not a JWK set")
    if len(members) > KEYS_MAX:
        raise KeySetError(f"the set has {len(members)} keys, at most {KEYS_MAX} are taken")
    return members


def listed(ignored: Sequence[IgnoredKey]) -> str:
    """The ignored keys and the reasons, for a message."""
    more = f" and {len(ignored) - _NAMED_MAX} more" if len(ignored) > _NAMED_MAX else ""
    return ", ".join(str(key) for key in ignored[:_NAMED_MAX]) + more


def read_key(member: object) -> Key | IgnoredKey:
    """A key that may sign relay tokens, or why this member of a set is ignored."""
    if not isinstance(member, dict):
        return IgnoredKey("", "not an object")
    given = {name: value for name, value in member.items() if value not in (None, "", [])}
    kid = given.get("kid", DEFAULT_KID)
    if not isinstance(kid, str) or len(kid) > KID_MAX_CHARS:
        return IgnoredKey("", "kid is not a string of at most 256 characters")
    read = _read(given)
    if isinstance(read, str):
        return IgnoredKey(printable(given["kid"]) if "kid" in given else "", read)
    return Key(kid, read.algorithm_name, read)


def _read(given: Mapping[str, Any]) -> jwt.PyJWK | str:
    """The key of a member, or why it is ignored."""
    algorithm = _algorithm(given)
    if algorithm is None:
        kind = [_named(given[name]) for name in ("kty", "crv") if name in given]
        return f"of another type: {' '.join(kind)}" if kind else "without a type"
    if given.get("use", "sig") != "sig":
        return f"for another use: {_named(given['use'])}"
    operations = given.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return "for another use: key_ops has no verify"
    if given.get("alg", algorithm) not in _FITTING_ALGS[algorithm]:
        return f"for another algorithm: {_named(given['alg'])}"
    if "d" in given:
        return "its private part is published"
    jwk = _public_key(given, algorithm)
    if jwk is None:
        return "malformed"
    if algorithm == "RS256" and not RSA_BITS[0] <= jwk.key.key_size <= RSA_BITS[1]:
        return f"of a bad size: {jwk.key.key_size} bits"
    return jwk


def _public_key(given: Mapping[str, Any], algorithm: str) -> jwt.PyJWK | None:
    """The key that the public members make; None if they make none, or are longer than those of any key that is taken."""
    numbers = {name: given.get(name) for name in _PUBLIC_MEMBERS[given["kty"]]}
    if not all(isinstance(text, str) and len(text) <= _NUMBER_MAX_CHARS for text in numbers.values()):
        return None
    bare = {name: str(text).rstrip("=") for name, text in numbers.items()}
    if len(bare.get("e", "")) > _EXPONENT_MAX_CHARS:
        return None
    try:
        return jwt.PyJWK({"kty": given["kty"], **bare}, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _named(value: object) -> str:
    """A member's value for a message. Only a string is shown: what is nested deeply cannot be turned into text."""
    return printable(value, 16) if isinstance(value, str) else "no string"


def _algorithm(given: Mapping[str, Any]) -> str | None:
    match given.get("kty"), given.get("crv"):
        case "RSA", _:
            return "RS256"
        case "EC", "P-256":
            return "ES256"
        case "OKP", "Ed25519":
            return "EdDSA"
    return None
