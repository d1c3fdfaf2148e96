"""Signatures of presence entries."""

from __future__ import annotations

import json

import pytest

from viewport_relay.backplane.presencesigning import PresenceSigner

TARGET, NOW = ("w", "t"), 1_800_000_000.0
KEY = "a-bus-key-of-some-length"


def signer(key: str | None = KEY) -> PresenceSigner:
    return PresenceSigner(key, 45.0, 15.0, lambda: NOW)


def entry(age: float = 0.0, **more: object) -> bytes:
    return json.dumps({"relayId": "a", "updatedAtMs": int((NOW - age) * 1000), **more}).encode()


def is_signed(
    raw: bytes, signature: bytes | None, target: tuple[str, str] = TARGET, key: str | None = KEY
) -> bool:
    return signer(key).is_signed(target, raw, json.loads(raw), signature)


def test_a_signature_covers_the_entry_and_its_target() -> None:
    raw = entry()
    signature = signer().sign(TARGET, raw).encode()
    assert is_signed(raw, signature)
    assert not is_signed(raw, None)
    assert not is_signed(raw, signature[:-1] + b"!")
    assert not is_signed(raw, "ä".encode())
    assert not is_signed(entry(relayId="evil"), signature)
    assert not is_signed(raw, signature, ("w", "t2"))
    assert not is_signed(raw, signature, key="another-key")


@pytest.mark.parametrize(("age", "good"), [(0, True), (59, True), (61, False), (-59, True), (-61, False)])
def test_a_replayed_old_entry_counts_as_unsigned(age: float, good: bool) -> None:
    raw = entry(age)
    assert is_signed(raw, signer().sign(TARGET, raw).encode()) is good


def test_without_a_time_or_a_key_nothing_is_signed() -> None:
    raw = entry(updatedAtMs="soon")
    assert not is_signed(raw, signer().sign(TARGET, raw).encode())
    assert signer(None).sign(TARGET, entry()) == ""
    assert not is_signed(entry(), b"", key=None)
