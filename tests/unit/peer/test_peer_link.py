"""The initiator's side of the link, against a responder built on the Noise library alone."""

from __future__ import annotations

import json

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.peer.wiring import HELLO, RelayEnd
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.link import (
    CONFIRM,
    FRAME_MAX_BYTES,
    RECORD_PLAINTEXT,
    LinkInitiator,
    LinkSettings,
    Pattern,
    generate_static,
)

SECRET = bytes(range(32))
BOTH = pytest.mark.parametrize("secret", [None, SECRET], ids=["IK", "IKpsk2"])


def _ends(secret: bytes | None = None, relay_secret: bytes | None = None) -> tuple[LinkInitiator, RelayEnd]:
    pattern = Pattern.IK if secret is None else Pattern.IKPSK2
    relay = RelayEnd(pattern, secret=relay_secret or secret)
    settings = LinkSettings(relay.public, generate_static(), "client", "w", "t", secret)
    return LinkInitiator(settings), relay


def _up(secret: bytes | None = None) -> tuple[LinkInitiator, RelayEnd]:
    peer, relay = _ends(secret)
    peer.read_message_2(relay.answer(peer.message_1()))
    assert relay.open(peer.confirm()) == [CONFIRM]
    return peer, relay


@BOTH
def test_handshake_and_confirm(secret: bytes | None) -> None:
    peer, relay = _ends(secret)
    message = peer.message_1()
    assert message[:2] == bytes([1, 1 if secret is None else 2])
    assert len(message) == 2 + 32 + 48 + 16
    assert not peer.established
    assert peer.read_message_2(relay.answer(message)) == "test-relay"
    assert peer.frame_max_bytes == 1_048_576
    assert peer.established
    assert [json.loads(record) for record in relay.open(peer.confirm())] == [{"type": "link_confirm"}]


SIZES = [
    0,
    1,
    RECORD_PLAINTEXT - 1,
    RECORD_PLAINTEXT,
    RECORD_PLAINTEXT + 1,
    3 * RECORD_PLAINTEXT,
    FRAME_MAX_BYTES,
]


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_frames_of_all_sizes_both_ways(secret: bytes | None, size: int) -> None:
    peer, relay = _up(secret)
    frame = bytes(index * 31 % 251 for index in range(size))
    records = relay.open(peer.seal(frame))
    assert b"".join(records) == frame
    assert max(map(len, records)) <= RECORD_PLAINTEXT
    assert len(records) == max(1, -(-size // RECORD_PLAINTEXT))
    pieces = [frame[at : at + 40_000] for at in range(0, size or 1, 40_000)]
    assert peer.open(relay.seal(*pieces)) == frame


def test_the_limit_counts_plaintext_both_ways() -> None:
    peer, relay = _ends()
    peer.read_message_2(relay.answer(peer.message_1(), {"relayId": "x", "frameMaxBytes": 100}))
    relay.open(peer.confirm())
    assert b"".join(relay.open(peer.seal(bytes(100)))) == bytes(100)
    with pytest.raises(PeerError, match="TOO_LARGE"):
        peer.seal(bytes(101))
    assert peer.open(relay.seal(bytes(60), bytes(40))) == bytes(100)
    with pytest.raises(PeerError, match="TOO_LARGE"):
        peer.open(relay.seal(bytes(60), bytes(41)))


def test_another_secret_fails_at_message_2() -> None:
    peer, relay = _ends(SECRET, relay_secret=bytes(32))
    with pytest.raises(PeerError) as caught:
        peer.read_message_2(relay.answer(peer.message_1()))
    assert caught.value.code is Code.DECRYPT_FAILED
    assert not peer.established


@pytest.mark.parametrize(
    "where", [("client", "w", ""), ("client", "w2", "t"), ("workspace-daemon", "w", "t")]
)
def test_the_handshake_is_bound_to_the_query(where: tuple[str, str, str]) -> None:
    relay = RelayEnd(Pattern.IK)
    peer = LinkInitiator(LinkSettings(relay.public, generate_static(), *where))
    with pytest.raises(InvalidTag):
        relay.answer(peer.message_1())


@BOTH
def test_every_truncation_of_message_2_is_a_clean_error(secret: bytes | None) -> None:
    whole = len(_answered(secret)[1])
    for length in range(whole):
        peer, message = _answered(secret)
        with pytest.raises(PeerError) as caught:
            peer.read_message_2(message[:length])
        assert caught.value.code in (Code.MALFORMED, Code.DECRYPT_FAILED)
        with pytest.raises(PeerError, match="OUT_OF_ORDER"):
            peer.confirm()


def _answered(secret: bytes | None) -> tuple[LinkInitiator, bytes]:
    peer, relay = _ends(secret)
    return peer, relay.answer(peer.message_1())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_as_message_2(data: bytes) -> None:
    peer, _ = _answered(None)
    with pytest.raises(PeerError):
        peer.read_message_2(data)


@pytest.mark.parametrize(
    "hello",
    [
        [],
        {},
        {"relayId": "", "frameMaxBytes": 1},
        {"relayId": "x", "frameMaxBytes": 0},
        HELLO | {"relayId": 1},
    ],
)
def test_invalid_payloads_of_message_2(hello: object) -> None:
    peer, relay = _ends()
    with pytest.raises(PeerError, match="MALFORMED"):
        peer.read_message_2(relay.answer(peer.message_1(), hello))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_bit_on_the_link_never_passes(data: st.DataObject) -> None:
    peer, relay = _up()
    message = bytearray(relay.seal(b"first", b"second"))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PeerError) as caught:
        peer.open(bytes(message))
    assert caught.value.code in (Code.MALFORMED, Code.DECRYPT_FAILED)


@pytest.mark.parametrize(
    "message", [b"", b"\x00", b"\x00\x00", b"\x00\x0f" + bytes(15), b"\x00\x20" + bytes(31)]
)
def test_bad_record_lengths(message: bytes) -> None:
    peer, _ = _up()
    with pytest.raises(PeerError, match="MALFORMED"):
        peer.open(message)


def test_records_cannot_be_dropped_repeated_or_reordered() -> None:
    for order in ([1], [1, 0], [0, 0]):
        peer, relay = _up()
        messages = [relay.seal(b"a"), relay.seal(b"b")]
        with pytest.raises(PeerError, match="DECRYPT_FAILED"):
            for index in order:
                peer.open(messages[index])


def test_invalid_keys() -> None:
    with pytest.raises(PeerError, match="MALFORMED"):
        LinkInitiator(LinkSettings(bytes(31), generate_static(), "client", "w"))
    with pytest.raises(PeerError, match="MALFORMED"):
        LinkInitiator(LinkSettings(bytes(32), generate_static(), "client", "w")).message_1()
    with pytest.raises(PeerError, match="PAIRING_UNKNOWN"):
        LinkInitiator(LinkSettings(generate_static(), generate_static(), "client", "w", "", bytes(5)))


def test_no_frame_is_sent_or_read_before_the_link_is_up() -> None:
    peer, _ = _ends()
    for use in (peer.confirm, lambda: peer.seal(b"x"), lambda: peer.open(b"x")):
        with pytest.raises(PeerError, match="OUT_OF_ORDER"):
            use()


def test_no_key_shows_in_a_repr() -> None:
    settings = LinkSettings(b"r" * 32, b"s" * 32, "client", "w", "", b"p" * 32)
    assert "rrr" not in repr(settings)
    assert "sss" not in repr(settings)
    assert "ppp" not in repr(settings)
