"""The handshake policy of a grant: tables of the wire protocol's sections 2 ("Profile") and 5 ("Link")."""

from __future__ import annotations

import pytest

from tests.unit.noise.peers import OTHER_SECRET, SECRET, b64, grant, psk_of
from viewport_relay.noise import policy
from viewport_relay.noise.policy import Pattern
from viewport_relay.protocol.grant import Profile
from viewport_relay.reasons import Reason, Refusal

IK, IKPSK2 = Profile.IK, Profile.IKPSK2


def test_the_number_label_and_name_of_each_pattern() -> None:
    assert {p.value: (p.label, p.protocol_name) for p in Pattern} == {
        1: ("IK", b"Noise_IK_25519_ChaChaPoly_SHA256"),
        2: ("IKpsk2", b"Noise_IKpsk2_25519_ChaChaPoly_SHA256"),
    }


def test_psk_is_hkdf_of_the_secret() -> None:
    assert policy.derive_psk(SECRET) == psk_of(SECRET) != policy.derive_psk(OTHER_SECRET)


@pytest.mark.parametrize("required", [None, IK, IKPSK2])
def test_ikpsk2_needs_a_whole_secret(required: Profile | None) -> None:
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
