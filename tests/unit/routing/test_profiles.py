"""Profiles named in frames against the grant: section 3 of the wire protocol ("Profile")."""

from __future__ import annotations

import pytest

from viewport_relay.protocol.grant import Claims, Grant, Profile, Role
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close, mismatch

IK, IKPSK2 = Profile.IK, Profile.IKPSK2
CLIENT, DAEMON = Reason.CLIENT_FRAME_PROFILE_MISMATCH, Reason.DAEMON_FRAME_PROFILE_MISMATCH


def grant(role: Role, required: Profile | None) -> Grant:
    return Grant(role, "ws", "t", None, "c", Claims(), required)


@pytest.mark.parametrize(("required", "named", "client", "daemon"), [
    (None, "noise-ik", True, True),
    (None, "noise-ikpsk2", True, True),
    (IK, "noise-ik", True, True),
    (IK, "noise-ikpsk2", False, True),
    (IK, "noise-xx", False, False),
    (IKPSK2, "noise-ik", False, False),
    (IKPSK2, "noise-ikpsk2", True, True),
    (IKPSK2, "", False, False),
])  # fmt: skip
def test_profiles_of_frames(required: Profile | None, named: str, client: bool, daemon: bool) -> None:
    for role, fine, reason in ((Role.CLIENT, client, CLIENT), (Role.DAEMON, daemon, DAEMON)):
        for key_exchange in (True, False):
            found = mismatch(grant(role, required), named, key_exchange=key_exchange)
            if fine:
                assert found is None
                continue
            psk = key_exchange and required is IKPSK2 and named == "noise-ik"
            assert isinstance(found, Close)
            assert (found.reason, found.logged_as) == (reason, Reason.NOISE_INVALID_PSK if psk else None)
            assert (named in found.detail and bool(named)) or "unknown" in found.detail


def test_the_close_text_of_a_key_exchange_without_psk() -> None:
    found = mismatch(grant(Role.CLIENT, IKPSK2), "noise-ik", key_exchange=True)
    assert found is not None and found.logged_as is not None
    assert found.reason.entry.close_text == "client frame profile mismatch"
    assert found.logged_as.entry.text == "Noise handshake failed: invalid psk"
