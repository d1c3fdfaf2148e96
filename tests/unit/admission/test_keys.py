"""JWK sets: the members that are accepted, ignored or refused."""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.drill.certificates import Identity
from viewport_relay.admission.jwt import verified
from viewport_relay.admission.keys import IgnoredKey, Key, KeySet, KeySetError, printable, read_key
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.protocol.base64url import base64url


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
    "kid null": ("RS256", {"kid": None}, True),
    "kid empty": ("RS256", {"kid": ""}, True),
    "use null": ("RS256", {"use": None}, True),
    "use empty": ("RS256", {"use": ""}, True),
    "alg null": ("RS256", {"alg": None}, True),
    "alg empty": ("RS256", {"alg": ""}, True),
    "key_ops null": ("RS256", {"key_ops": None}, True),
    "key_ops empty": ("RS256", {"key_ops": []}, True),
    "d null": ("RS256", {"d": None}, True),
    "d empty": ("RS256", {"d": ""}, True),
    "e padded": ("RS256", {"e": "AQAB===="}, True),
    "x padded": ("ES256", {"x": "PAD"}, True),
    "kid endless": ("RS256", {"kid": "k" * 257}, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_members(name: str, members: dict[str, dict[str, Any]]) -> None:
    base, change, good = CHANGES[name]
    member = {key: value for key, value in {**members[base], **change}.items() if value is not DROP}
    member = {key: members[base][key] + "=" if value == "PAD" else value for key, value in member.items()}
    read = read_key(member)
    assert isinstance(read, Key) is good, read
    if isinstance(read, Key):
        assert (read.kid, read.algorithm) == (member.get("kid") or "v1", base)


@pytest.mark.parametrize("member", [None, 1, "RSA", [], {}])
def test_members_that_are_no_key(member: object) -> None:
    assert isinstance(read_key(member), IgnoredKey)


@pytest.mark.parametrize("bits,good", [(1024, False), (2048, True), (3072, True)])
def test_rsa_key_sizes(bits: int, good: bool) -> None:
    key = SigningKey("k", "RS256", rsa.generate_private_key(65537, bits))
    assert isinstance(read_key(key.jwk()), Key) is good


@pytest.mark.parametrize(
    "bits,ignored",
    [(4096, []), (4104, ["k (of a bad size: 4104 bits)"]), (8192, ["k (of a bad size: 8192 bits)"])],
)
def test_large_rsa_keys(bits: int, ignored: list[str], members: dict[str, dict[str, Any]]) -> None:
    """A signature costs with the square of the key's size: 64 forged ones of 8192 bits held up every peer for 0.1 s."""
    modulus = base64url(b"\xff" * (bits // 8))
    document = {"keys": [{**members["RS256"], "kid": "k", "n": modulus}, members["EdDSA"]]}
    assert [str(key) for key in KeySet.parse(json.dumps(document).encode()).ignored] == ignored


def test_a_p384_key_declared_as_p256() -> None:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    member = {**jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True), "crv": "P-256", "kid": "k"}
    assert isinstance(read_key(member), IgnoredKey)


def test_a_set_lists_usable_and_ignored_members(members: dict[str, dict[str, Any]]) -> None:
    document = {"keys": [*members.values(), {"kty": "oct", "k": "eA"}, {**members["RS256"], "use": "enc"}, 7]}
    found = KeySet.parse(json.dumps(document).encode())
    assert [key.kid for key in found] == ["RS256", "ES256", "EdDSA"]
    assert [str(key) for key in found.ignored] == [
        "without kid (of another type: oct)", "RS256 (for another use: enc)", "without kid (not an object)",
    ]  # fmt: skip
    assert found.for_kid("ES256")[0].algorithm == "ES256" and found.for_kid("nobody") == ()


def chain() -> list[str]:
    """An x5c value: base64 of DER, not base64url."""
    return [base64.b64encode(Identity.self_signed("signer").certificate.public_bytes(Encoding.DER)).decode()]


def published(
    members: dict[str, dict[str, Any]],
) -> dict[str, tuple[list[dict[str, Any]], list[str], list[str]]]:
    """JWK sets as identity providers publish them: members, usable kids, ignored members with their cause."""
    rsa_key, ec_key, ed_key = (members[name] for name in ("RS256", "ES256", "EdDSA"))
    bare = {name: value for name, value in rsa_key.items() if name not in ("alg", "kid", "use")}
    return {
        "RSA with a certificate chain": (
            [{**rsa_key, "kid": "nOo3", "x5t": "nOo3ZDrODXEK", "x5t#S256": "abc", "x5c": chain(), "issuer": "https://idp/"}],
            ["nOo3"], [],
        ),
        "RSA without alg": ([{**bare, "kid": "a", "use": "sig", "x5c": chain()}], ["a"], []),
        "one key for signatures, one for encryption": (
            [{**rsa_key, "kid": "enc", "use": "enc", "alg": "RSA-OAEP"}, {**rsa_key, "kid": "sig"}],
            ["sig"], ["enc (for another use: enc)"],
        ),
        "EC beside RSA": (
            [{**rsa_key, "kid": "r"}, {**ec_key, "kid": "e"}, {**ed_key, "kid": "o"}], ["r", "e", "o"], [],
        ),
        "key_ops instead of use": (
            [{**bare, "kid": "a", "key_ops": ["verify"]}, {**bare, "kid": "b", "key_ops": ["encrypt", "wrapKey"]}],
            ["a"], ["b (for another use: key_ops has no verify)"],
        ),
        "a generator that writes every member": (
            [{
                **rsa_key, "kid": "a", "use": None, "alg": None, "key_ops": None, "x5u": None, "x5c": [], "x5t": "",
                "d": None, "p": None, "q": None, "dp": None, "dq": None, "qi": None, "oth": None, "k": None,
                "crv": None, "x": None, "y": None,
            }],
            ["a"], [],
        ),
        "no kid, one key": ([bare], ["v1"], []),
        "one kid for several keys": (
            [{**rsa_key, "kid": "v1"}, {**ec_key, "kid": "v1"}, {**ed_key, "kid": "v1"}], ["v1", "v1", "v1"], [],
        ),
        "an RS512 key beside": (
            [{**rsa_key, "kid": "512", "alg": "RS512"}, {**rsa_key, "kid": "256"}],
            ["256"], ["512 (for another algorithm: RS512)"],
        ),
        "curves that are not used here": (
            [{**ec_key, "kid": "384", "crv": "P-384"}, {**ed_key, "kid": "x", "crv": "X25519"}, {**ec_key, "kid": "e"}],
            ["e"], ["384 (of another type: EC P-384)", "x (of another type: OKP X25519)"],
        ),
        "one that is broken": (
            [{**rsa_key, "kid": "bad", "n": "AQAB"}, {**ec_key, "kid": "off", "y": ec_key["x"]}, {**rsa_key, "kid": "good"}],
            ["good"], ["bad (malformed)", "off (malformed)"],
        ),
        "a private key by mistake": (
            [{**rsa_key, "kid": "leak", "d": "AQAB"}, {**rsa_key, "kid": "good"}],
            ["good"], ["leak (its private part is published)"],
        ),
        "a secret by mistake": (
            [{"kty": "oct", "kid": "hs", "alg": "HS256", "k": "c2VjcmV0"}, {**rsa_key, "kid": "good"}],
            ["good"], ["hs (of another type: oct)"],
        ),
        "padded base64url": (
            [{**ec_key, "kid": "e", "x": ec_key["x"] + "=", "y": ec_key["y"] + "="}, {**rsa_key, "kid": "r", "e": "AQAB=="}],
            ["e", "r"], [],
        ),
    }  # fmt: skip


PUBLISHED = list(published({name: {"n": "", "x": "", "y": ""} for name in ("RS256", "ES256", "EdDSA")}))


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8], ids=["plain", "BOM"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_sets_as_identity_providers_publish_them(
    name: str, bom: bytes, members: dict[str, dict[str, Any]]
) -> None:
    given, kids, ignored = published(members)[name]
    found = KeySet.parse(bom + json.dumps({"keys": given}, indent=2).encode())
    assert [key.kid for key in found] == kids
    assert [str(key) for key in found.ignored] == ignored


def test_a_published_key_verifies(keys: dict[str, SigningKey], members: dict[str, dict[str, Any]]) -> None:
    """The key verifies signatures although other members of its JWK are unusual."""
    member = {**members["ES256"], "x": members["ES256"]["x"] + "=", "alg": None, "x5c": chain()}
    [key] = KeySet.parse(codecs.BOM_UTF8 + json.dumps({"keys": [member]}).encode())
    assert verified(keys["ES256"].sign({"a": 1}), key) == {"a": 1}


def test_several_keys_of_one_kid(members: dict[str, dict[str, Any]]) -> None:
    document = {"keys": [{**member, "kid": "v1"} for member in members.values()]}
    assert len(KeySet.parse(json.dumps(document).encode()).for_kid("v1")) == 3


def test_at_most_eight_keys_of_one_kid_and_algorithm(members: dict[str, dict[str, Any]]) -> None:
    """A forged token is tried with each of them, in one turn of the reactor."""
    document = {"keys": [{**members[name], "kid": "v1"} for name in ("RS256", "EdDSA") for _ in range(10)]}
    found = KeySet.parse(json.dumps(document).encode())
    assert [key.algorithm for key in found.for_kid("v1")] == ["RS256"] * 8 + ["EdDSA"] * 8
    assert [str(key) for key in found.ignored] == [
        *["v1 (more than 8 RS256 keys have this kid)"] * 2, *["v1 (more than 8 EdDSA keys have this kid)"] * 2,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body,why",
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff", "not JSON"),
        (b'\xef\xbb\xbf{"keys":[]}', "no key"),
        ('{"keys":[]}'.encode("utf-16"), "not JSON"),
        (b"[" * 4_000, "not JSON"),
        (b"[" * 100_000, "more than 4096 arrays and objects"),
        (b"null", "not a JWK set"),
        (b"[]", "not a JWK set"),
        (b"{}", "not a JWK set"),
        (b'{"keys":{}}', "not a JWK set"),
        (b'{"keys":[]}', "no key"),
        (
            b'{"keys":[{"kty":"oct","k":"eA"},{}]}',
            "no usable key: without kid (of another type: oct), without kid (without a type)",
        ),
    ],
)
def test_documents_that_are_no_set(body: bytes, why: str) -> None:
    with pytest.raises(KeySetError, match=None) as wrong:
        KeySet.parse(body)
    assert why in wrong.value.why


@pytest.mark.parametrize("name", ["kty", "crv", "use", "alg", "key_ops", "kid", "n", "x"])
def test_members_as_deep_as_json_is_read(members: dict[str, dict[str, Any]], name: str) -> None:
    """Python reads JSON to a depth at which it cannot make text of it any more: an exception ended the fetches at start."""
    kid = "RS256" if name == "n" else "EdDSA"
    document = json.dumps({"keys": [{**members[kid], name: 0}, {"kty": "oct"}]})
    for depth in range(800, 1050):
        with contextlib.suppress(KeySetError):
            KeySet.parse(
                document.replace(f'"{name}": 0', f'"{name}": ' + "[" * depth + "1" + "]" * depth).encode()
            )


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
    assert isinstance(read, IgnoredKey) or read.algorithm in ("RS256", "ES256", "EdDSA")


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
