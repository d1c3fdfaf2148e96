"""Bytes held until the end of the reactor's turn: sent together, in order, ahead of later writes."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.memorywire import MemoryTransport
from viewport_relay.wire.outbox import Outbox
from viewport_relay.wire.transport import DirectTransport
from viewport_relay.wire.turn import MOST_HELD, Turn


class Counted:
    """A socket that counts its sends."""

    family = socket.AF_UNIX

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.sends = 0
        self.flags = 0  # of the last send
        self.most: int | None = None  # limit of bytes per send

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sends += 1
        self.flags = flags
        return self.real.send(data[: self.most])


class DirectMemory(DirectTransport, MemoryTransport):
    """A transport with a real socket, and memory for the bytes that the socket does not accept."""


class Line:
    """An outbox that writes to a real socket, and to Twisted's transport when the socket is full."""

    def __init__(self) -> None:
        self.turn = Turn()
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.sock: Any = Counted(ours)
        self.kept = bytearray()  # bytes written through the transport
        self.transport: Any = DirectMemory(Clock(), self.kept.extend)
        self.transport.socket = self.sock
        self.transport.protocol = self
        self.transport.window = 0
        self.outbox = Outbox(self.turn, self.transport)

    def connectionLost(self, reason: object) -> None:
        self.outbox.stopProducing()

    def got(self) -> bytes:
        """Bytes that the peer has received so far."""
        received = b""
        while select.select([self.peer], [], [], 0)[0]:
            received += self.peer.recv(1 << 20)
        return received

    def close(self) -> None:
        self.sock.real.close()
        self.peer.close()


def close(payload: bytes) -> bytes:
    """The Close frame with this payload."""
    return bytes((0x88, len(payload))) + payload


def begin(turn: Turn, hold: bool) -> None:
    """Begin a turn as the reactor does."""
    turn.within, turn.running = True, hold


def end(turn: Turn) -> None:
    turn.within = turn.running = False
    turn.send()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    line.outbox.write(b"hello")  # ready for direct writes
    assert line.outbox.ready is line.sock and line.got() == b"hello"
    line.sock.sends = 0
    yield line
    end(line.turn)
    line.close()


def test_without_a_turn_bytes_are_sent_at_once(line: Line) -> None:
    line.outbox.hold(b"a")
    line.outbox.hold(b"b")
    assert line.got() == b"ab" and line.sock.sends == 2


def test_within_a_turn_bytes_are_sent_together_at_its_end(line: Line) -> None:
    begin(line.turn, hold=True)
    for piece in (b"a", b"b", b"c"):
        line.outbox.hold(piece)
    assert line.got() == b"" and not line.outbox.idle
    line.turn.send()
    assert line.got() == b"abc" and line.sock.sends == 1 and line.outbox.idle


def test_direct_writes_follow_held_bytes(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"a")
    line.outbox.write(b"b")
    assert line.got() == b"ab"
    line.outbox.hold(b"c")
    line.outbox.send_close(b"d", ends=False)  # a Close frame is held, too
    assert line.got() == b"" and not line.outbox.drained
    line.turn.send()
    assert line.got() == b"c" + close(b"d") and line.outbox.drained


def test_held_bytes_follow_those_in_the_transport(line: Line) -> None:
    begin(line.turn, hold=True)
    while line.outbox.ready is not None:
        line.outbox.write(b"x" * 60_000)
    line.outbox.hold(b"after")  # the transport still has bytes of the last write
    line.turn.send()
    line.transport.window = 1 << 30
    while line.transport.turn():
        pass
    assert line.kept.endswith(b"xafter") and line.outbox.idle


def test_held_bytes_are_bounded(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"x" * (MOST_HELD - 1))
    assert line.sock.sends == 0
    line.outbox.hold(b"y")
    assert line.sock.sends == 1 and line.turn.held == 0


def test_when_sent_callbacks_run_after_the_send(line: Line) -> None:
    seen: list[bytes] = []
    line.turn.when_sent(lambda: seen.append(line.got()))
    assert seen == [b""]
    begin(line.turn, hold=True)
    line.outbox.hold(b"a")
    line.turn.when_sent(lambda: seen.append(line.got()))
    assert seen == [b""]
    line.turn.send()
    line.turn.send()
    assert seen == [b"", b"a"]


def test_a_last_close_frame_is_sent_at_once_with_msg_more(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.send_close(b"bye", ends=True)
    assert line.got() == close(b"bye") and line.sock.flags == socket.MSG_MORE and line.outbox.drained
    end(line.turn)
    assert line.sock.sends == 1


def test_a_last_close_frame_keeps_its_place_and_is_never_truncated(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"a")
    line.outbox.send_close(b"bye", ends=True)
    end(line.turn)
    assert line.got() == b"a" + close(b"bye") and line.sock.flags == 0
    line.sock.most = 1
    line.outbox.send_close(b"bye", ends=True)
    line.transport.window = 1 << 30
    while line.transport.turn():
        pass
    assert line.got() + line.kept == close(b"bye") and line.outbox.idle


def test_a_turn_without_held_bytes_runs_its_callbacks(line: Line) -> None:
    seen: list[int] = []
    begin(line.turn, hold=False)
    line.turn.when_sent(lambda: seen.append(1))
    assert seen == []
    end(line.turn)
    assert seen == [1]


def test_a_connection_is_closed_at_once_only_outside_a_turn(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a turn the connection's own read may be on the stack."""
    ended: list[object] = []
    monkeypatch.setattr(line.turn, "disconnect", ended.append)
    begin(line.turn, hold=False)
    line.turn.lose(line.transport)
    assert ended == [] and line.transport.disconnecting
    end(line.turn)
    line.turn.lose(line.transport)
    assert ended == [line.transport]


def test_without_disconnect_a_connection_loses_its_transport(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line.turn, "disconnect", None)
    line.turn.lose(line.transport)
    assert line.transport.disconnecting


def test_a_lost_connection_drops_held_bytes(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"a")
    line.outbox.stopProducing()
    line.turn.send()
    assert line.got() == b""


def test_bytes_that_the_socket_does_not_accept_go_to_the_transport(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"x" * (MOST_HELD - 1))
    line.outbox.write(b"")
    while line.outbox.ready is not None:
        line.outbox.write(b"x" * 60_000)
    before = len(line.got())
    line.transport.window = 1 << 30
    while line.transport.turn():
        pass
    assert line.kept and not line.kept.strip(b"x") and before


Step = st.tuples(st.sampled_from(["hold", "write", "turn"]), st.integers(1, 3))


@settings(max_examples=200, deadline=None)
@given(st.lists(Step, max_size=30))
def test_any_mix_of_writes_keeps_the_order(steps: list[tuple[str, int]]) -> None:
    line = Line()
    line.outbox.write(b"")
    sent = b""
    try:
        begin(line.turn, hold=True)
        for number, (kind, size) in enumerate(steps):
            data = b"%03d" % number * size
            if kind == "turn":
                line.turn.send()
            elif kind == "write":
                line.outbox.write(data)
                sent += data
            else:
                line.outbox.hold(data)
                sent += data
        end(line.turn)
        assert line.got() == sent
    finally:
        end(line.turn)
        line.close()
