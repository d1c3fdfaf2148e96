"""Frames of one read are sent in one write: on the fast path and through the codec, with and without Noise links."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.memorywire import BINARY, TEXT, FrameReader, MemoryRelay, MemoryTransport, masked_frame
from tests.unit.noise.wirelink import LinkOnTheWire, relay
from tests.wireframes import encoded
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.wire.connection import ConnectionInfo
from viewport_relay.wire.transport import DirectTransport


class CountedWrites(DirectTransport, MemoryTransport):
    """An in-memory transport with direct writes, as on a socket, that counts the writes."""

    family = socket.AF_UNIX

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.socket: Any = self
        self.sends = 0

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        self.sends += 1
        return self.writeSomeData(bytes(data))

    def recv_into(self, space: memoryview) -> int:
        raise BlockingIOError


class PlainDaemon:
    """A daemon without a link."""

    def __init__(self, house: MemoryRelay) -> None:
        self.got = bytearray()
        self.transport = CountedWrites(house.clock, self.got.extend)
        connection = house.factory.open(self.transport, b"", ConnectionInfo("daemon", "127.0.0.1"))
        claims = Claims(workspace_id="w", runtime_target_id="t")
        house.relaying.sessions.opened(connection, UpgradeQuery(Role.DAEMON, "w", "t"), claims)

    def frames(self) -> list[bytes]:
        data, self.got[:] = bytes(self.got), b""
        return [payload for _, payload, _ in FrameReader().feed(data)]


def daemon_of(house: MemoryRelay, linked: bool) -> Any:
    if not linked:
        return PlainDaemon(house)
    daemon = LinkOnTheWire(house, role=Role.DAEMON, transport=CountedWrites)
    daemon.establish()
    return daemon


def client_of(house: MemoryRelay, linked: bool) -> Any:
    if not linked:
        return house.client()
    client = LinkOnTheWire(house)
    client.establish()
    return client


def as_sent(peer: Any, frame: bytes, record: int = 65_519) -> bytes:
    """The frame as this peer sends it; on a link in records of at most `record` bytes of plaintext."""
    if isinstance(peer, LinkOnTheWire):
        return masked_frame(BINARY, peer.initiator.seal(frame, record))
    return masked_frame(TEXT, frame)


def one_turn(house: MemoryRelay, peer: Any, data: bytes) -> None:
    """Receive the peer's bytes in a turn of the reactor with a single readable socket."""
    turn = house.factory.turn
    turn.within = True
    peer.raw(data)
    turn.within = turn.running = False
    turn.send()


@pytest.fixture(params=["1", "0"], ids=["fast path", "codec"])
def house(request: pytest.FixtureRequest) -> MemoryRelay:
    return relay(RELAY_FAST_PATH=request.param)


@pytest.mark.parametrize("to_a_link", [False, True])
@pytest.mark.parametrize("over_a_link", [False, True])
def test_frames_of_one_read_are_sent_in_one_write(
    house: MemoryRelay, over_a_link: bool, to_a_link: bool
) -> None:
    daemon, client = daemon_of(house, to_a_link), client_of(house, over_a_link)
    frames = [encoded("e2ee", seq=number) for number in range(1, 33)]
    one_turn(house, client, as_sent(client, frames[0]))  # enables direct writes to the socket
    assert daemon.frames() == frames[:1]
    before = daemon.transport.sends
    one_turn(house, client, b"".join(as_sent(client, frame) for frame in frames[1:]))
    assert daemon.frames() == frames[1:] and daemon.transport.sends == before + 1


@pytest.mark.parametrize("to_a_link", [False, True])
def test_short_frames_in_many_records_are_sent_complete(house: MemoryRelay, to_a_link: bool) -> None:
    """The fast path decrypts into a buffer that the next message reuses, while a turn holds short frames."""
    daemon, client = daemon_of(house, to_a_link), client_of(house, True)
    frames = [encoded("e2ee", seq=seq, ciphertext=chr(64 + seq) * 30_000) for seq in range(1, 6)]
    turn = house.factory.turn
    turn.within = turn.running = True
    client.raw(b"".join(as_sent(client, frame, 100) for frame in frames))
    turn.within = turn.running = False
    turn.send()
    house.wait(0.1)  # more records than one turn processes
    assert daemon.frames() == frames


def test_messages_in_tiny_records_are_processed_over_several_turns() -> None:
    """Each record costs as much as a frame."""
    house = relay()
    daemon, client = daemon_of(house, False), client_of(house, True)
    frames = [encoded("e2ee", seq=seq, ciphertext="A" * 2000) for seq in range(1, 101)]
    client.raw(b"".join(as_sent(client, frame, 1) for frame in frames))
    first = daemon.frames()
    assert 0 < len(first) < 10
    house.wait(5)
    assert first + daemon.frames() == frames
