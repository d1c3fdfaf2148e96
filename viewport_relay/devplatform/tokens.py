"""Signing keys, the JWKS made of them, and the signing and checking of relay tokens.

Keys live in memory and are made anew at each start. This module has the form of a token; `issue` decides
who gets one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jwt
from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from viewport_relay.devplatform.bodies import TOKEN_MAX_CHARS

Algorithm: TypeAlias = Literal["RS256", "ES256", "EdDSA"]
PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

ISSUER = "viewport-server"
AUDIENCE = "viewport-relay"
SKEW_SECONDS = 30.0
"""The same tolerance that the relay has by default, so that the two agree about a token's last seconds."""


class InvalidToken(Exception):
    """The text is no token of ours; the message gives the reason and never contains the token."""


@frozen
class SigningKey:
    """One private key with its `kid`; `jwk` is the public half only."""

    kid: str
    algorithm: Algorithm
    private: PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, algorithm: Algorithm = "RS256", kid: str | None = None) -> SigningKey:
        """A new key: RSA of 2048 bits, P-256, or Ed25519. Takes about 0.1 s for RSA."""
        private: PrivateKey
        match algorithm:
            case "RS256":
                private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            case "ES256":
                private = ec.generate_private_key(ec.SECP256R1())
            case "EdDSA":
                private = ed25519.Ed25519PrivateKey.generate()
        return cls(kid or f"dev-{secrets.token_hex(4)}", algorithm, private)

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return self.private.public_key()

    def jwk(self) -> dict[str, Any]:
        """The public key as a JWK (RFC 7517; RFC 8037 for Ed25519)."""
        members = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.public, as_dict=True)
        members.pop("key_ops", None)  # `use` says the same (RFC 7517, section 4.3)
        return {**members, "kid": self.kid, "use": "sig", "alg": self.algorithm}

    def sign(self, payload: Mapping[str, object], header: Mapping[str, object] | None = None) -> str:
        """A compact JWS over `payload`; `header` replaces single header members, a None removes one."""
        headers = {"kid": self.kid, **(header or {})}
        return jwt.encode(dict(payload), self.private, algorithm=self.algorithm, headers=headers)


class KeyRing:
    """The key that signs now, and the keys that the JWKS serves."""

    def __init__(self, signing: SigningKey | None = None) -> None:
        self.signing = signing or SigningKey.generate()
        self.served: list[SigningKey] = [self.signing]

    def rotate(self, algorithm: Algorithm = "RS256", *, keep_old: bool) -> SigningKey:
        """Make a new signing key; the old ones stay in the JWKS only with `keep_old`."""
        self.signing = SigningKey.generate(algorithm)
        self.served = [self.signing, *(self.served if keep_old else [])]
        return self.signing

    def serve(self, key: SigningKey) -> SigningKey:
        """Serve a further key without signing with it."""
        self.served.append(key)
        return key

    def jwks(self) -> bytes:
        """The JWKS document (RFC 7517, section 5) as UTF-8 JSON."""
        return json.dumps({"keys": [key.jwk() for key in self.served]}).encode("utf-8")

    def verify(self, token: str, now: float) -> dict[str, object]:
        """The payload of a token that a served key signed and that is valid at `now` (Unix seconds).

        Raises InvalidToken for anything else; 30 s of skew are tolerated.
        """
        if not token.isascii() or len(token) > TOKEN_MAX_CHARS:
            raise InvalidToken("not the form of a token")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = next((served for served in self.served if served.kid == kid), None)
            if key is None:
                raise InvalidToken("unknown signing key")
            # The signature alone: claims are checked against the platform's clock, PyJWT would use the machine's.
            payload = json.loads(jwt.PyJWS().decode(token, key.public, algorithms=[key.algorithm]))
        except (jwt.PyJWTError, ValueError, RecursionError):
            # `from None`: the library's text may quote parts of the token.
            raise InvalidToken("malformed or wrongly signed") from None
        if not isinstance(payload, dict):
            raise InvalidToken("malformed or wrongly signed")
        _check_registered_claims(payload, now)
        return payload


def _check_registered_claims(payload: Mapping[str, object], now: float) -> None:
    audience = payload.get("aud")
    if payload.get("iss") != ISSUER:
        raise InvalidToken("wrong issuer")
    if audience != AUDIENCE and not (isinstance(audience, list) and AUDIENCE in audience):
        raise InvalidToken("wrong audience")
    if _seconds(payload, "exp", required=True) + SKEW_SECONDS <= now:
        raise InvalidToken("expired")
    if max(_seconds(payload, "nbf"), _seconds(payload, "iat")) - SKEW_SECONDS > now:
        raise InvalidToken("not valid yet")


def _seconds(payload: Mapping[str, object], name: str, *, required: bool = False) -> float:
    value = payload.get(name)
    if value is None and not required:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidToken(f"{name} is no number")
    return value
