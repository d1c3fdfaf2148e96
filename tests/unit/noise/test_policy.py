"""What a grant demands: tables of the contract's sections 2 ("Profile") and 5 ("Link")."""

from __future__ import annotations

import pytest

from tests.unit.noise.peers import OTHER_SECRET, SECRET, b64, grant, psk_of
from viewport_relay.noise import policy
from viewport_relay.noise.policy import Pattern, ProfileMismatch
from viewport_relay.protocol.grant import Profile, Role
from viewport_relay.reasons import Reason, Refusal

IK, IKPSK2 = Profile.IK, Profile.IKPSK2


def test_required_pattern() -> None:
    assert [policy.required_pattern(p) for p in (None, IK, IKPSK2)] == [None, None, Pattern.IKPSK2]


def test_patterns() -> None:
    assert {p.value: (p.label, p.protocol_name) for p in Pattern} == {
        1: ("IK", b"Noise_IK_25519_ChaChaPoly_SHA256"),
        2: ("IKpsk2", b"Noise_IKpsk2_25519_ChaChaPoly_SHA256"),
    }


def test_psk_is_hkdf_of_the_secret() -> None:
    assert policy.derive_psk(SECRET) == psk_of(SECRET) != policy.derive_psk(OTHER_SECRET)


@pytest.mark.parametrize("required", [None, IK, IKPSK2])
def test_link_psk(required: Profile | None) -> None:
    assert policy.link_psk(Pattern.IKPSK2, grant(required=required)) == psk_of(SECRET)
    for secret in (None, b64(SECRET)[:-1], b64(SECRET) + "A", "", " " * 43):
        with pytest.raises(Refusal) as refused:
            policy.link_psk(Pattern.IKPSK2, grant(required=required, secret=secret))
        assert refused.value.reason is Reason.NOISE_PSK_UNAVAILABLE
    if required is IKPSK2:
        with pytest.raises(Refusal) as refused:
            policy.link_psk(Pattern.IK, grant(required=required, secret=None))
        assert (refused.value.reason, refused.value.detail) == (
            Reason.NOISE_INVALID_PSK,
            policy.PLAIN_IK_DETAIL,
        )
    else:
        assert policy.link_psk(Pattern.IK, grant(required=required)) is None


def test_a_static_key_in_the_other_alphabet_is_still_checked() -> None:
    key = b"\xfb\xff\xfe" * 10 + b"\xfb\xff"
    claim = b64(key).replace("-", "+").replace("_", "/") + "="
    assert "+" in claim and "/" in claim
    policy.check_static_key(grant(daemon_public_key=claim), key)
    with pytest.raises(Refusal) as refused:
        policy.check_static_key(grant(daemon_public_key=claim), SECRET)
    assert refused.value.reason is Reason.NOISE_STATIC_KEY_MISMATCH


CLIENT, DAEMON = Reason.CLIENT_FRAME_PROFILE_MISMATCH, Reason.DAEMON_FRAME_PROFILE_MISMATCH
PSK = Reason.NOISE_INVALID_PSK


@pytest.mark.parametrize(("required", "named", "client", "daemon"), [
    (None, "noise-ik", True, True),
    (None, "noise-ikpsk2", True, True),
    (None, None, True, True),
    (IK, None, True, True),
    (IK, "noise-ik", True, True),
    (IK, "noise-ikpsk2", False, True),
    (IK, "noise-xx", False, False),
    (IKPSK2, None, True, True),
    (IKPSK2, "noise-ik", False, False),
    (IKPSK2, "noise-ikpsk2", True, True),
    (IKPSK2, "", False, False),
])  # fmt: skip
def test_profiles_of_frames(required: Profile | None, named: str | None, client: bool, daemon: bool) -> None:
    assert policy.client_profile_ok(required, named) is client
    assert policy.daemon_profile_ok(required, named) is daemon
    for role, fine, close in ((Role.CLIENT, client, CLIENT), (Role.DAEMON, daemon, DAEMON)):
        for key_exchange in (True, False):
            found = policy.profile_mismatch(role, required, named, key_exchange=key_exchange)
            if fine:
                assert found is None
                continue
            psk = key_exchange and required is IKPSK2 and named == "noise-ik"
            assert isinstance(found, ProfileMismatch)
            assert (found.close, found.log) == (close, PSK if psk else close)
            assert not named or len(named) < 4 or named in found.detail or "unknown" in found.detail


def test_the_close_text_of_a_key_exchange_without_psk_stays() -> None:
    found = policy.profile_mismatch(Role.CLIENT, IKPSK2, "noise-ik", key_exchange=True)
    assert found is not None
    assert found.close.value.close_text == "client frame profile mismatch"
    assert found.log.value.text == "Noise handshake failed: invalid psk"
