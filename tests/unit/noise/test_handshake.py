"""The link's handshake: the wire protocol's table, row by row, with valid and invalid initiators."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
from attrs import evolve

from tests.unit.noise.peers import (
    CONFIRM,
    CURRENT,
    FRAME_MAX,
    KEYS,
    LOW_ORDER,
    OTHER_SECRET,
    PEER_STATIC,
    PREVIOUS,
    QUERY,
    SECRET,
    Initiator,
    PlainInitiator,
    Recorder,
    b64,
    connection,
    establish,
    grant,
    is_up,
    seal,
)
from viewport_relay.noise.keys import RelayKeys, StaticKey
from viewport_relay.noise.link import LinkResponder
from viewport_relay.noise.machine import NoiseLink
from viewport_relay.noise.policy import PLAIN_IK_DETAIL, Pattern
from viewport_relay.protocol.grant import Profile, Role, UpgradeQuery
from viewport_relay.reasons import CloseCode, Reason, Refusal

BOTH = pytest.mark.parametrize("pattern", Pattern)
INVALID_PSK, MALFORMED = Reason.NOISE_INVALID_PSK, Reason.NOISE_HANDSHAKE_MALFORMED
MISMATCH = Reason.NOISE_STATIC_KEY_MISMATCH
BAD_CONFIRM = {Pattern.IK: MALFORMED, Pattern.IKPSK2: INVALID_PSK}


# -- valid handshakes ----------------------------------------------------------------------------------------------


@BOTH
def test_a_valid_peer_is_admitted_after_its_confirm_only(pattern: Pattern) -> None:
    peer, noise = connection()
    initiator = Initiator(pattern)
    assert noise.receive(initiator.message_1()) is None
    assert len(peer.sent) == 1 and not is_up(noise) and peer.admitted == []
    assert initiator.read_message_2(peer.sent[0]) == {"relayId": "relay-1", "frameMaxBytes": FRAME_MAX}
    assert noise.receive(initiator.seal(CONFIRM)) is None
    assert is_up(noise) and peer.admitted == [pattern] and peer.reason is None
    assert noise.key_used == "current"
    assert noise.receive(initiator.seal(b'{"a":1}')) == b'{"a":1}'
    assert initiator.open(seal(noise, b'{"b":2}') or b"") == b'{"b":2}'


@BOTH
def test_the_payload_of_message_2_has_exactly_two_members(pattern: Pattern) -> None:
    peer, noise = connection(frame_max=65_536)
    initiator = PlainInitiator(pattern)
    noise.receive(initiator.message_1())
    payload = initiator.read_message_2(peer.sent[0])
    assert json.loads(payload) == {"relayId": "relay-1", "frameMaxBytes": 65_536}


@BOTH
def test_a_peer_written_from_the_specification_agrees(pattern: Pattern) -> None:
    peer, noise = connection()
    initiator = PlainInitiator(pattern)
    noise.receive(initiator.message_1())
    initiator.read_message_2(peer.sent[0])
    noise.receive(initiator.seal(0, CONFIRM))
    assert peer.admitted == [pattern]
    for count in (1, 2, 3):
        assert noise.receive(initiator.seal(count, b"frame %d" % count)) == b"frame %d" % count
    for count in (0, 1):
        sealed = seal(noise, b"answer") or b""
        assert initiator.receiving.decrypt(initiator.nonce(count), sealed[2:], None) == b"answer"


@pytest.mark.parametrize("query", [
    UpgradeQuery(Role.CLIENT, "ws-1", None),
    UpgradeQuery(Role.WORKER, "A.b_c:d-e", None),
    UpgradeQuery(Role.DAEMON, "w", "t" * 128),
])  # fmt: skip
def test_the_prologue_is_the_query(query: UpgradeQuery) -> None:
    peer, noise = connection(grant(query.role), query=query)
    establish(noise, peer, query=query)


@BOTH
def test_both_patterns_are_accepted_unless_ikpsk2_is_required(
    pattern: Pattern,
) -> None:
    peer, noise = connection(grant(required=Profile.IK))
    establish(noise, peer, pattern)


def test_ikpsk2_where_it_is_required() -> None:
    peer, noise = connection(grant(required=Profile.IKPSK2))
    establish(noise, peer, Pattern.IKPSK2)


@BOTH
@pytest.mark.parametrize(("used", "word"), [(CURRENT, "current"), (PREVIOUS, "previous")])
def test_both_relay_keys_are_accepted_and_reported(used: StaticKey, word: str, pattern: Pattern) -> None:
    peer, noise = connection()
    assert noise.key_used is None
    establish(noise, peer, pattern, relay=used)
    assert noise.key_used == word


def test_the_previous_key_is_refused_once_it_is_dropped() -> None:
    peer, noise = connection(keys=RelayKeys(CURRENT))
    noise.receive(Initiator(relay=PREVIOUS).message_1())
    assert peer.reason is MALFORMED and noise.key_used is None and peer.sent == []


@pytest.mark.parametrize("confirm", [
    CONFIRM,
    b' {"type" : "link_confirm", "since": 1, "more": {"a": [null, true]}} ',
    b'{"type":"x","type":"link_confirm"}',
    b'{"ty\\u0070e":"link_confirm","lone":"\\ud800"}',
    b'{"type":"link_confirm","long":' + b"9" * 6000 + b"}",
])  # fmt: skip
@BOTH
def test_a_confirm_may_have_more_members(pattern: Pattern, confirm: bytes) -> None:
    peer, noise = connection()
    initiator = Initiator(pattern)
    noise.receive(initiator.message_1())
    initiator.read_message_2(peer.sent[0])
    noise.receive(initiator.seal(confirm))
    assert peer.admitted == [pattern]


def test_an_answer_from_within_send() -> None:
    """Inputs keep their order when the peer's answer arrives before `send` has returned."""
    initiator = Initiator(Pattern.IKPSK2)
    _, noise = connection()

    class Eager(Recorder):
        def send(self, data: bytes) -> None:
            initiator.read_message_2(data)
            noise.receive(initiator.seal(CONFIRM))

    eager = Eager()
    noise.core.peer = eager
    noise.receive(initiator.message_1())
    assert eager.admitted == [Pattern.IKPSK2] and is_up(noise)


# -- NOISE_INVALID_PSK -------------------------------------------------------------------------------------------


def failed(peer: Recorder, noise: NoiseLink) -> tuple[Reason, str]:
    """Reason and detail of a failed link; asserts that the link ignores all further input."""
    reason, detail, _ = peer.failed[0]
    noted, sent = len(peer.noted), len(peer.sent)
    assert noise.receive(Initiator().message_1()) is None
    noise.inputs.text_message()
    noise.inputs.timeout()
    noise.inputs.peer_gone()
    noise.inputs.relay_closes()
    assert len(peer.failed) == 1 and not is_up(noise) and peer.admitted == []
    assert (len(peer.noted), len(peer.sent)) == (noted, sent)
    return reason, detail


@pytest.mark.parametrize("secret", [b64(SECRET), None])
def test_plain_ik_where_ikpsk2_is_required(secret: str | None) -> None:
    peer, noise = connection(grant(required=Profile.IKPSK2, secret=secret))
    noise.receive(Initiator(Pattern.IK).message_1())
    assert failed(peer, noise) == (INVALID_PSK, PLAIN_IK_DETAIL)
    assert peer.sent == []
    assert PLAIN_IK_DETAIL == (
        "policy_mode crypto_pairing (or e2eeProfile noise-ikpsk2) requires IKpsk2 and the peer used plain IK"
    )


def test_another_pairing_secret_fails_at_message_2_and_at_the_confirm() -> None:
    peer, noise = connection(grant(required=Profile.IKPSK2))
    initiator = Initiator(Pattern.IKPSK2, secret=OTHER_SECRET)
    noise.receive(initiator.message_1())
    with pytest.raises(Exception):  # noqa: B017 - InvalidTag, as the library passes it on
        initiator.read_message_2(peer.sent[0])
    noise.receive(Initiator(Pattern.IKPSK2).message_1())  # any bytes in place of the confirm
    reason, detail = failed(peer, noise)
    assert reason is INVALID_PSK and "another pairing secret" in detail


def test_an_ikpsk2_peer_that_leaves_after_message_2_is_only_logged() -> None:
    peer, noise = connection()
    noise.receive(Initiator(Pattern.IKPSK2, secret=OTHER_SECRET).message_1())
    noise.inputs.peer_gone()
    assert [reason for reason, _, _ in peer.noted] == [INVALID_PSK] and peer.failed == []
    assert not is_up(noise)


@pytest.mark.parametrize("leave", ["peer_gone", "relay_closes"])
def test_a_disconnect_under_ik_and_a_close_by_the_relay_are_not_logged(leave: str) -> None:
    for pattern in Pattern:
        for steps in (0, 1, 2):
            if pattern is Pattern.IKPSK2 and steps == 1 and leave == "peer_gone":
                continue
            peer, noise = connection()
            initiator = Initiator(pattern)
            if steps > 0:
                noise.receive(initiator.message_1())
            if steps > 1:
                initiator.read_message_2(peer.sent[0])
                noise.receive(initiator.seal(CONFIRM))
            getattr(noise.inputs, leave)()
            noise.inputs.peer_gone()
            assert peer.failed == peer.noted == [] and not is_up(noise)


@pytest.mark.parametrize("confirm", [
    b"",
    b"{}",
    b'"link_confirm"',
    b'["link_confirm"]',
    b'{"type":"Link_confirm"}',
    b'{"type":["link_confirm"]}',
    b'{"type":"link_confirm","type":"x"}',
    b'{"type":"link_confirm"',
    b'{"type":"link_confirm"} x',
    b'{"type":"link_confirm","a":NaN}',
    b'{"type":"link_confirm","a":-Infinity}',
    b'\xef\xbb\xbf{"type":"link_confirm"}',
    b'{"type":"link_confirm","a":"\xff"}',
    b'{"type":"link_confirm","a":"\n"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"version":2,"type":"e2ee"}',
])  # fmt: skip
@BOTH
def test_invalid_confirms(pattern: Pattern, confirm: bytes) -> None:
    peer, noise = connection()
    initiator = Initiator(pattern)
    noise.receive(initiator.message_1())
    initiator.read_message_2(peer.sent[0])
    noise.receive(initiator.seal(confirm))
    assert failed(peer, noise)[0] is BAD_CONFIRM[pattern]


def test_a_confirm_over_the_frame_limit_is_refused() -> None:
    for pattern in Pattern:
        peer, noise = connection(frame_max=100)
        initiator = Initiator(pattern)
        noise.receive(initiator.message_1())
        initiator.read_message_2(peer.sent[0])
        noise.receive(initiator.seal(b'{"type":"link_confirm","a":"' + b"x" * 100 + b'"}'))
        assert failed(peer, noise)[0] is BAD_CONFIRM[pattern]


@BOTH
@pytest.mark.parametrize("damage", [
    lambda m: m[:-1] + bytes([m[-1] ^ 1]),
    lambda m: m[:-1],
    lambda m: m + b"\0",
    lambda m: b"",
    lambda m: b"\0\0",
    lambda m: b"\0\x10" + bytes(16),
    lambda m: bytes([m[0], m[1] ^ 1]) + m[2:],
])  # fmt: skip
def test_a_damaged_confirm(pattern: Pattern, damage: Callable[[bytes], bytes]) -> None:
    peer, noise = connection()
    initiator = Initiator(pattern)
    noise.receive(initiator.message_1())
    initiator.read_message_2(peer.sent[0])
    noise.receive(damage(initiator.seal(CONFIRM)))
    assert failed(peer, noise)[0] is BAD_CONFIRM[pattern]


# -- NOISE_HANDSHAKE_MALFORMED -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 33, 97, 99, 98 + 16, 70_000, 1_048_576])
def test_message_1_of_a_wrong_length(size: int) -> None:
    peer, noise = connection()
    noise.receive((Initiator().message_1() + bytes(size))[:size])
    assert failed(peer, noise)[0] is MALFORMED and peer.sent == []


@BOTH
@pytest.mark.parametrize("payload", [b"x", b"{}", bytes(1000)])
def test_message_1_with_a_payload(pattern: Pattern, payload: bytes) -> None:
    """A payload is correctly encrypted, but message 1 has none."""
    peer, noise = connection()
    noise.receive(bytes([1, pattern.value]) + bytes(Initiator(pattern).noise.write_message(payload)))
    assert failed(peer, noise)[0] is MALFORMED and peer.sent == []


@BOTH
@pytest.mark.parametrize(("at", "byte"), [(0, 0), (0, 2), (0, 255), (1, 0), (1, 3), (1, 255)])
def test_message_1_of_a_wrong_version_or_pattern_byte(pattern: Pattern, at: int, byte: int) -> None:
    peer, noise = connection()
    message = bytearray(Initiator(pattern).message_1())
    message[at] = byte
    noise.receive(bytes(message))
    reason, detail = failed(peer, noise)
    assert reason is MALFORMED and f"0x{byte:02x}" in detail


@BOTH
@pytest.mark.parametrize("wrong", [
    {"relay": StaticKey(bytes(range(32)))},
    {"query": evolve(QUERY, role=Role.CLIENT)},
    {"query": evolve(QUERY, workspace_id="ws-2")},
    {"query": evolve(QUERY, workspace_id="WS-1")},
    {"query": evolve(QUERY, runtime_target_id="rt-2")},
    {"query": evolve(QUERY, runtime_target_id=None)},
])  # fmt: skip
def test_message_1_for_another_relay_or_query(pattern: Pattern, wrong: dict[str, object]) -> None:
    peer, noise = connection()
    noise.receive(Initiator(pattern, **wrong).message_1())  # type: ignore[arg-type]
    assert failed(peer, noise)[0] is MALFORMED and peer.sent == []


def test_the_pattern_byte_must_match_the_pattern() -> None:
    for claimed, made in ((Pattern.IK, Pattern.IKPSK2), (Pattern.IKPSK2, Pattern.IK)):
        peer, noise = connection()
        message = Initiator(made).message_1()
        noise.receive(bytes([1, claimed.value]) + message[2:])
        assert failed(peer, noise)[0] is MALFORMED


@BOTH
@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_low_order_ephemeral_point(pattern: Pattern, point: bytes) -> None:
    peer, noise = connection()
    noise.receive(bytes([1, pattern.value]) + point + Initiator(pattern).message_1()[34:])
    assert failed(peer, noise)[0] is MALFORMED


@BOTH
@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_low_order_static_point(pattern: Pattern, point: bytes) -> None:
    """The point is correctly encrypted; only the next DH detects it."""
    peer, noise = connection()
    initiator = PlainInitiator(pattern)
    e = initiator.e.public_key().public_bytes_raw()
    initiator.mix_hash(e)
    if initiator.psk is not None:
        initiator.mix_key(e)
    initiator.dh(initiator.e, CURRENT.public)
    s = initiator.encrypt_and_hash(point)
    initiator.mix_key(bytes(32))
    noise.receive(bytes([1, pattern.value]) + e + s + initiator.encrypt_and_hash(b""))
    assert failed(peer, noise)[0] is MALFORMED and peer.sent == []


def test_a_text_message_during_the_handshake() -> None:
    peer, noise = connection()
    noise.inputs.text_message()
    assert failed(peer, noise)[0] is MALFORMED
    for pattern in Pattern:
        peer, noise = connection()
        noise.receive(Initiator(pattern).message_1())
        noise.inputs.text_message()
        assert failed(peer, noise)[0] is BAD_CONFIRM[pattern]


# -- the other reasons --------------------------------------------------------------------------------------------

STATIC = StaticKey(PEER_STATIC)
OTHER = StaticKey(SECRET)


@BOTH
@pytest.mark.parametrize(("role", "claim", "reason"), [
    (Role.DAEMON, STATIC.public_text, None),
    (Role.DAEMON, STATIC.public_text + "=", None),
    (Role.DAEMON, None, None),
    (Role.DAEMON, b64(b"\x04" + bytes(64)), None),  # a P-256 point: the end-to-end key, not the link's
    (Role.DAEMON, OTHER.public_text, MISMATCH),
    (Role.DAEMON, OTHER.public_text + "=", MISMATCH),
    (Role.CLIENT, OTHER.public_text, None),
    (Role.WORKER, OTHER.public_text, None),
])  # fmt: skip
def test_a_daemons_static_key(pattern: Pattern, role: Role, claim: str | None, reason: Reason | None) -> None:
    peer, noise = connection(grant(role, daemon_public_key=claim))
    noise.receive(Initiator(pattern).message_1())
    assert peer.reason is reason
    assert len(peer.sent) == (reason is None)
    if reason is not None:
        assert failed(peer, noise)[0] is reason


@pytest.mark.parametrize(
    "secret", [None, "", "x" * 43 + "!", b64(SECRET[:31]), b64(SECRET + b"x"), SECRET.hex()]
)
@pytest.mark.parametrize("required", [None, Profile.IKPSK2])
def test_ikpsk2_without_a_usable_secret(required: Profile | None, secret: str | None) -> None:
    peer, noise = connection(grant(required=required, secret=secret))
    noise.receive(Initiator(Pattern.IKPSK2).message_1())
    reason, detail = failed(peer, noise)
    assert reason is Reason.NOISE_PSK_UNAVAILABLE and peer.sent == []
    assert not secret or secret not in detail


@pytest.mark.parametrize("steps", [0, 1])
def test_a_timeout_at_any_step_fails_the_handshake(steps: int) -> None:
    for pattern in Pattern:
        peer, noise = connection()
        if steps:
            noise.receive(Initiator(pattern).message_1())
        noise.inputs.timeout()
        assert failed(peer, noise)[0] is Reason.NOISE_TIMEOUT


def test_a_late_timeout_has_no_effect() -> None:
    peer, noise = connection()
    initiator = establish(noise, peer)
    noise.inputs.timeout()
    assert is_up(noise) and noise.receive(initiator.seal(b"x")) == b"x"


def test_bad_records_and_text_close_an_established_link() -> None:
    for spoil in (
        lambda noise, sealed: noise.receive(sealed[:-1] + bytes([sealed[-1] ^ 1])),
        lambda noise, sealed: noise.receive(sealed[1:]),
        lambda noise, sealed: noise.receive(b""),
        lambda noise, sealed: noise.inputs.text_message(),
    ):
        peer, noise = connection()
        initiator = establish(noise, peer)
        sealed = initiator.seal(b"frame")
        assert spoil(noise, sealed) is None
        assert peer.reason is Reason.NOISE_DECRYPT_FAILED and not is_up(noise)
        assert noise.receive(sealed) is None
        noise.inputs.peer_gone()
        assert len(peer.failed) == 1 and peer.noted == []


def test_the_documented_close_texts() -> None:
    texts = {
        INVALID_PSK: "Noise handshake failed: invalid psk",
        MALFORMED: "Noise handshake failed: malformed message",
        MISMATCH: "Noise handshake failed: static key mismatch",
        Reason.NOISE_TIMEOUT: "Noise handshake failed: timeout",
        Reason.NOISE_DECRYPT_FAILED: "Noise transport failed: decrypt",
        Reason.NOISE_LINK_REQUIRED: "Noise link required",
        Reason.NOISE_PSK_UNAVAILABLE: "Noise handshake failed: psk unavailable",
    }
    for reason, text in texts.items():
        assert (reason.value.close, reason.value.close_text) == (CloseCode.POLICY, text)


def test_wrong_pattern_and_wrong_secret_have_the_same_close() -> None:
    seen = set()
    for initiator in (Initiator(Pattern.IK), Initiator(Pattern.IKPSK2, secret=OTHER_SECRET)):
        peer, noise = connection(grant(required=Profile.IKPSK2))
        noise.receive(initiator.message_1())
        if peer.reason is None:
            noise.receive(b"not a confirm")
        entry = peer.failed[0][0].value
        seen.add((entry.close, entry.close_text))
    assert len(seen) == 1


def test_no_secret_in_details_and_reprs() -> None:
    """Checked in log details and in the repr of each object that a traceback can print."""
    peer, noise = connection(grant(required=Profile.IKPSK2, daemon_public_key=OTHER.public_text))
    noise.receive(Initiator(Pattern.IKPSK2).message_1())
    told = repr(peer.failed) + repr(KEYS) + repr(CURRENT) + repr(noise) + repr(noise.core) + repr(grant())
    for secret in (SECRET, PEER_STATIC, hashlib.sha256(b"tests: relay key").digest()):
        assert b64(secret) not in told and secret.hex() not in told and repr(secret)[2:-1] not in told
    assert set(peer.failed[0][2]) == {"peerKeySha256", "grantKeySha256"}


def test_a_confirm_before_message_2_is_refused() -> None:
    responder = LinkResponder(QUERY, grant(), KEYS, "relay-1", FRAME_MAX)
    with pytest.raises(Refusal) as refused:
        responder.read_confirm(CONFIRM)
    assert refused.value.reason is MALFORMED and responder.records is None
