"""Token inspection: the findings that an operator reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.admission.inspection import inspect_token
from viewport_relay.admission.jwt import TokenRules
from viewport_relay.admission.keys import Key, KeySet, read_key
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.reasons import Reason

RULES = TokenRules("viewport-server", "viewport-relay", 30)


@pytest.fixture
def key_set(keys: dict[str, SigningKey]) -> KeySet:
    read = [read_key(key.jwk()) for key in keys.values()]
    return KeySet([key for key in read if isinstance(key, Key)])


@pytest.mark.parametrize("role", ["client", "workspace-daemon", "worker"])
def test_a_valid_token(
    keys: dict[str, SigningKey], key_set: KeySet, payload: dict[str, Any], now: float, role: str
) -> None:
    payload["role"] = role
    report = inspect_token(keys["ES256"].sign(payload), key_set, RULES, now)
    assert report.refusal is None and report.claims == payload
    assert report.header is not None and report.header["kid"] == "ES256"
    assert report.signed_by is not None and report.signed_by.kid == "ES256"


def test_the_right_key_under_another_kid(
    keys: dict[str, SigningKey], key_set: KeySet, payload: dict[str, Any], now: float
) -> None:
    report = inspect_token(keys["RS256"].sign(payload, {"kid": "gone"}), key_set, RULES, now)
    assert report.signed_by is not None and report.signed_by.kid == "RS256"
    assert report.refusal is not None and report.refusal.reason is Reason.JWT_SIGNATURE_MISMATCH


def test_an_expired_token_of_another_key(
    key_set: KeySet, other_key: SigningKey, payload: dict[str, Any], now: float
) -> None:
    report = inspect_token(other_key.sign(payload), key_set, RULES, now)
    assert report.signed_by is None and report.claims == payload
    assert report.refusal is not None and report.refusal.reason is Reason.JWT_SIGNATURE_MISMATCH


def test_an_expired_token(
    keys: dict[str, SigningKey], key_set: KeySet, payload: dict[str, Any], now: float
) -> None:
    report = inspect_token(keys["RS256"].sign(payload), key_set, RULES, now + 1000)
    assert report.refusal is not None and report.refusal.reason is Reason.JWT_EXPIRED


@given(st.text(max_size=80) | st.text("abcé.=-_", max_size=80))
def test_any_text(text: str) -> None:
    report = inspect_token(text, KeySet(()), RULES, 0.0)
    assert report.refusal is not None and report.signed_by is None
