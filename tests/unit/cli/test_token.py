"""`viewport-relay token inspect`: where the token is read from, and what is printed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.admission.jwt import TokenRules
from viewport_relay.admission.keys import KeySet, read_key
from viewport_relay.cli.inspection import Asked, inspect_token
from viewport_relay.cli.token import page, read_token, settings_for
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.protocol.grant import Role

RULES = TokenRules("viewport-server", "viewport-relay", 30)
NOW = 1_800_000_000.0
CLAIMS: dict[str, object] = {
    "iss": "viewport-server",
    "aud": "viewport-relay",
    "iat": NOW - 10,
    "exp": NOW + 290,
    "role": "client",
    "workspaceId": "ws-1",
    "runtimeTargetId": "rt-1",
    "pairingSecret": "hunter2-hunter2-hunter2",
}


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate("ES256")


@pytest.fixture(scope="module")
def keys(key: SigningKey) -> KeySet:
    read = read_key(key.jwk())
    assert not isinstance(read, str)
    return KeySet((read,))


def test_a_good_token(key: SigningKey, keys: KeySet) -> None:
    token = key.sign(CLAIMS)
    report = inspect_token(token, keys, Asked(), RULES, NOW)
    assert report.reason is None
    assert report.verified
    assert report.signed_by == f"{key.kid} (ES256)"
    assert report.valid_until == "2027-01-15 08:04:50 UTC, in 5 minutes"
    text = page(report)
    assert "✓ the local check passes" in text
    assert '"ws-1"' in text
    assert "hunter2" not in text
    for part in token.split("."):
        assert part not in text


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exp": NOW - 31}, "JWT_EXPIRED"),
        ({"iat": NOW + 31}, "JWT_NOT_YET_VALID"),
        ({"nbf": NOW + 31}, "JWT_NOT_YET_VALID"),
        ({"iss": "somebody"}, "JWT_ISSUER_MISMATCH"),
        ({"aud": ["a", "b"]}, "JWT_AUDIENCE_MISMATCH"),
        ({"exp": True}, "JWT_CLAIM_MISMATCH"),
    ],
)
def test_the_relays_decision_is_printed(
    key: SigningKey, keys: KeySet, change: dict[str, object], code: str
) -> None:
    report = inspect_token(key.sign({**CLAIMS, **change}), keys, Asked(), RULES, NOW)
    assert report.reason == code
    assert f"✗ {code}: " in page(report)
    assert "Fix: " in page(report)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (Asked(role=Role.CLIENT, workspace_id="ws-1", target_id="rt-1"), None),
        (Asked(workspace_id="ws-2"), "JWT_CLAIM_MISMATCH"),
        (Asked(target_id="rt-2"), "JWT_CLAIM_MISMATCH"),
        (Asked(role=Role.DAEMON), "JWT_CLAIM_MISMATCH"),
    ],
)
def test_a_query_that_the_token_does_not_fit(
    key: SigningKey, keys: KeySet, asked: Asked, code: str | None
) -> None:
    assert inspect_token(key.sign(CLAIMS), keys, asked, RULES, NOW).reason == code


@pytest.mark.parametrize("role", list(Role))
def test_a_token_of_each_role(key: SigningKey, keys: KeySet, role: Role) -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != "pairingSecret"} | {"role": role.value}
    report = inspect_token(key.sign(claims), keys, Asked(), RULES, NOW)
    assert report.reason is None and report.claims == claims
    assert report.header["kid"] == key.kid and report.signed_by.startswith(key.kid)


def test_the_right_key_under_another_kid(key: SigningKey, keys: KeySet) -> None:
    report = inspect_token(key.sign(CLAIMS, {"kid": "gone"}), keys, Asked(), RULES, NOW)
    assert report.verified and report.signed_by == f"{key.kid} (ES256)"
    assert report.reason == "JWT_SIGNATURE_MISMATCH"


@given(st.text(max_size=80) | st.text("abcé.=-_", max_size=80))
def test_any_text(text: str) -> None:
    report = inspect_token(text, KeySet(()), Asked(), RULES, 0.0)
    assert report.reason is not None and not report.verified


def test_an_unknown_key(keys: KeySet) -> None:
    report = inspect_token(SigningKey.generate("ES256").sign(CLAIMS), keys, Asked(), RULES, NOW)
    assert report.reason == "JWT_SIGNATURE_MISMATCH"
    assert not report.verified and report.claims["workspaceId"] == "ws-1"
    assert report.signed_by == "no key of the JWKS"
    assert "(not verified)" in page(report)
    assert "the JWKS has: " in page(report)


def test_no_key_set(key: SigningKey) -> None:
    report = inspect_token(key.sign(CLAIMS), "connection refused", Asked(), RULES, NOW)
    assert (report.reason, report.signed_by) == ("JWKS_UNREACHABLE", "not known")
    assert "connection refused" in report.said


@pytest.mark.parametrize(
    "token", ["", "x", "a.b", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "ü.ü.ü", "." * 5000, "\x1b[2J" * 9]
)
def test_text_that_is_no_token_is_refused_with_its_error(token: str, keys: KeySet) -> None:
    report = inspect_token(token, keys, Asked(), RULES, NOW)
    assert report.reason in {"JWT_MALFORMED", "TOKEN_MISSING", "JWT_ALGORITHM_NOT_ALLOWED"}
    assert "\x1b" not in page(report)


def test_control_characters_of_a_token_do_not_reach_the_terminal(key: SigningKey, keys: KeySet) -> None:
    hostile = key.sign({**CLAIMS, "\x1b]0;x\x07": "\x1b[2J\n✓ all is well"}, {"\x1bhead": "\x9b1m"})
    text = page(inspect_token(hostile, keys, Asked(), RULES, NOW))
    assert not {character for character in text if ord(character) < 32 or 127 <= ord(character) < 160} - {
        "\n"
    }
    assert "\n✓ all is well" not in text


# -- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a.b.c", "  a.b.c\n", "Bearer a.b.c", "bearer\ta.b.c\r\n"])
def test_read_from_a_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    assert read_token(str(file)) == "a.b.c"


def test_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.b.c\n")))
    assert read_token("-") == "a.b.c"


@pytest.mark.parametrize("text", ["", "a.b.c d.e.f", "Bearer"])
def test_input_without_exactly_one_token(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(click.UsageError, match="expected one token"):
        read_token(str(file))


@pytest.mark.parametrize("token", ["eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2ln", "x" * 300])
def test_a_token_as_argument_is_refused_and_not_printed(token: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        read_token(token)
    assert token not in str(caught.value)
    assert "never the token itself" in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(click.UsageError, match="cannot read 'nowhere': No such file"):
        read_token("nowhere")


def test_another_key_set_needs_no_other_setting() -> None:
    config = settings_for({}, "https://keys.example/jwks.json")
    assert config.jwks_url == "https://keys.example/jwks.json"
