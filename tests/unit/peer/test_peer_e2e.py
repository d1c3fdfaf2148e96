"""The end-to-end key exchange: both sides agree on keys; each kind of damage is an error."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewport_relay.peer import base64url
from viewport_relay.peer.e2e import Initiator, Responder, SessionKeys
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.symmetric import KeyPair, Profile

DAEMON = KeyPair.from_private(bytes(31) + b"\x07")
CLIENT = KeyPair.from_private(bytes(31) + b"\x09")
SECRET = bytes(range(32))
BOTH = pytest.mark.parametrize("profile", list(Profile))


def _initiator(profile: Profile, **over: Any) -> Initiator:
    options: dict[str, Any] = {"request_id": "r1"}
    if profile is Profile.IKPSK2:
        options |= {"psk": SECRET, "pairing_peer_id": "p1"}
    return Initiator(profile, CLIENT, DAEMON.public, **(options | over))


def _psk(profile: Profile) -> bytes | None:
    return SECRET if profile is Profile.IKPSK2 else None


def _exchange(profile: Profile) -> tuple[Initiator, dict[str, Any], SessionKeys]:
    initiator = _initiator(profile)
    response, keys = Responder(initiator.init_frame(), DAEMON).respond("rs_1", 3, psk=_psk(profile))
    return initiator, response, keys


@BOTH
def test_both_sides_agree(profile: Profile) -> None:
    initiator, response, keys = _exchange(profile)
    assert initiator.finish(response).key == keys.key
    assert (keys.session_id, keys.epoch, keys.client_public) == ("rs_1", 3, CLIENT.public)


@BOTH
def test_two_exchanges_never_share_a_key(profile: Profile) -> None:
    assert _exchange(profile)[2].key != _exchange(profile)[2].key


@BOTH
def test_the_frames_have_the_members_of_the_wire(profile: Profile) -> None:
    init = _initiator(profile, previous_session_id="rs_0").init_frame()
    expected = {
        "type",
        "version",
        "profile",
        "requestId",
        "clientEphemeralPublicKey",
        "encryptedClientStatic",
        "previousSessionId",
    }
    assert set(init) == expected | ({"pairingPeerId"} if profile is Profile.IKPSK2 else set())
    responder = Responder(init, DAEMON)
    assert responder.previous_session_id == "rs_0"
    assert responder.client_public == CLIENT.public
    assert responder.pairing_peer_id == ("p1" if profile is Profile.IKPSK2 else None)


def test_another_pairing_secret_is_refused() -> None:
    initiator = _initiator(Profile.IKPSK2)
    response, _ = Responder(initiator.init_frame(), DAEMON).respond("rs_1", 1, psk=bytes(32))
    with pytest.raises(PeerError) as caught:
        initiator.finish(response)
    assert caught.value.code is Code.DECRYPT_FAILED


def test_a_missing_or_short_pairing_secret_is_refused() -> None:
    for psk in (None, bytes(31)):
        with pytest.raises(PeerError, match="PAIRING_UNKNOWN"):
            _initiator(Profile.IKPSK2, psk=psk)
        with pytest.raises(PeerError, match="PAIRING_UNKNOWN"):
            Responder(_initiator(Profile.IKPSK2).init_frame(), DAEMON).respond("rs_1", 1, psk=psk)
    with pytest.raises(PeerError, match="PAIRING_UNKNOWN"):
        _initiator(Profile.IKPSK2, pairing_peer_id=None)


def test_an_init_for_another_daemon_does_not_decrypt() -> None:
    with pytest.raises(PeerError) as caught:
        Responder(_initiator(Profile.IK).init_frame(), CLIENT)
    assert caught.value.code is Code.DECRYPT_FAILED


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("type", "e2ee", Code.MALFORMED),
        ("version", 2, Code.MALFORMED),
        ("version", True, Code.MALFORMED),
        ("profile", "noise-ikpsk2", Code.PROFILE_MISMATCH),
        ("profile", None, Code.PROFILE_MISMATCH),
        ("profile", ["noise-ik"], Code.PROFILE_MISMATCH),
        ("requestId", "r2", Code.REQUEST_MISMATCH),
        ("daemonPublicKey", base64url.encode(CLIENT.public), Code.DAEMON_KEY_MISMATCH),
        ("daemonEphemeralPublicKey", base64url.encode(CLIENT.public), Code.DECRYPT_FAILED),
        ("daemonEphemeralPublicKey", base64url.encode(b"\x04" + bytes(64)), Code.MALFORMED),
        ("daemonEphemeralPublicKey", base64url.encode(bytes(65)), Code.MALFORMED),
        ("sessionId", "rs_2", Code.SESSION_MISMATCH),
        ("epoch", 4, Code.SESSION_MISMATCH),
        ("proof", base64url.encode(bytes(32)), Code.PROOF_MISMATCH),
        ("proof", base64url.encode(bytes(31)), Code.MALFORMED),
        ("encryptedMetadata", "", Code.MALFORMED),
        ("encryptedMetadata", base64url.encode(bytes(60)), Code.DECRYPT_FAILED),
    ],
)
@BOTH
def test_invalid_responses(profile: Profile, member: str, value: object, code: Code) -> None:
    initiator, response, _ = _exchange(profile)
    if member == "profile" and value == profile.value:
        value = Profile.IK.value
    with pytest.raises(PeerError) as caught:
        initiator.finish(response | {member: value})
    assert caught.value.code is code


@BOTH
@pytest.mark.parametrize("member", ["clientEphemeralPublicKey", "encryptedClientStatic"])
def test_a_truncated_init_is_a_clean_error(profile: Profile, member: str) -> None:
    init = _initiator(profile).init_frame()
    whole = str(init[member])
    for length in range(len(whole)):
        with pytest.raises(PeerError) as caught:
            Responder(init | {member: whole[:length]}, DAEMON)
        assert caught.value.code is Code.MALFORMED


@BOTH
@pytest.mark.parametrize(
    "member", ["daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "proof"]
)
def test_a_truncated_response_is_a_clean_error(profile: Profile, member: str) -> None:
    whole = str(_exchange(profile)[1][member])
    for length in range(0, len(whole), 3):
        initiator, response, _ = _exchange(profile)
        with pytest.raises(PeerError):
            initiator.finish(response | {member: whole[:length]})


_TAMPERED = st.sampled_from(
    [
        "clientEphemeralPublicKey",
        "encryptedClientStatic",
        "daemonEphemeralPublicKey",
        "encryptedMetadata",
        "proof",
    ]
)

_LETTERS = string.ascii_letters + string.digits + "-_"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(Profile)), _TAMPERED, st.data())
def test_any_changed_character_is_an_error(profile: Profile, member: str, data: st.DataObject) -> None:
    initiator = _initiator(profile)
    init = initiator.init_frame()

    def changed(frame: dict[str, Any]) -> dict[str, Any]:
        """Positions are drawn, characters derived: keys differ in each run, and draws must not depend on keys."""
        text = str(frame[member])
        at = data.draw(st.integers(0, len(text) - 1))
        letter = _LETTERS[(_LETTERS.index(text[at]) + data.draw(st.integers(1, 63))) % 64]
        return frame | {member: text[:at] + letter + text[at + 1 :]}

    with pytest.raises(PeerError):
        init = changed(init) if member in init else init
        response, _ = Responder(init, DAEMON).respond("rs_1", 1, psk=_psk(profile))
        initiator.finish(changed(response) if member in response else response)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*_exchange(Profile.IK)[1], *_initiator(Profile.IK).init_frame()]), _ANYTHING
    )
)
def test_any_json_object_gives_a_clean_error(frame: dict[str, Any]) -> None:
    initiator, response, _ = _exchange(Profile.IK)
    with pytest.raises(PeerError):
        initiator.finish({"type": response["type"], "version": 3} | frame)
    with pytest.raises(PeerError):
        Responder({"type": "relay_key_exchange_init", "version": 3} | frame, DAEMON)


@pytest.mark.parametrize("scalar", [bytes(32), b"\xff" * 32, bytes(31), b""])
def test_invalid_private_keys(scalar: bytes) -> None:
    with pytest.raises(PeerError, match="MALFORMED"):
        KeyPair.from_private(scalar)


def test_no_key_shows_in_a_repr() -> None:
    keys = _exchange(Profile.IK)[2]
    assert repr(keys.key) not in repr(keys)
    assert keys.key.hex() not in repr(keys)
