"""Signing keys, the JWKS, and verification of the platform's own tokens."""

from __future__ import annotations

import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt.utils import base64url_encode

from viewport_relay.devplatform.tokens import Algorithm, InvalidToken, KeyRing, SigningKey

NOW = 1_700_000_000.0


def payload(**over: object) -> dict[str, object]:
    made: dict[str, object] = {
        "iss": "viewport-server",
        "aud": "viewport-relay",
        "iat": int(NOW),
        "exp": int(NOW) + 300,
        **over,
    }
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_the_published_key_verifies_signatures(algorithm: Algorithm) -> None:
    ring = KeyRing(SigningKey.generate(algorithm))
    token = ring.signing.sign(payload(role="client"))
    document = json.loads(ring.jwks())
    published = jwt.PyJWK(document["keys"][0])
    seen = jwt.decode(
        token, published, algorithms=[algorithm], options={"verify_exp": False}, audience="viewport-relay"
    )
    assert seen["role"] == "client"
    assert jwt.get_unverified_header(token)["kid"] == document["keys"][0]["kid"]
    assert ring.verify(token, NOW) == payload(role="client")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_the_jwks_has_no_private_members(algorithm: Algorithm) -> None:
    jwk = SigningKey.generate(algorithm).jwk()
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(jwk)
    assert jwk["use"] == "sig"
    assert jwk["alg"] == algorithm


def test_rotation_replaces_or_keeps_the_old_key(keys: KeyRing) -> None:
    old = keys.signing.sign(payload())
    first = keys.signing
    second = keys.rotate(keep_old=True)
    assert [key.kid for key in keys.served] == [second.kid, first.kid]
    assert keys.verify(old, NOW)
    third = keys.rotate(keep_old=False)
    assert [key.kid for key in keys.served] == [third.kid]
    with pytest.raises(InvalidToken, match="unknown signing key"):
        keys.verify(old, NOW)
    assert keys.verify(third.sign(payload()), NOW)


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"iss": "someone"}, "wrong issuer"),
        ({"iss": None}, "wrong issuer"),
        ({"aud": "other"}, "wrong audience"),
        ({"aud": ["other"]}, "wrong audience"),
        ({"exp": None}, "exp is no number"),
        ({"exp": True}, "exp is no number"),
        ({"exp": "9999999999"}, "exp is no number"),
        ({"exp": int(NOW) - 30}, "expired"),
        ({"nbf": int(NOW) + 31}, "not valid yet"),
        ({"iat": int(NOW) + 31}, "not valid yet"),
    ],
)
def test_registered_claims_are_checked(keys: KeyRing, over: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidToken, match=why):
        keys.verify(keys.signing.sign(payload(**over)), NOW)


@pytest.mark.parametrize(
    "over",
    [{"exp": int(NOW) - 29}, {"nbf": int(NOW) + 30}, {"iat": None}, {"aud": ["other", "viewport-relay"]}],
)
def test_times_within_the_clock_skew_are_accepted(keys: KeyRing, over: dict[str, object]) -> None:
    assert keys.verify(keys.signing.sign(payload(**over)), NOW)


def test_other_signatures_are_refused(keys: KeyRing) -> None:
    kid = keys.signing.kid
    stranger = SigningKey.generate("RS256", kid=kid)
    curve = SigningKey.generate("ES256", kid=kid)
    symmetric = jwt.encode(payload(), "0" * 32, algorithm="HS256", headers={"kid": kid})
    unsigned = jwt.encode(payload(), "", algorithm="none", headers={"kid": kid})
    good = keys.signing.sign(payload())
    head, _, signature = good.split(".")
    swapped = ".".join((head, stranger.sign(payload(role="worker")).split(".")[1], signature))
    for token in (stranger.sign(payload()), curve.sign(payload()), symmetric, unsigned, swapped, good[:-8]):
        with pytest.raises(InvalidToken, match="malformed or wrongly signed"):
            keys.verify(token, NOW)


def test_the_reason_never_quotes_the_token(keys: KeyRing) -> None:
    token = keys.signing.sign(payload())[:-10]
    with pytest.raises(InvalidToken) as caught:
        keys.verify(token, NOW)
    assert token[:20] not in str(caught.value)
    assert caught.value.__suppress_context__


@given(
    text=st.one_of(
        st.text(max_size=300), st.from_regex(r"[A-Za-z0-9_-]{0,200}\.[A-Za-z0-9_-]{0,200}\.[A-Za-z0-9_-]*")
    )
)
def test_any_text_is_an_invalid_token(text: str) -> None:
    ring = KeyRing(ED)
    with pytest.raises(InvalidToken):
        ring.verify(text, NOW)


def test_a_deeply_nested_header_is_an_invalid_token(keys: KeyRing) -> None:
    for raw in (b'{"kid":' + b"[" * 2900, b'{"kid":' + b"9" * 2900 + b"}", b"{}"):
        with pytest.raises(InvalidToken):
            keys.verify(f"{base64url_encode(raw).decode()}.e30.AA", NOW)


ED = SigningKey.generate("EdDSA")
