"""The fast path and plain Autobahn have the same visible result for any stream in any chunks."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memorywire import BINARY, CLOSE, PING, TEXT, MemoryRelay, masked_frame
from tests.wireframes import encoded
from viewport_relay.wire import masking

LIMIT = 400_000


def e2ee(size: int, **members: Any) -> bytes:
    return encoded("e2ee", ciphertext="A" * size, **members)


def fragments(message: bytes) -> bytes:
    middle = len(message) // 2
    return (
        masked_frame(TEXT, message[:middle], fin=False)
        + masked_frame(PING, b"between")
        + masked_frame(0, message[middle:])
    )


def with_length_field(opcode: int, message: bytes) -> bytes:
    """A frame whose length takes eight bytes, minimal or not."""
    return bytes([0x80 | opcode, 0xFF]) + struct.pack("!Q", len(message)) + bytes(4) + message


GOOD = st.sampled_from(
    [
        masked_frame(TEXT, e2ee(8)),
        masked_frame(TEXT, e2ee(60, seq=2)),
        masked_frame(TEXT, e2ee(3000, seq=3)),
        masked_frame(TEXT, e2ee(70_000, seq=4)),
        masked_frame(TEXT, e2ee(300_000, seq=5)),
        masked_frame(TEXT, encoded("init v3")),
        masked_frame(TEXT, encoded("init v3", requestId="request-2")),
        masked_frame(TEXT, encoded("e2ee", note="é \U0001f600")),
        masked_frame(TEXT, '{"note":"é"}'.encode()),
        masked_frame(TEXT, e2ee(5)[:-1] + ',"note":"snow☃"}'.encode()),
        masked_frame(TEXT, e2ee(80_000)[:-1] + ',"note":"snow☃"}'.encode()),
        masked_frame(TEXT, b"no json"),
        masked_frame(TEXT, b""),
        masked_frame(TEXT, b"[" * 100_000),
        masked_frame(TEXT, e2ee(4, sessionId="")),
        masked_frame(TEXT, encoded("e2ee", ciphertext=" ")),
        masked_frame(BINARY, e2ee(9, seq=6)),
        masked_frame(PING, b"are you there"),
        fragments(e2ee(12, seq=7)),
        fragments(e2ee(90_000, seq=8)),
    ]
)
LAST = st.sampled_from(
    [
        b"",
        masked_frame(CLOSE, struct.pack("!H", 1000)),
        masked_frame(CLOSE, struct.pack("!H", 999)),
        masked_frame(CLOSE, b""),
        masked_frame(CLOSE, b"\x03"),
        masked_frame(CLOSE, struct.pack("!H", 3000) + "schön war's".encode()),
        masked_frame(CLOSE, struct.pack("!H", 1001) + b"\xff"),
        masked_frame(CLOSE, struct.pack("!H", 1000) + b"x" * 123),
        masked_frame(CLOSE, struct.pack("!H", 1000) + b"x" * 124),
        masked_frame(CLOSE, struct.pack("!H", 1000), fin=False),
        masked_frame(TEXT, b'{"type":"\xff"}'),
        masked_frame(TEXT, e2ee(100_000)[:-2] + b'\xc3"}'),
        masked_frame(BINARY, b"\xff\xfe"),
        masked_frame(TEXT, b"x" * (LIMIT + 1)),
        b"\x81\xff" + struct.pack("!Q", 1 << 40) + bytes(4),
        b"\x81\x05hello",
        b"\xc1\x85" + bytes(4) + b"hello",
        b"\x83\x85" + bytes(4) + b"hello",
        with_length_field(TEXT, e2ee(4)),
        bytes([0x81, 0xFE]) + struct.pack("!H", 5) + bytes(4) + b"hello",
        masked_frame(TEXT, encoded("offer request")),
        masked_frame(TEXT, e2ee(40))[:-7],
        masked_frame(TEXT, e2ee(200_000))[:-7],
    ]
)


def outcome(stream: bytes, cuts: list[int], *, fast: bool) -> dict[str, Any]:
    """The visible result of a client that sends `stream` in chunks."""
    relay = MemoryRelay(RELAY_FAST_PATH="1" if fast else "0", RELAY_FRAME_MAX_BYTES=str(LIMIT))
    daemon, client, other = relay.daemon(), relay.client(), relay.client()
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if not client.connection.is_lost:
            client.raw(stream[begin:end])
    relay.wait(11)  # longer than the closing handshake
    other.say(e2ee(1, sessionId="other"))
    return {
        "daemon": daemon.heard(),
        "client": client.heard(),
        "pongs": client.pongs,
        "closed": client.closed,
        "after the close": client.after_close,
        "lost": client.connection.is_lost,
        "frames": relay.counters.frames_client_to_daemon,
        "bytes": relay.counters.bytes_client_to_daemon,
        "reasons": [code for code in relay.log.reasons() if code != "PONG_TIMEOUT"],
    }


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_both_paths_have_the_same_result(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(GOOD, max_size=8))) + data.draw(LAST)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    assert outcome(stream, cuts, fast=True) == outcome(stream, cuts, fast=False)


def test_every_cut_of_a_short_stream() -> None:
    stream = masked_frame(TEXT, e2ee(4)) + masked_frame(PING, b"p") + masked_frame(TEXT, encoded("init v3"))
    expected = outcome(stream, [], fast=False)
    assert len(expected["daemon"]) == 3  # the two frames, and one of the other client
    for cut in range(len(stream) + 1):
        assert outcome(stream, [cut], fast=True) == expected


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 262_144, 390_000])
def test_sizes_at_the_limits_of_each_length_field(size: int) -> None:
    message = b'{"a":"' + b"x" * (size - 8) + b'"}' if size >= 8 else b"1"[:size]
    for at in (1, 5, 7, 13, 20):
        stream = masked_frame(TEXT, message) + masked_frame(TEXT, e2ee(4))
        assert outcome(stream, [at], fast=True) == outcome(stream, [at], fast=False)


def test_frames_of_one_read_are_forwarded_in_order() -> None:
    relay = MemoryRelay()
    daemon, client = relay.daemon(), relay.client()
    messages = [e2ee(20, seq=n) for n in range(1, 200)]
    client.say(*messages)
    assert daemon.heard() == messages


def test_reused_buffers_carry_nothing_over() -> None:
    relay = MemoryRelay()
    daemon, client = relay.daemon(), relay.client()
    snow = e2ee(120_000)[:-1] + ',"note":"snow☃"}'.encode()
    plain = e2ee(110_000, seq=2)
    for message in (snow, plain, snow, plain):
        whole = masked_frame(TEXT, message)
        client.raw(whole[:50_000])
        client.raw(whole[50_000:])
        assert daemon.heard() == [message]


def test_a_daemons_replies_and_events_keep_their_order() -> None:
    """The response is a decision of the router; frames forwarded earlier in the same read keep their place."""
    relay = MemoryRelay()
    daemon, client = relay.daemon(), relay.client()
    client.say(encoded("init v3"))
    daemon.heard()
    answers = [encoded("response v3"), e2ee(3, seq=1), e2ee(3, seq=2)]
    daemon.say(answers[0], b"nonsense", *answers[1:])
    assert client.heard() == answers


def test_both_unmaskers_have_the_same_result() -> None:
    for start in (4, 6, 8, 14, 33):
        for length in (0, 1, 2, 3, 4, 5, 15, 16, 17, 1000):
            native, plain = bytearray(range(256)) * 8, bytearray(range(256)) * 8
            masking.unmasker(native)(start, length)
            masking.in_python(plain)(start, length)
            assert native == plain


@pytest.mark.parametrize(("start", "length"), [(4, 97), (14, 87), (20, 81), (101, 0), (8, 10**9), (20, -1)])
def test_nothing_outside_a_buffer_is_unmasked(start: int, length: int) -> None:
    with pytest.raises((IndexError, OverflowError)):
        masking.unmasker(bytearray(100))(start, length)
