"""Table of invalid tokens; each is refused with its reason."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import jwt as pyjwt
import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from viewport_relay.admission.jwt import TokenRules, check_payload, payload_signed_by, read_header
from viewport_relay.admission.keys import Key, KeySet, read_key
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

RULES = TokenRules("viewport-server", "viewport-relay", 30)
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def usable(key: SigningKey) -> Key:
    read = read_key(key.jwk())
    assert isinstance(read, Key)
    return read


def verify(token: str, *keys: SigningKey) -> dict[str, Any]:
    header = read_header(token)
    return dict(payload_signed_by(token, header, KeySet([usable(key) for key in keys])))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_each_algorithm_verifies(
    keys: dict[str, SigningKey], payload: dict[str, Any], algorithm: str
) -> None:
    token = keys[algorithm].sign(payload)
    assert read_header(token).kid == algorithm
    assert verify(token, keys[algorithm]) == payload


def test_a_token_without_kid_uses_v1(keys: dict[str, SigningKey], payload: dict[str, Any]) -> None:
    token = pyjwt.encode(payload, keys["RS256"].private, algorithm="RS256")
    assert read_header(token).kid == "v1"


HEADERS: dict[str, tuple[object, Reason]] = {
    "none": ({"alg": "none"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "None": ({"alg": "None"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "HS256": ({"alg": "HS256", "kid": "k"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "HS512": ({"alg": "HS512"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "RS512": ({"alg": "RS512"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "PS256": ({"alg": "PS256"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "ES384": ({"alg": "ES384"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "lower case": ({"alg": "rs256"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "no alg": ({"kid": "k"}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "alg a list": ({"alg": ["RS256"]}, Reason.JWT_ALGORITHM_NOT_ALLOWED),
    "kid a number": ({"alg": "RS256", "kid": 1}, Reason.JWT_MALFORMED),
    "kid a list": ({"alg": "RS256", "kid": ["k"]}, Reason.JWT_MALFORMED),
    "kid null": ({"alg": "RS256", "kid": None}, Reason.JWT_MALFORMED),
    "kid an object": ({"alg": "RS256", "kid": {}}, Reason.JWT_MALFORMED),
    "crit": ({"alg": "RS256", "crit": ["exp"]}, Reason.JWT_MALFORMED),
    "b64 false": ({"alg": "RS256", "b64": False}, Reason.JWT_MALFORMED),
    "a list": ([], Reason.JWT_MALFORMED),
    "a string": ("RS256", Reason.JWT_MALFORMED),
    "null": (None, Reason.JWT_MALFORMED),
    "no JSON": (b"{alg:RS256}", Reason.JWT_MALFORMED),
    "no UTF-8": (b'{"alg":"RS256","kid":"\xff"}', Reason.JWT_MALFORMED),
    "deep": (b'{"alg":"RS256","x":' + b"[" * 3000, Reason.JWT_MALFORMED),
    "empty": (b"", Reason.JWT_MALFORMED),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_headers(name: str) -> None:
    header, reason = HEADERS[name]
    with pytest.raises(Refusal) as refused:
        read_header(f"{segment(header)}.{segment({'a': 1})}.{segment(b'sig')}")
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a" * 20,
        "a.b",
        "a.b.c.d",
        "..",
        ".b.c",
        "a..c",
        "a b.c.d",
        "a.b.c\n",
        "ä.b.c",
        "a.b.c d",
        "====.b.c",
        "a.b.c",
    ],
)
def test_malformed_tokens(token: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_header(token)
    assert refused.value.reason is Reason.JWT_MALFORMED


def test_the_header_is_read_before_the_rest_is_decoded(
    keys: dict[str, SigningKey], payload: dict[str, Any]
) -> None:
    head, body, signature = keys["RS256"].sign(payload).split(".")
    for token in (f"{head}.{body}=x.{signature}", f"{head}.{body}.ä", f"{head}.a.{signature}"):
        assert read_header(token) == read_header(f"{head}.{body}.{signature}")
        with pytest.raises(Refusal) as refused:
            verify(token, keys["RS256"])
        assert refused.value.reason is Reason.JWT_MALFORMED
        assert "base64url" in refused.value.detail


def test_a_signed_payload_that_is_no_json_object(keys: dict[str, SigningKey]) -> None:
    for payload in (b"[]", b"null", b"{", b"\xff", b"[" * 100_000):
        token = pyjwt.PyJWS().encode(payload, keys["RS256"].private, "RS256", {"kid": "RS256"})
        with pytest.raises(Refusal) as refused:
            verify(token, keys["RS256"])
        assert refused.value.reason is Reason.JWT_MALFORMED


def test_cached_headers_and_refusals_are_not_mixed_up(
    keys: dict[str, SigningKey], payload: dict[str, Any]
) -> None:
    bad = f"{segment({'alg': 'none'})}.{segment({'a': 1})}."
    for _ in range(2):
        with pytest.raises(Refusal):
            read_header(bad)
        for name in ("RS256", "ES256", "EdDSA"):
            assert read_header(keys[name].sign(payload)).algorithm == name


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_changed_token_is_a_signature_mismatch(
    keys: dict[str, SigningKey], payload: dict[str, Any], algorithm: str
) -> None:
    head, _, signature = keys[algorithm].sign(payload).split(".")
    forged = f"{head}.{segment({**payload, 'role': 'worker'})}.{signature}"
    for token in (forged, f"{forged.rpartition('.')[0]}.", f"{forged.rpartition('.')[0]}.{segment(b'x')}"):
        with pytest.raises(Refusal) as refused:
            verify(token, keys[algorithm])
        assert refused.value.reason is Reason.JWT_SIGNATURE_MISMATCH


def test_the_same_kid_with_another_key(
    keys: dict[str, SigningKey], other_key: SigningKey, payload: dict[str, Any]
) -> None:
    token = other_key.sign(payload)
    with pytest.raises(Refusal) as refused:
        verify(token, keys["RS256"])
    assert refused.value.reason is Reason.JWT_SIGNATURE_MISMATCH
    assert verify(token, keys["RS256"], other_key) == payload  # several keys may share one kid


def test_an_unknown_kid_is_a_signature_mismatch_that_names_it(
    keys: dict[str, SigningKey], payload: dict[str, Any]
) -> None:
    token = keys["RS256"].sign(payload, {"kid": "gone\x1b[31m" + "x" * 100})
    with pytest.raises(Refusal) as refused:
        verify(token)
    assert refused.value.reason is Reason.JWT_SIGNATURE_MISMATCH
    assert "is not in the JWKS, which has none" in refused.value.detail
    shown = refused.value.details["kid"]
    assert shown.startswith("gone?[31m") and len(shown) == 64 and shown.isprintable()


def test_a_key_of_another_algorithm(keys: dict[str, SigningKey], payload: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refused:
        verify(keys["ES256"].sign(payload, {"kid": "RS256"}), keys["RS256"])
    assert refused.value.reason is Reason.JWT_ALGORITHM_NOT_ALLOWED


def test_a_public_key_used_as_hmac_secret(keys: dict[str, SigningKey], payload: dict[str, Any]) -> None:
    secret = keys["RS256"].public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{segment({'alg': 'HS256', 'kid': 'RS256'})}.{segment(payload)}"
    token = f"{signed}.{segment(hmac.digest(secret, signed.encode(), 'sha256'))}"
    with pytest.raises(Refusal) as refused:
        verify(token, keys["RS256"])
    assert refused.value.reason is Reason.JWT_ALGORITHM_NOT_ALLOWED


@pytest.mark.parametrize("raw", [b"[1]", b"null", b"not json", b"\xff", b"[" * 3000])
def test_a_signed_payload_that_is_no_object(keys: dict[str, SigningKey], raw: bytes) -> None:
    token = pyjwt.PyJWS().encode(raw, keys["EdDSA"].private, algorithm="EdDSA", headers={"kid": "EdDSA"})
    with pytest.raises(Refusal) as refused:
        verify(token, keys["EdDSA"])
    assert refused.value.reason is Reason.JWT_MALFORMED


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_an_unknown_kid_lists_the_kids_of_the_key_set(
    keys: dict[str, SigningKey], payload: dict[str, Any]
) -> None:
    with pytest.raises(Refusal) as refused:
        verify(keys["RS256"].sign(payload, {"kid": "gone"}), keys["ES256"], keys["EdDSA"])
    assert refused.value.detail == "kid gone is not in the JWKS, which has ES256, EdDSA"
    assert refused.value.details == {"kid": "gone", "kids": ["ES256", "EdDSA"], "iss": "viewport-server"}


def test_a_key_is_used_with_its_own_algorithm_only(
    keys: dict[str, SigningKey], payload: dict[str, Any]
) -> None:
    """With several keys of one kid, only those of the token's algorithm are tried."""
    same = [SigningKey("k", name, keys[name].private) for name in ("RS256", "ES256", "EdDSA")]
    for key in same:
        assert verify(key.sign(payload), *same) == payload
        with pytest.raises(Refusal) as refused:
            verify(key.sign(payload), *(other for other in same if other is not key))
        assert refused.value.reason is Reason.JWT_ALGORITHM_NOT_ALLOWED


@pytest.mark.parametrize("number", [0, 1, 2])
def test_unused_bits_of_base64url_must_be_zero(
    keys: dict[str, SigningKey], payload: dict[str, Any], number: int
) -> None:
    """Otherwise one token would have several encodings, each with its own cache entry."""
    payload["x"] = next(
        "y" * n for n in range(1, 4) if len(json.dumps({**payload, "x": "y" * n}, separators=(",", ":"))) % 3
    )
    key = keys["EdDSA"]
    parts = pyjwt.encode(payload, key.private, algorithm="EdDSA", headers={"kid": "EdDSA", "x": "1"}).split(
        "."
    )
    last = _ALPHABET.index(parts[number][-1])
    if len(parts[number]) % 4 == 0:
        pytest.fail("the segment has no spare bits: choose another length")
    parts[number] = parts[number][:-1] + _ALPHABET[last ^ 1]
    with pytest.raises(Refusal) as refused:
        verify(".".join(parts), key)
    assert refused.value.reason is Reason.JWT_MALFORMED


@fuzz
@given(
    text=st.text(max_size=8),
    edits=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([*"AB-_+/=!. ", "==", "\n", "é"])), max_size=2
    ),
)
def test_segments_are_decoded_as_pyjwt_decodes_them(
    keys: dict[str, SigningKey], text: str, edits: list[tuple[int, str]]
) -> None:
    key, encoded = keys["EdDSA"], segment({"text": text})
    for at, inserted in edits:
        encoded = encoded[:at] + inserted + encoded[at:]
    signed = f"{segment({'alg': 'EdDSA', 'kid': 'EdDSA'})}.{encoded}"
    assert isinstance(key.private, Ed25519PrivateKey)
    token = f"{signed}.{segment(key.private.sign(signed.encode()))}"
    try:
        expected: object = json.loads(pyjwt.PyJWS().decode(token, key.public, ["EdDSA"]))
    except (pyjwt.PyJWTError, ValueError):
        with pytest.raises(Refusal) as refused:
            verify(token, key)
        assert refused.value.reason is Reason.JWT_MALFORMED
    else:
        assert verify(token, key) == expected


DROP = object()
PAYLOADS: dict[str, tuple[dict[str, Any], Reason | None]] = {
    "as it is": ({}, None),
    "no exp": ({"exp": DROP}, Reason.JWT_CLAIM_MISMATCH),
    "exp true": ({"exp": True}, Reason.JWT_CLAIM_MISMATCH),
    "exp a string": ({"exp": "1900000000"}, Reason.JWT_CLAIM_MISMATCH),
    "exp null": ({"exp": None}, Reason.JWT_CLAIM_MISMATCH),
    "exp endless": ({"exp": float("inf")}, Reason.JWT_CLAIM_MISMATCH),
    "exp NaN": ({"exp": float("nan")}, Reason.JWT_CLAIM_MISMATCH),
    "exp huge": ({"exp": 10**300}, Reason.JWT_CLAIM_MISMATCH),
    "exp a fraction": ({"exp": 1_800_000_000.5}, None),
    "exp passed, within skew": ({"exp": 1_800_000_000 - 29}, None),
    "exp passed by the skew": ({"exp": 1_800_000_000 - 30}, Reason.JWT_EXPIRED),
    "exp long passed": ({"exp": 1}, Reason.JWT_EXPIRED),
    "exp negative": ({"exp": -1}, Reason.JWT_EXPIRED),
    "no iat": ({"iat": DROP}, None),
    "iat ahead, within skew": ({"iat": 1_800_000_030}, None),
    "iat ahead": ({"iat": 1_800_000_031}, Reason.JWT_NOT_YET_VALID),
    "iat a string": ({"iat": "1"}, Reason.JWT_CLAIM_MISMATCH),
    "nbf ahead, within skew": ({"nbf": 1_800_000_030}, None),
    "nbf ahead": ({"nbf": 1_800_000_031}, Reason.JWT_NOT_YET_VALID),
    "nbf true": ({"nbf": True}, Reason.JWT_CLAIM_MISMATCH),
    "no iss": ({"iss": DROP}, Reason.JWT_ISSUER_MISMATCH),
    "other iss": ({"iss": "Viewport-server"}, Reason.JWT_ISSUER_MISMATCH),
    "iss a list": ({"iss": ["viewport-server"]}, Reason.JWT_ISSUER_MISMATCH),
    "no aud": ({"aud": DROP}, Reason.JWT_AUDIENCE_MISMATCH),
    "other aud": ({"aud": "viewport-relay-2"}, Reason.JWT_AUDIENCE_MISMATCH),
    "aud within a string": ({"aud": "x viewport-relay x"}, Reason.JWT_AUDIENCE_MISMATCH),
    "aud a list": ({"aud": ["x", "viewport-relay"]}, None),
    "aud a list with a number": ({"aud": [7, "viewport-relay"]}, Reason.JWT_AUDIENCE_MISMATCH),
    "aud a list with a list": ({"aud": ["viewport-relay", ["viewport-relay"]]}, Reason.JWT_AUDIENCE_MISMATCH),
    "aud a list without": ({"aud": ["x", 1, {}]}, Reason.JWT_AUDIENCE_MISMATCH),
    "aud an object": ({"aud": {"viewport-relay": 1}}, Reason.JWT_AUDIENCE_MISMATCH),
    "no binding": ({"role": DROP, "workspaceId": DROP, "runtimeTargetId": DROP}, None),
    "other role": ({"role": "worker"}, Reason.JWT_CLAIM_MISMATCH),
    "role null": ({"role": None}, Reason.JWT_CLAIM_MISMATCH),
    "other workspace": ({"workspaceId": "WS-1"}, Reason.JWT_CLAIM_MISMATCH),
    "workspace a list": ({"workspaceId": ["ws-1"]}, Reason.JWT_CLAIM_MISMATCH),
    "other target": ({"runtimeTargetId": "rt-2"}, Reason.JWT_CLAIM_MISMATCH),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads(name: str, payload: dict[str, Any], query: UpgradeQuery, now: float) -> None:
    change, reason = PAYLOADS[name]
    payload.update(change)
    payload = {key: value for key, value in payload.items() if value is not DROP}
    if reason is None:
        assert check_payload(payload, query, RULES, now) == payload["exp"]
        return
    with pytest.raises(Refusal) as refused:
        check_payload(payload, query, RULES, now)
    assert refused.value.reason is reason and refused.value.detail


TIMES: dict[str, tuple[dict[str, int], float | None, str, dict[str, Any]]] = {
    "expired, no Date": (
        {"exp": 1_799_999_900}, None,
        "exp passed 100 s ago (iat 2027-01-15T08:00:00Z, exp 2027-01-15T07:58:20Z, the relay's clock 2027-01-15T08:00:00Z)",
        {"secondsAgo": 100},
    ),
    "expired, clocks alike": (
        {"exp": 1_799_999_900}, 1.2,
        "exp passed 100 s ago (iat 2027-01-15T08:00:00Z, exp 2027-01-15T07:58:20Z, the relay's clock 2027-01-15T08:00:00Z, "
        "the platform's alike)",
        {"secondsAgo": 100, "clockOffset": 1.2},
    ),
    "expired, clock ahead": (
        {"exp": 1_799_999_900}, 120.0,
        "exp passed 100 s ago (iat 2027-01-15T08:00:00Z, exp 2027-01-15T07:58:20Z, the relay's clock 2027-01-15T08:00:00Z, "
        "the platform's 120 s behind it)",
        {
            "secondsAgo": 100, "clockOffset": 120.0,
            "hint": "the relay's clock is 120 s ahead of the platform's: synchronise both (chrony, NTP)",
        },
    ),
    "early, clock behind": (
        {"nbf": 1_800_000_100}, -99.6,
        "nbf is 100 s in the future (iat 2027-01-15T08:00:00Z, nbf 2027-01-15T08:01:40Z, exp 2027-01-15T08:05:00Z, "
        "the relay's clock 2027-01-15T08:00:00Z, the platform's 100 s ahead of it)",
        {
            "secondsAhead": 100, "clockOffset": -99.6,
            "hint": "the relay's clock is 100 s behind the platform's: synchronise both (chrony, NTP)",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMES)
def test_details_of_refused_times(
    name: str, payload: dict[str, Any], query: UpgradeQuery, now: float
) -> None:
    change, offset, words, details = TIMES[name]
    with pytest.raises(Refusal) as refused:
        check_payload({**payload, **change}, query, RULES, now, lambda: offset)
    assert refused.value.detail == words
    shown = dict(refused.value.details)
    assert {key: shown.get(key) for key in details} == details and ("hint" in shown) is ("hint" in details)
    assert shown["now"] == "2027-01-15T08:00:00Z" and shown["exp"].endswith("Z")


CLAIMS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "iss": (
        {"iss": "https://other.example"}, "iss is 'https://other.example', RELAY_TOKEN_ISSUER expects 'viewport-server'",
        {
            "claim": "iss", "got": "https://other.example", "expected": "viewport-server",
            "hint": "if these tokens are meant for this relay, set RELAY_TOKEN_ISSUER=https://other.example",
        },
    ),
    "iss a number": (
        {"iss": 5}, "iss is not a string, RELAY_TOKEN_ISSUER expects 'viewport-server'",
        {"claim": "iss", "got": "not a string", "expected": "viewport-server"},
    ),
    "aud a list": (
        {"aud": ["a", "b"]}, "aud is 'a, b', RELAY_TOKEN_AUDIENCE expects 'viewport-relay'",
        {
            "claim": "aud", "got": "a, b", "expected": "viewport-relay",
            "hint": "if these tokens are meant for this relay, set RELAY_TOKEN_AUDIENCE to one of them",
        },
    ),
    "role": (
        {"role": "worker"}, "role is worker, the query says client",
        {"claim": "role", "got": "worker", "expected": "client"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_details_of_refused_claims(
    name: str, payload: dict[str, Any], query: UpgradeQuery, now: float
) -> None:
    change, words, details = CLAIMS[name]
    with pytest.raises(Refusal) as refused:
        check_payload({**payload, **change}, query, RULES, now)
    assert (refused.value.detail, dict(refused.value.details)) == (words, details)


def test_the_target_is_compared_only_if_the_query_has_one(
    payload: dict[str, Any], query: UpgradeQuery, now: float
) -> None:
    payload["runtimeTargetId"] = "another"
    assert check_payload(payload, evolve(query, runtime_target_id=None), RULES, now)


@pytest.mark.parametrize("role", list(Role))
def test_each_role_matches_itself_only(
    payload: dict[str, Any], query: UpgradeQuery, now: float, role: Role
) -> None:
    payload["role"] = role.value
    for asked in Role:
        if asked is role:
            assert check_payload(payload, evolve(query, role=asked), RULES, now)
        else:
            with pytest.raises(Refusal):
                check_payload(payload, evolve(query, role=asked), RULES, now)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def refusal_of(text: str) -> str:
    with pytest.raises(Refusal) as refused:
        read_header(text)
    return f"{refused.value} {refused.value.details}"


@given(st.text(max_size=60))
@example("a JSON")  # words of the refusal: Hypothesis tries constants of the code
def test_any_text_is_refused_and_not_repeated(text: str) -> None:
    said = refusal_of(text)
    assert said == refusal_of("?") or len(text) < 6 or text not in said


@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), json_values))
def test_any_header_is_read_or_refused(header: dict[str, Any]) -> None:
    try:
        read = read_header(f"{segment(header)}.e30.c2ln")
    except Refusal as refused:
        assert refused.reason in (Reason.JWT_MALFORMED, Reason.JWT_ALGORITHM_NOT_ALLOWED)
    else:
        assert read.algorithm in ("RS256", "ES256", "EdDSA") and isinstance(read.kid, str)


@fuzz
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_changed_character_gets_through(
    keys: dict[str, SigningKey], payload: dict[str, Any], position: int, flip: int
) -> None:
    token = keys["EdDSA"].sign(payload)
    index = position % len(token)
    changed = token[:index] + chr(ord(token[index]) ^ flip) + token[index + 1 :]
    with pytest.raises(Refusal):
        verify(changed, keys["EdDSA"])


@fuzz
@given(
    change=st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "role", "workspaceId"]), json_values
    )
)
def test_any_claim_is_accepted_or_refused(
    payload: dict[str, Any], query: UpgradeQuery, now: float, change: dict[str, Any]
) -> None:
    try:
        check_payload({**payload, **change}, query, RULES, now)
    except Refusal as refused:
        assert refused.reason.code.startswith("JWT_") and len(refused.detail) < 400
