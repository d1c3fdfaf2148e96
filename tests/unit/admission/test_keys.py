"""Which members of a JWK set are taken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from viewport_relay.admission.keys import Key, KeySet, KeySetError, printable, read_key
from viewport_relay.devplatform.tokens import SigningKey


@pytest.fixture(scope="session")
def members(keys: dict[str, SigningKey]) -> dict[str, dict[str, Any]]:
    return {name: key.jwk() for name, key in keys.items()}


DROP = object()
CHANGES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "RSA": ("RS256", {}, True),
    "P-256": ("ES256", {}, True),
    "Ed25519": ("EdDSA", {}, True),
    "no alg": ("RS256", {"alg": DROP}, True),
    "no use": ("RS256", {"use": DROP}, True),
    "no kid": ("RS256", {"kid": DROP}, True),
    "alg of RFC 9864": ("EdDSA", {"alg": "Ed25519"}, True),
    "unknown members": ("RS256", {"x5t": "abc", "n2": 1}, True),
    "key_ops verify": ("RS256", {"key_ops": ["verify", "x"]}, True),
    "key_ops sign": ("RS256", {"key_ops": ["sign"]}, False),
    "key_ops a string": ("RS256", {"key_ops": "verify"}, False),
    "use enc": ("RS256", {"use": "enc"}, False),
    "use a list": ("RS256", {"use": ["sig"]}, False),
    "alg of another key": ("RS256", {"alg": "ES256"}, False),
    "alg RS512": ("RS256", {"alg": "RS512"}, False),
    "alg RSA-OAEP": ("RS256", {"alg": "RSA-OAEP"}, False),
    "alg HS256": ("RS256", {"alg": "HS256"}, False),
    "alg a list": ("RS256", {"alg": ["RS256"]}, False),
    "kty oct": ("RS256", {"kty": "oct", "k": "c2VjcmV0"}, False),
    "kty missing": ("RS256", {"kty": DROP}, False),
    "kty a list": ("RS256", {"kty": ["RSA"]}, False),
    "kty small": ("RS256", {"kty": "rsa"}, False),
    "P-384": ("ES256", {"crv": "P-384"}, False),
    "secp256k1": ("ES256", {"crv": "secp256k1"}, False),
    "no crv": ("ES256", {"crv": DROP}, False),
    "X25519": ("EdDSA", {"crv": "X25519"}, False),
    "Ed448": ("EdDSA", {"crv": "Ed448"}, False),
    "not on the curve": ("ES256", {"y": "A" * 43}, False),
    "no y": ("ES256", {"y": DROP}, False),
    "no x": ("EdDSA", {"x": DROP}, False),
    "short x": ("EdDSA", {"x": "AAAA"}, False),
    "n a number": ("RS256", {"n": 5}, False),
    "n empty": ("RS256", {"n": ""}, False),
    "n no base64": ("RS256", {"n": "***"}, False),
    "n endless": ("RS256", {"n": "_" * 200_000}, False),
    "e missing": ("RS256", {"e": DROP}, False),
    "e even": ("RS256", {"e": "Ag"}, False),
    "e endless": ("RS256", {"e": "_" * 400}, False),
    "private": ("RS256", {"d": "AQAB"}, False),
    "kid a number": ("RS256", {"kid": 1}, False),
    "kid null": ("RS256", {"kid": None}, False),
    "kid endless": ("RS256", {"kid": "k" * 257}, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_members(name: str, members: dict[str, dict[str, Any]]) -> None:
    base, change, good = CHANGES[name]
    member = {key: value for key, value in {**members[base], **change}.items() if value is not DROP}
    read = read_key(member)
    assert isinstance(read, Key) is good, read
    if isinstance(read, Key):
        assert (read.kid, read.algorithm) == (member.get("kid", "v1"), base)


@pytest.mark.parametrize("member", [None, 1, "RSA", [], {}])
def test_what_is_no_key(member: object) -> None:
    assert isinstance(read_key(member), str)


@pytest.mark.parametrize("bits,good", [(1024, False), (2048, True), (3072, True)])
def test_sizes_of_rsa(bits: int, good: bool) -> None:
    key = SigningKey("k", "RS256", rsa.generate_private_key(65537, bits))
    assert isinstance(read_key(key.jwk()), Key) is good


def test_a_p384_key_that_says_p256() -> None:
    numbers = ec.generate_private_key(ec.SECP384R1()).public_key().public_numbers()
    from viewport_relay.devplatform.tokens import base64url

    member = {
        "kty": "EC", "crv": "P-256", "kid": "k",
        "x": base64url(numbers.x.to_bytes(48, "big")), "y": base64url(numbers.y.to_bytes(48, "big")),
    }  # fmt: skip
    assert isinstance(read_key(member), str)


def test_a_set_keeps_what_is_usable_and_says_what_is_not(members: dict[str, dict[str, Any]]) -> None:
    document = {"keys": [*members.values(), {"kty": "oct", "k": "eA"}, {**members["RS256"], "use": "enc"}, 7]}
    found = KeySet.parse(json.dumps(document).encode())
    assert [key.kid for key in found] == ["RS256", "ES256", "EdDSA"]
    assert found.ignored == {"of another type or curve": 1, "for another use": 1, "not an object": 1}
    assert found.for_kid("ES256")[0].algorithm == "ES256" and found.for_kid("nobody") == ()


def test_several_keys_of_one_kid(members: dict[str, dict[str, Any]]) -> None:
    document = {"keys": [{**member, "kid": "v1"} for member in members.values()]}
    assert len(KeySet.parse(json.dumps(document).encode()).for_kid("v1")) == 3


@pytest.mark.parametrize(
    "body,why",
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff", "not JSON"),
        (b'\xef\xbb\xbf{"keys":[]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "not a JWK set"),
        (b"[]", "not a JWK set"),
        (b"{}", "not a JWK set"),
        (b'{"keys":{}}', "not a JWK set"),
        (b'{"keys":[]}', "no key"),
        (b'{"keys":[{"kty":"oct","k":"eA"},{}]}', "no usable key (2 of another type or curve)"),
    ],
)
def test_what_is_no_set(body: bytes, why: str) -> None:
    with pytest.raises(KeySetError, match=None) as wrong:
        KeySet.parse(body)
    assert why in wrong.value.why


def test_at_most_64_keys(members: dict[str, dict[str, Any]]) -> None:
    many = [{**members["EdDSA"], "kid": f"k{number}"} for number in range(65)]
    assert len(KeySet.parse(json.dumps({"keys": many[:64]}).encode())) == 64
    with pytest.raises(KeySetError) as wrong:
        KeySet.parse(json.dumps({"keys": many}).encode())
    assert "65 keys" in wrong.value.why


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    base=st.sampled_from(["RS256", "ES256", "EdDSA"]),
    change=st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops", "kid", "d"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=60) | st.lists(st.text(max_size=5), max_size=2)
        | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "AQAB"]),
        max_size=4,
    ),
)  # fmt: skip
def test_any_member_is_read_or_ignored(
    members: dict[str, dict[str, Any]], base: str, change: dict[str, Any]
) -> None:
    read = read_key({**members[base], **change})
    assert isinstance(read, str) or read.algorithm in ("RS256", "ES256", "EdDSA")


@pytest.mark.parametrize(
    "text,shown",
    [
        ("abc", "abc"),
        ("a" * 64, "a" * 64),
        ("a" * 65, "a" * 63 + "…"),
        ("a\nb\x1b\u202e", "a?b??"),
        ("\ud800", "?"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
