"""Redactor: text that is masked, and text that stays readable."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import time
from enum import Enum
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay import config as settings
from viewport_relay.config import VARIABLES, configured_secrets
from viewport_relay.observe.redaction import (
    _TOKENS_ONLY,
    MARK,
    MAX_STRING,
    Redactor,
    is_secret_key,
    looks_like_key,
)
from viewport_relay.reasons import Reason

JWT = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6InYxIn0.eyJpc3MiOiJ2aWV3cG9ydC1zZXJ2ZXIiLCJleHAiOjE3MDAwMDAwMDB9"
    ".c2lnbmF0dXJlLW9mLXNvbWUtbGVuZ3RoLXRoYXQtaXMtbm90LXJlYWw"
)
KEY = base64.b64encode(bytes(range(7, 39))).decode()
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\nAASCBKcwggSjAgEAAoIBAQ\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text,secret",
    [
        (f"bad token {JWT} from peer", JWT),
        (f"({JWT})", JWT.split(".")[1]),
        (JWT[:60], JWT[:60]),  # a truncated token
        (json.dumps({"a": JWT}), JWT.split(".")[2]),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
        ("sent bearer    opaque-token-value here", "opaque-token-value"),
        ("Sec-WebSocket-Protocol: viewport.relay, auth.opaque-token-1234", "opaque-token-1234"),
        ("auth.opaque-token-1234", "opaque-token-1234"),
        ("GET /ws?role=client&token=s3cretvalue&workspaceId=w HTTP/1.1", "s3cretvalue"),
        ("token=x9", "x9"),
        ("access_token=abcdef&x=1", "abcdef"),
        ('{"pairingSecret": "short"}', "short"),
        ('{\\"password\\":\\"short\\"}', "short"),
        (PEM, "MIIEvQIBADANBgkqhkiG9w0BAQEF"),
        ("cut -----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIO", "MHcCAQEEIO"),
        ("redis://:hunter2secret@redis:6379/0", "hunter2secret"),
        ("cannot reach rediss://user:p@ss@redis:6379", "p@ss"),
        ("https://user:pw12@platform.example/x", "pw12"),
        (f"the key is {KEY}!", KEY),
        ("psk " + base64.urlsafe_b64encode(bytes(range(200, 240))).decode().rstrip("="), "yMnKy8zNzs"),
        ("digest 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "9f86d081884c7d65"),
        ("Cookie: relay_admin=123.abc.def", "123.abc.def"),
        ("x-relay-internal-key: plainword", "plainword"),
    ],
)
def test_secrets_are_recognised_by_shape(text, secret):
    shown = Redactor().text(text)
    assert secret not in shown and MARK in shown


@pytest.mark.parametrize(
    "text",
    [
        "JWT validation failed: token expired",
        "RELAY_INTERNAL_KEY mismatch",
        "Noise handshake failed: invalid psk",
        "workspace-550e8400-e29b-41d4-a716-446655440000 has no daemon",
        "/usr/lib/python3/dist-packages/twisted/internet/defer.py",
        'File "/opt/relay/lib/python3/site-packages/viewport_relay/admission/gate", line 7, in admit',
        "RuntimeTargetClaimMismatchExceptionWithAVeryLongName",
        "https://auth.example.com/api/.well-known/jwks.json",
        'curl -I "$RELAY_JWKS_URL" and viewport-relay doctor',
        "HTTPConnectionPool(host='platform.internal', port=443): read timed out",
        "sub-protocols viewport.noise-link.v1, viewport.relay",
        "2001:db8::1 and 192.0.2.1:443",
        "eyebrows.example.com",
        "a bearer of news",
    ],
)
def test_ordinary_text_is_unchanged(text):
    assert Redactor().text(text) == text


@pytest.mark.parametrize(
    "secret", ["plain-secret-1234", 'quo"te\\back', "späce & more/slash+plus", "tab\tand\nnewline"]
)
def test_configured_secrets_are_found_in_every_encoding(secret):
    redactor = Redactor([secret])
    for form in (
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        repr(secret),
        quote(secret, safe=""),
    ):
        shown = redactor.text(f"before {form} after")
        assert shown.startswith("before ") and shown.endswith(" after")
        assert secret not in shown and form.strip("'\"") not in shown
    assert redactor.identifier(secret) == MARK


def test_a_very_short_secret_does_not_mask_words():
    assert Redactor(["abc"]).text("abcdef") == "abcdef"


@pytest.mark.parametrize(
    "key,secret",
    [
        ("token", True), ("relayToken", True), ("Authorization", True), ("x-relay-internal-key", True), ("password", True),
        ("pairingSecret", True), ("psk", True), ("ciphertext", True), ("encCiphertext", True), ("daemonPublicKey", True),
        ("key", True), ("iv", True), ("payload", True), ("cookie", True), ("signature", True), ("proof", True),
        ("tokenSource", False), ("tokenLength", False), ("workspaceId", False), ("kid", False), ("ip", False),
        ("keys", True), ("role", False), ("reason", False), ("keyCount", False), ("version", False), ("monk", False),
    ],
)  # fmt: skip
def test_keys_that_hold_secrets(key, secret):
    assert is_secret_key(key) is secret


def test_names_of_settings_hold_secrets_exactly_where_the_settings_are_secret():
    urls = {"RELAY_REDIS_URL", "RELAY_HTTP_PROXY"}  # of these only user and password are secret
    assert {v.name for v in VARIABLES if is_secret_key(v.name)} == {
        v.name for v in VARIABLES if v.secret
    } - urls


def test_details_of_every_kind_become_bounded_json():
    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    class Rude(Exception):
        def __str__(self):
            raise RuntimeError("no")

    class Colour(Enum):
        RED = 1
        BLUE = "blue"

    redactor = Redactor(["the-secret-itself"])
    loop: list[object] = []
    loop.append(loop)
    cases = [
        (b"the-secret-itself", "17 bytes"), (bytearray(3), "3 bytes"), (memoryview(b"ab"), "2 bytes"), (Odd(), "Odd"),
        (float("nan"), "nan"), (float("inf"), "inf"), (10**30, "a number beyond 64 bits"), (10**5000, "a number beyond 64 bits"),
        (True, True), (None, None), (7, 7), (1.5, 1.5), (Colour.RED, "RED"), (Colour.BLUE, "blue"),
        (Path("/x/y"), "/x/y"), (ipaddress.ip_address("::1"), "::1"), (ValueError("the-secret-itself"), f"ValueError: {MARK}"),
        (ValueError(), "ValueError"), (Rude(), "Rude: (no text)"), ((1, "x"), [1, "x"]), (lambda: 1, "function"),
        ({"token": "a", "n": {"password": ["b", {"x": "c"}], "ok": 1}}, {"token": MARK, "n": {"password": [MARK, {"x": MARK}], "ok": 1}}),
        ({1: 2, "a": "the-secret-itself"}, {"int": 2, "a": MARK}),
    ]  # fmt: skip
    for value, shown in cases:
        assert redactor.detail("thing", value) == shown, value
    assert "items" in json.dumps(redactor.detail("thing", loop))
    assert len(redactor.detail("thing", list(range(10_000)))) == 49
    assert len(redactor.detail("thing", {str(n): n for n in range(10_000)})) == 49
    assert isinstance(redactor.detail("reason", Reason.JWT_EXPIRED), str)


def test_ids_stay_readable_unless_they_are_tokens():
    redactor = Redactor()
    long_id = "A1b2C3d4E5f6" * 10
    assert redactor.detail("workspaceId", long_id) == long_id
    assert redactor.detail("somethingElse", long_id) == MARK
    assert JWT not in str(redactor.detail("workspaceId", JWT))
    assert len(str(redactor.detail("clientId", "x" * 9000))) < 300


def test_long_text_is_cut_and_never_in_the_middle_of_a_secret():
    shown = Redactor().text("x y " * 3000)
    assert len(shown) < 2200 and shown.endswith("more characters]")
    assert "AAAA" not in Redactor().text("AbC9" * 40_000)


@pytest.mark.parametrize(
    "text",
    ["a" * 60_000, "bearer " * 9000, "-----BEGIN A" * 5000, "token=" * 10_000, "eyJ" * 20_000, "a://" * 15_000,
     "a:b@" * 15_000, "://" + "x@" * 30_000, '"' * 60_000, "key\\\"" * 9000, " " * 60_000, "cookie: " * 8000,
     "a1B2" * 15_000, "auth." * 12_000],
)  # fmt: skip
def test_hostile_text_takes_linear_time(text):
    began = time.perf_counter()
    Redactor(["some-secret-value"]).text(text)
    assert time.perf_counter() - began < 1.0


def test_random_keys_in_base64_and_hex_look_like_keys():
    keys = [hashlib.sha256(b"%d" % n).digest() for n in range(2000)]
    assert all(looks_like_key(key.hex()) for key in keys)
    assert sum(not looks_like_key(base64.urlsafe_b64encode(key).decode()) for key in keys) <= 1


@given(st.text(max_size=300))
def test_a_configured_secret_is_masked_in_any_text(text):
    shown = Redactor(["configured-secret"]).text(text + " configured-secret")
    assert "configured-secret" not in shown


def test_configured_secrets_are_those_of_the_table_and_the_redis_password(tmp_path):
    file = tmp_path / "key"
    file.write_text("bus-key-0123456789abcdef\n")
    config = settings.load(
        {
            "SERVER_URL": "http://127.0.0.1:1", "RELAY_ADMIN_TOKEN": "admin-0123456789abcdef",
            "RELAY_INTERNAL_KEY": "internal-0123456789abcdef", "RELAY_BUS_HMAC_KEY_FILE": str(file),
            "RELAY_REDIS_URL": "redis://me:p%40ss-word-1@127.0.0.1:6379/2",
        }
    )  # fmt: skip
    found = configured_secrets(config)
    assert set(found) == {
        "admin-0123456789abcdef", "internal-0123456789abcdef", "bus-key-0123456789abcdef", "p%40ss-word-1", "p@ss-word-1",
    }  # fmt: skip
    shown = Redactor(found).text(f"got p@ss-word-1, {os.getpid()} bus-key-0123456789abcdef.")
    assert "p@ss" not in shown and "bus-key" not in shown


@given(
    st.lists(
        st.sampled_from(["ey", "eyJ", "ewo", "ew0", "-----", "BEGIN ", "hush", "a" * 12, JWT])
        | st.text(max_size=6),
        max_size=6,
    ).map("".join)
)
def test_identifiers_give_the_result_of_the_full_search(text):
    """The prefix check gives the same result as the full search."""
    searched = text.replace("hush", MARK)
    if len(searched) > 12:
        searched = _TOKENS_ONLY.sub(MARK, searched)
    assert Redactor(["hush"]).identifier(text) == (searched if len(searched) <= 256 else searched[:256] + "…")


def test_the_cache_of_redacted_messages_is_bounded():
    redactor = Redactor(["open sesame"])
    assert redactor.message("say open sesame") == redactor.message("say open sesame") == f"say {MARK}"
    for number in range(1000):
        text = f"message {number} with {JWT if number % 2 else 'nothing'}" + "." * (number % 300)
        assert redactor.message(text) == redactor.text(text)
    kept = redactor._remembered.cache_info()
    assert kept.currsize == 256
    redactor.message("." * 257)
    assert redactor._remembered.cache_info() == kept, "a long message is not looked for"


@pytest.mark.parametrize("filler", ["x", "http://a.example/b?c=d ", "word\n"])
def test_only_the_shown_part_of_a_long_text_is_searched(filler):
    secret = "a-secret-of-this-relay"
    text = f"{secret} {filler * 200_000} {secret}"
    shown = Redactor([secret]).text(text)
    assert shown.startswith(MARK) and secret not in shown and len(shown) < MAX_STRING + 60
    left_out = int(shown.rpartition("[")[2].split()[0])
    assert abs(left_out + MAX_STRING - len(text)) < 100


@pytest.mark.parametrize("at", range(MAX_STRING - 40, 4 * MAX_STRING + 40, 97))
def test_a_secret_is_never_cut_in_two(at):
    secret = "0123456789-a-secret-of-this-relay"
    shown = Redactor([secret]).text("y" * at + secret + " " + "z" * 100_000)
    assert not any(secret[:n] in shown for n in range(11, len(secret) + 1))


@pytest.mark.parametrize("reason", Reason)
def test_what_the_relay_says_of_a_reason_is_not_redacted(reason):
    for text in (reason.text, reason.entry.cause, reason.entry.fix):
        assert Redactor().text(text) == text
