"""Frames that one read brings leave in one write, through the codec as on the fast path, over a Noise link as without."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.memorywire import BINARY, TEXT, FrameReader, MemoryRelay, masked_frame
from tests.unit.noise.wirelink import LinkOnTheWire, relay
from tests.unit.wire.test_turn import Counted, DirectMemory, begin, end
from tests.wireframes import encoded
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.wire.connection import ConnectionInfo


class CountedWrites(Counted):
    """A socket that counts its sends, and is never read."""

    def recv_into(self, space: memoryview) -> int:
        raise BlockingIOError


class DaemonOnASocket:
    """A daemon whose connection writes to a real socket, so that the writes can be counted."""

    def __init__(self, house: MemoryRelay) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.sock = CountedWrites(ours)
        transport: Any = DirectMemory(house.clock, lambda data: None)
        transport.socket = self.sock
        connection = house.factory.open(transport, b"", ConnectionInfo("daemon", "127.0.0.1"))
        claims = Claims(workspace_id="w", runtime_target_id="t")
        house.relaying.sessions.opened(connection, UpgradeQuery(Role.DAEMON, "w", "t"), claims)
        self.reader = FrameReader()

    def heard(self) -> list[bytes]:
        return [payload for _, payload, _ in self.reader.feed(self.peer.recv(1 << 20))]

    def close(self) -> None:
        self.sock.real.close()
        self.peer.close()


@pytest.fixture(params=["1", "0"], ids=["fast path", "codec"])
def house(request: pytest.FixtureRequest) -> MemoryRelay:
    return relay(RELAY_FAST_PATH=request.param)


@pytest.fixture
def daemon(house: MemoryRelay) -> Iterator[DaemonOnASocket]:
    daemon = DaemonOnASocket(house)
    yield daemon
    daemon.close()


FRAMES = [encoded("e2ee", seq=number) for number in range(1, 33)]


@pytest.mark.parametrize("linked", [False, True])
def test_frames_of_one_read_leave_in_one_write(
    house: MemoryRelay, daemon: DaemonOnASocket, linked: bool
) -> None:
    peer: Any = LinkOnTheWire(house) if linked else house.client()
    if linked:
        peer.establish()
    peer.raw(
        b"".join(sent(peer, frame) for frame in FRAMES[:1])
    )  # the first write finds that the socket takes it
    assert daemon.heard() == FRAMES[:1]
    daemon.sock.sends = 0
    begin(house.factory.turn, hold=False)  # one socket is to be read
    peer.raw(b"".join(sent(peer, frame) for frame in FRAMES[1:]))
    end(house.factory.turn)
    assert daemon.heard() == FRAMES[1:] and daemon.sock.sends == 1


def sent(peer: Any, frame: bytes) -> bytes:
    """The frame as this peer sends it."""
    if isinstance(peer, LinkOnTheWire):
        return masked_frame(BINARY, peer.initiator.seal(frame))
    return masked_frame(TEXT, frame)
