"""Records of an established link: limits, invalid lengths, nonces, frames of all sizes in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from noise.constants import MAX_NONCE as LIBRARY_MAX_NONCE

from tests.unit.noise.peers import (
    FRAME_MAX,
    Initiator,
    Recorder,
    connection,
    encrypted,
    establish,
    is_up,
    seal,
)
from viewport_relay.noise.link import LinkResponder
from viewport_relay.noise.machine import NoiseLink
from viewport_relay.noise.policy import Pattern
from viewport_relay.noise.records import (
    RECORD_PLAINTEXT_MAX,
    TAG_BYTES,
    message_max_bytes,
    records_max,
)
from viewport_relay.reasons import CloseCode, Reason, Refusal

MAX_NONCE = 2**64 - 1
SIZES = [0, 1, 15, 16, 17, 1024, 65_518, 65_519, 65_520, 131_038, 131_039, FRAME_MAX - 1, FRAME_MAX]
DECRYPT = Reason.NOISE_DECRYPT_FAILED


def up(frame_max: int = FRAME_MAX, pattern: Pattern = Pattern.IK) -> tuple[Recorder, NoiseLink, Initiator]:
    peer, noise = connection(frame_max=frame_max)
    return peer, noise, establish(noise, peer, pattern)


@pytest.mark.parametrize("size", SIZES)
def test_frames_at_the_size_limits(size: int) -> None:
    _, noise, initiator = up()
    frame = bytes(index % 251 for index in range(size))
    sealed = seal(noise, frame)
    assert sealed is not None and initiator.open(sealed) == frame
    count = max(1, -(-size // RECORD_PLAINTEXT_MAX))
    assert len(sealed) == size + 18 * count  # no more records than needed
    assert noise.receive(initiator.seal(frame)) == frame


FRAMES = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda seed, size: (seed * (size // len(seed) + 1))[:size], st.binary(min_size=1, max_size=64),
              st.integers(0, FRAME_MAX)),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(st.tuples(FRAMES, st.integers(300, RECORD_PLAINTEXT_MAX)), min_size=1, max_size=4),
       pattern=st.sampled_from(Pattern))  # fmt: skip
@example(frames=[(b"", 300), (b"x" * FRAME_MAX, 65_519), (b"", 300)], pattern=Pattern.IKPSK2)
def test_random_frames_in_both_directions(frames: list[tuple[bytes, int]], pattern: Pattern) -> None:
    peer, noise, initiator = up(pattern=pattern)
    for frame, record in frames:
        assert noise.receive(initiator.seal(frame, record)) == frame
        sealed = seal(noise, frame)
        assert sealed is not None and initiator.open(sealed) == frame
    assert peer.failed == []


def test_bytes_like_messages() -> None:
    _, noise, initiator = up()
    for kind in (bytearray, memoryview):
        for size in (5, 70_000):
            assert noise.receive(kind(initiator.seal(b"a" * size))) == b"a" * size  # type: ignore[arg-type]


def test_the_frame_limit_counts_plaintext_over_all_records() -> None:
    for record in (65_519, 1000, 100):
        peer, noise, initiator = up(frame_max=3000)
        assert noise.receive(initiator.seal(b"a" * 3000, record)) == b"a" * 3000
        assert noise.receive(initiator.seal(b"a" * 3001, record)) is None
        assert peer.reason is Reason.FRAME_TOO_LARGE and not is_up(noise)
        assert Reason.FRAME_TOO_LARGE.value.close == CloseCode.TOO_BIG


def test_a_frame_over_the_limit_is_refused_before_anything_is_decrypted() -> None:
    """The size is checked before decryption, and no nonce is used."""
    _, noise, _ = up(frame_max=100)
    records, received = noise.records, noise.records.received
    for lengths in ([117], [80, 69], [65_535] * 3):
        message = b"".join(length.to_bytes(2, "big") + bytes(length) for length in lengths)
        with pytest.raises(Refusal) as refused:
            records.decrypt_message(message)
        assert refused.value.reason is Reason.FRAME_TOO_LARGE
    with pytest.raises(Refusal) as refused:
        records.decrypt_record(memoryview(bytes(117)))
    assert refused.value.reason is Reason.FRAME_TOO_LARGE and records.received == received


def test_the_number_of_records_of_a_frame_is_bounded() -> None:
    limit = records_max(1000)
    _, noise, initiator = up(frame_max=1000)
    assert noise.receive(initiator.seal(b"a" * limit, 1)) == b"a" * limit
    peer, noise, initiator = up(frame_max=1000)
    assert noise.receive(initiator.seal(b"a" * (limit + 1), 1)) is None
    assert peer.reason is DECRYPT
    assert message_max_bytes(1000) == 1000 + 18 * limit


def test_empty_records_within_a_frame_are_accepted() -> None:
    _, noise, initiator = up()
    message = initiator.seal(b"") + initiator.seal(b"abc") + initiator.seal(b"")
    assert noise.receive(message) == b"abc"


BAD: list[Callable[[bytes], bytes]] = [
    lambda m: b"",
    lambda m: b"\0",
    lambda m: b"\0\0",
    lambda m: b"\0\0" + m,
    lambda m: m + b"\0\0",
    lambda m: m + b"\0",
    lambda m: m + b"\0\x10",
    lambda m: m + b"\0\x0f" + bytes(15),
    lambda m: m + b"\0\x10" + bytes(16),
    lambda m: m[:-1],
    lambda m: m[2:],
    lambda m: m[:2],
    lambda m: m[:17],
    lambda m: b"\xff\xfe" + m[2:],
    lambda m: (int.from_bytes(m[:2], "big") - 1).to_bytes(2, "big") + m[2:],
    lambda m: (int.from_bytes(m[:2], "big") ^ 3).to_bytes(2, "big") + m[2:],
    lambda m: m[:2] + bytes([m[2] ^ 0x80]) + m[3:],
    lambda m: m + m,
    lambda m: bytes(70_000),
    lambda m: b'{"type":"e2ee"}' + bytes(20),
]


@pytest.mark.parametrize("spoil", BAD)
@pytest.mark.parametrize("size", [0, 5, 70_000])
def test_bad_records(size: int, spoil: Callable[[bytes], bytes]) -> None:
    peer, noise, initiator = up()
    good = initiator.seal(b"a" * size)
    assert noise.receive(spoil(good)) is None
    assert peer.reason is DECRYPT and not is_up(noise)
    assert noise.receive(good) is None  # a closed link accepts no record, even a valid one


def test_replayed_reordered_and_reflected_records() -> None:
    for choose in (
        lambda first, second, own: [first, first],
        lambda first, second, own: [second, first],
        lambda first, second, own: [own],
    ):
        peer, noise, initiator = up()
        first, second = initiator.seal(b"first"), initiator.seal(b"second")
        got = [noise.receive(message) for message in choose(first, second, seal(noise, b"own"))]
        assert got[-1] is None and peer.reason is DECRYPT


def test_sending_nonces_are_exhausted() -> None:
    peer, noise, initiator = up()
    noise.records.sent = MAX_NONCE - 1
    initiator.noise.noise_protocol.cipher_state_decrypt.set_nonce(MAX_NONCE - 1)
    sealed = seal(noise, b"the last one")
    assert sealed is not None and initiator.open(sealed) == b"the last one"
    assert seal(noise, b"one more") is None
    assert peer.reason is Reason.NOISE_NONCE_EXHAUSTED and not is_up(noise)


def test_sending_nonces_are_exhausted_within_a_batch() -> None:
    _, noise, _ = up()
    records, parts = noise.records, list[bytes]()
    records.sent = MAX_NONCE - 2
    with pytest.raises(Refusal) as refused:
        records.encrypt_records([b"a", b"", b"b"], [b"0", b"1"], parts)
    assert refused.value.reason is Reason.NOISE_NONCE_EXHAUSTED
    assert parts[::2] == [b"1", b"0"] and [len(part) for part in parts[1::2]] == [17, 16]
    assert records.sent == MAX_NONCE


def test_a_batch_is_a_sequence_of_records() -> None:
    _, noise, initiator = up()
    parts: list[bytes] = []
    noise.records.encrypt_records([b"one", b"three"], [b"?", b"", b"", b"\0\x13", b"", b"\0\x15"], parts)
    assert initiator.open(b"".join(parts)) == b"onethree" and noise.records.sent == 2


def test_sending_nonces_are_exhausted_within_a_frame() -> None:
    peer, noise, _ = up()
    noise.records.sent = MAX_NONCE - 1
    assert seal(noise, bytes(70_000)) is None
    assert peer.reason is Reason.NOISE_NONCE_EXHAUSTED


def test_receiving_nonces_are_exhausted() -> None:
    peer, noise, initiator = up()
    noise.records.received = MAX_NONCE
    assert noise.receive(initiator.seal(b"x")) is None
    assert peer.reason is Reason.NOISE_NONCE_EXHAUSTED
    assert Reason.NOISE_NONCE_EXHAUSTED.value.close == CloseCode.POLICY


def test_queued_frames_can_be_sealed_while_the_relay_closes() -> None:
    peer, noise, initiator = up()
    noise.inputs.relay_closes()
    sealed = seal(noise, b"queued")
    assert sealed is not None and initiator.open(sealed) == b"queued"
    assert noise.receive(initiator.seal(b"late")) is None and peer.failed == []


def test_plaintext_and_tag_fill_the_record() -> None:
    assert RECORD_PLAINTEXT_MAX + TAG_BYTES == 65_535


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_record_shorter_than_its_tag_is_refused(length: int) -> None:
    peer, noise, initiator = up()
    noise.receive(initiator.seal(b"a") + length.to_bytes(2, "big") + bytes(length))
    assert peer.failed[0][:2] == (DECRYPT, "record 2 has a bad length")


def test_records_equal_the_librarys_byte_for_byte() -> None:
    """Same nonces, keys and cipher as noiseprotocol's cipher states, at any count."""
    peer, noise = connection()
    states: list[Any] = []
    write = LinkResponder.write_message_2

    def noting(responder: LinkResponder) -> bytes:
        states.append(responder._noise.noise_protocol)
        return write(responder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinkResponder, "write_message_2", noting)
        establish(noise, peer, Pattern.IK)
    [library] = states
    records = noise.records
    for count in (0, 1, 255, 256, 2**32 - 1, 2**32, 2**63, MAX_NONCE - 1):
        for text in (b"", b"x", bytes(5000)):
            records.sent = count
            library.cipher_state_encrypt.set_nonce(count)
            sealed = library.cipher_state_encrypt.encrypt_with_ad(None, text)
            assert encrypted(records, text)[2:] == sealed
            records.sent = count
            parts: list[bytes] = []
            records.encrypt_records([text], [b""] * 5001, parts)
            assert parts == [b"", sealed]
            assert records.sent == library.cipher_state_encrypt.n == count + 1
    state = library.cipher_state_decrypt
    for count in (0, 1, 2**40, MAX_NONCE - 1):
        sealed = state.cipher.encrypt(state.k, count, None, b"towards the relay")
        records.received = count
        assert records.decrypt_record(memoryview(sealed)) == b"towards the relay"
        records.received = count
        out = bytearray(40)
        message = len(sealed).to_bytes(2, "big") + sealed
        assert records.decrypt_into(memoryview(message), memoryview(out)) == 17
        assert out == b"towards the relay" + bytes(23) and records.received == count + 1
    assert LIBRARY_MAX_NONCE == MAX_NONCE


def test_a_nonce_is_never_used_twice() -> None:
    _, noise, _ = up()
    seen = {seal(noise, b"the same") for _ in range(300)}
    assert len(seen) == 300 and noise.records.sent == 300
    for size in (0, 65_519, 65_520, 131_039):
        before = noise.records.sent
        seal(noise, bytes(size))
        assert noise.records.sent == before + max(1, -(-size // RECORD_PLAINTEXT_MAX))
