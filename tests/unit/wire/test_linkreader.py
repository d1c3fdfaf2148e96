"""The fast path of a link and plain Autobahn have the same visible result for any stream in any chunks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memorywire import BINARY, CLOSE, PING, TEXT, masked_frame
from tests.unit.noise.peers import Initiator
from tests.unit.noise.wirelink import LinkOnTheWire, relay
from tests.wireframes import encoded
from viewport_relay.noise.policy import Pattern
from viewport_relay.noise.records import message_max_bytes, records_max
from viewport_relay.protocol.grant import Role

LIMIT = 400_000

#: Builds a part of the peer's stream.
Part = Callable[[Initiator], bytes]


def e2ee(size: int, **members: Any) -> bytes:
    """A frame of `size` bytes, at least 200."""
    frame = encoded(
        "e2ee", ciphertext="A" * (size - len(encoded("e2ee", ciphertext="", **members))), **members
    )
    assert len(frame) == size
    return frame


def message(frame: bytes, record: int = 65_519) -> Part:
    return lambda peer: masked_frame(BINARY, peer.seal(frame, record))


def spoilt(frame: bytes, spoil: Callable[[bytes], bytes], record: int = 65_519) -> Part:
    return lambda peer: masked_frame(BINARY, spoil(peer.seal(frame, record)))


def raw(data: bytes) -> Part:
    return lambda peer: data


def fragments(frame: bytes) -> Part:
    def part(peer: Initiator) -> bytes:
        whole = peer.seal(frame)
        middle = len(whole) // 2
        first, rest = masked_frame(BINARY, whole[:middle], fin=False), masked_frame(0, whole[middle:])
        return first + masked_frame(PING, b"between") + rest

    return part


def swapped(peer: Initiator) -> bytes:
    first, second = peer.seal(e2ee(300, seq=1)), peer.seal(e2ee(300, seq=2))
    return masked_frame(BINARY, second) + masked_frame(BINARY, first)


def replayed(peer: Initiator) -> bytes:
    return masked_frame(BINARY, peer.seal(e2ee(300))) * 2


GOOD: list[Part] = [
    message(e2ee(250)),
    message(e2ee(1024, seq=2)),
    message(e2ee(3000, seq=3), 700),
    message(e2ee(65_519, seq=4)),
    message(e2ee(65_520, seq=5)),
    message(e2ee(131_039, seq=6)),
    message(e2ee(300_000, seq=7), 20_000),
    message(e2ee(LIMIT, seq=8)),
    message(encoded("init v3")),
    message(encoded("init v3", requestId="request-2")),
    message(encoded("e2ee", note="é \U0001f600")),
    message(e2ee(80_000)[:-1] + ',"note":"snow☃"}'.encode()),
    message(b"no json"),
    message(b""),
    message(b"[" * 100_000),
    message(encoded("e2ee", sessionId="")),
    lambda peer: masked_frame(BINARY, peer.seal(b"") + peer.seal(e2ee(250)) + peer.seal(b"")),
    raw(masked_frame(PING, b"are you there")),
    fragments(e2ee(260, seq=9)),
    fragments(e2ee(90_000, seq=10)),
]
LAST: list[Part] = [
    raw(b""),
    raw(masked_frame(CLOSE, struct.pack("!H", 1000))),
    raw(masked_frame(CLOSE, struct.pack("!H", 999))),
    raw(masked_frame(CLOSE, b"")),
    raw(masked_frame(TEXT, e2ee(250))),
    raw(masked_frame(BINARY, b"")),
    raw(masked_frame(BINARY, b"\0")),
    raw(masked_frame(BINARY, b"\0\x0f" + bytes(15))),
    raw(masked_frame(BINARY, b"\0\x10" + bytes(16))),
    raw(masked_frame(BINARY, e2ee(250))),
    raw(masked_frame(BINARY, bytes(message_max_bytes(LIMIT) + 1))),
    raw(b"\x82\xff" + struct.pack("!Q", 1 << 40) + bytes(4)),
    raw(b"\x82\x05hello"),
    raw(b"\xc2\x85" + bytes(4) + b"hello"),
    raw(b"\x82\xfe" + struct.pack("!H", 5) + bytes(4) + b"hello"),
    raw(b"\x82\xff" + struct.pack("!Q", 300) + bytes(4 + 300)),
    message(b'{"type":"\xff"}'),
    message(b"x" * (LIMIT + 1)),
    message(b"x" * (LIMIT + 1), 1000),
    message(b"x" * (records_max(LIMIT) + 1), 1),
    spoilt(e2ee(300), lambda m: m[:-1] + bytes([m[-1] ^ 1])),
    spoilt(e2ee(300), lambda m: m[:2] + bytes([m[2] ^ 0x80]) + m[3:]),
    spoilt(e2ee(300), lambda m: m[:-1]),
    spoilt(e2ee(300), lambda m: m + b"\0"),
    spoilt(e2ee(300), lambda m: m + m),
    spoilt(e2ee(70_000), lambda m: m[:-1] + bytes([m[-1] ^ 1])),
    spoilt(e2ee(200_000), lambda m: m[:100_000] + bytes([m[100_000] ^ 1]) + m[100_001:]),
    spoilt(e2ee(200_000), lambda m: m[:-9]),
    swapped,
    replayed,
    lambda peer: masked_frame(BINARY, peer.seal(encoded("offer request"))) + masked_frame(BINARY, peer.seal(e2ee(250))),
    lambda peer: masked_frame(BINARY, peer.seal(e2ee(300)))[:-7],
    lambda peer: masked_frame(BINARY, peer.seal(e2ee(200_000)))[:-7],
]  # fmt: skip


def outcome(parts: list[Part], cuts: list[float], *, fast: bool, linked: bool) -> dict[str, Any]:
    """The visible result of a linked client that sends these parts; a cut is a position between 0 and 1."""
    house = relay(RELAY_FAST_PATH="1" if fast else "0", RELAY_FRAME_MAX_BYTES=str(LIMIT))
    daemon: Any = LinkOnTheWire(house, role=Role.DAEMON) if linked else house.daemon()
    if linked:
        daemon.establish()
    client = LinkOnTheWire(house, Pattern.IKPSK2)
    client.establish()
    stream = b"".join(part(client.initiator) for part in parts)
    edges = [0, *sorted(int(cut * len(stream)) for cut in cuts), len(stream)]
    for begin, end in pairwise(edges):
        if not client.connection.is_lost:
            client.raw(stream[begin:end])
    house.wait(11)  # longer than the closing handshake
    seen = {
        "daemon": daemon.frames() if linked else daemon.heard(),
        "client": client.frames(),
        "pongs": client.pongs,
        "closed": client.closed,
        "lost": client.connection.is_lost,
        "frames": house.counters.frames_client_to_daemon,
        "bytes": house.counters.bytes_client_to_daemon,
        "rejected": house.counters.frames_client_rejected,
        "too large": house.counters.ws_frame_too_large,
        "details": [entry.get("detail") for entry in house.log.events],
        "reasons": [code for code in house.log.reasons() if code != "PONG_TIMEOUT"],
    }
    assert client.routed is None or client.closed is None
    return seen


@settings(max_examples=120, deadline=None)
@given(
    parts=st.lists(st.sampled_from(GOOD), max_size=8),
    last=st.sampled_from(LAST),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    linked=st.booleans(),
)
def test_both_paths_have_the_same_result(
    parts: list[Part], last: Part, cuts: list[float], linked: bool
) -> None:
    whole = [*parts, last]
    assert outcome(whole, cuts, fast=True, linked=linked) == outcome(whole, cuts, fast=False, linked=linked)


@pytest.mark.parametrize("number", range(len(LAST)))
def test_each_ending_after_valid_frames(number: int) -> None:
    """Earlier frames are delivered, the invalid part and all later ones are not, on both paths."""
    whole = [message(e2ee(300)), message(e2ee(301, seq=2)), LAST[number]]
    for cuts in ([], [0.9]):
        fast = outcome(whole, cuts, fast=True, linked=True)
        assert fast == outcome(whole, cuts, fast=False, linked=True)
        assert fast["daemon"][:2] == [e2ee(300), e2ee(301, seq=2)]


def test_every_cut_of_a_short_stream() -> None:
    parts = [
        message(e2ee(230)),
        raw(masked_frame(PING, b"p")),
        message(e2ee(240, seq=2)),
        message(encoded("init v3")),
    ]
    expected = outcome(parts, [], fast=False, linked=True)
    assert len(expected["daemon"]) == 3
    house = relay()
    peer = LinkOnTheWire(house)
    peer.establish()
    length = sum(len(part(peer.initiator)) for part in parts)
    for cut in range(0, length, 1):
        assert outcome(parts, [(cut + 0.5) / length], fast=True, linked=True) == expected


@pytest.mark.parametrize(
    "size", [200, 65_517, 65_518, 65_519, 65_520, 131_037, 131_038, 131_039, LIMIT - 1, LIMIT]
)
@pytest.mark.parametrize("linked", [False, True])
def test_frames_at_the_limits_of_record_sizes(size: int, linked: bool) -> None:
    frame = e2ee(size)
    for record in (65_519, max(1, size // 2), size):
        parts = [message(frame, min(record, 65_519)), message(e2ee(250, seq=2))]
        for cuts in ([], [0.4], [0.00001, 0.999]):
            seen = outcome(parts, cuts, fast=True, linked=linked)
            assert seen["daemon"] == [frame, e2ee(250, seq=2)] and seen["reasons"] == []
            assert (seen["frames"], seen["bytes"]) == (2, size + 250)


def test_a_flood_of_answered_messages_is_processed_over_several_turns() -> None:
    house = relay()
    client = LinkOnTheWire(house)
    client.establish()
    count = 300  # more than one turn processes
    client.raw(b"".join(masked_frame(BINARY, client.initiator.seal(b"no json")) for _ in range(count)))
    house.wait(1)
    assert len(client.frames()) == count
