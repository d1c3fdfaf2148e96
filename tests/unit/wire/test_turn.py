"""What is held back until the end of a reactor's turn: it leaves together, in order, and before whatever comes after it."""

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
        self.flags = 0  # of the last
        self.most: int | None = None  # bytes that one takes

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sends += 1
        self.flags = flags
        return self.real.send(data[: self.most])


class DirectMemory(DirectTransport, MemoryTransport):
    """A transport with a socket of its own, and memory for what that does not take."""


class Line:
    """An outbox that writes to a real socket while that takes it, and to Twisted's transport when it does not."""

    def __init__(self) -> None:
        self.turn = Turn()
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.sock: Any = Counted(ours)
        self.kept = bytearray()  # what went to the transport
        self.transport: Any = DirectMemory(Clock(), self.kept.extend)
        self.transport.socket = self.sock
        self.transport.protocol = self
        self.transport.window = 0
        self.outbox = Outbox(self.turn, self.transport)

    def connectionLost(self, reason: object) -> None:
        self.outbox.stopProducing()

    def got(self) -> bytes:
        """What the other end has received so far."""
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
    """As the reactor does."""
    turn.within, turn.running = True, hold


def end(turn: Turn) -> None:
    turn.within = turn.running = False
    turn.send()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    line.outbox.write(b"hello")  # ready from now on
    assert line.outbox.ready is line.sock and line.got() == b"hello"
    line.sock.sends = 0
    yield line
    end(line.turn)
    line.close()


def test_without_a_turn_everything_leaves_at_once(line: Line) -> None:
    line.outbox.hold(b"a")
    line.outbox.hold(b"b")
    assert line.got() == b"ab" and line.sock.sends == 2


def test_within_a_turn_it_leaves_together_at_the_end(line: Line) -> None:
    begin(line.turn, hold=True)
    for piece in (b"a", b"b", b"c"):
        line.outbox.hold(piece)
    assert line.got() == b"" and not line.outbox.idle
    line.turn.send()
    assert line.got() == b"abc" and line.sock.sends == 1 and line.outbox.idle


def test_whatever_is_written_otherwise_comes_after_it(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"a")
    line.outbox.write(b"b")
    assert line.got() == b"ab"
    line.outbox.hold(b"c")
    line.outbox.send_close(b"d", ends=False)  # a Close is held too
    assert line.got() == b"" and not line.outbox.drained
    line.turn.send()
    assert line.got() == b"c" + close(b"d") and line.outbox.drained


def test_what_the_transport_still_has_comes_first(line: Line) -> None:
    begin(line.turn, hold=True)
    while line.outbox.ready is not None:
        line.outbox.write(b"x" * 60_000)
    line.outbox.hold(b"after")  # the transport has bytes of the write before
    line.turn.send()
    line.transport.window = 1 << 30
    while line.transport.turn():
        pass
    assert line.kept.endswith(b"xafter") and line.outbox.idle


def test_what_is_held_is_bounded(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"x" * (MOST_HELD - 1))
    assert line.sock.sends == 0
    line.outbox.hold(b"y")
    assert line.sock.sends == 1 and line.turn.held == 0


def test_who_waits_for_the_end_of_the_turn_is_told_when_all_has_left(line: Line) -> None:
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


def test_the_last_words_before_the_end_are_said_at_once_and_may_share_its_segment(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.send_close(b"bye", ends=True)
    assert line.got() == close(b"bye") and line.sock.flags == socket.MSG_MORE and line.outbox.drained
    end(line.turn)
    assert line.sock.sends == 1


def test_last_words_keep_their_place_and_are_never_cut(line: Line) -> None:
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


def test_a_turn_that_holds_nothing_still_has_an_end(line: Line) -> None:
    seen: list[int] = []
    begin(line.turn, hold=False)
    line.turn.when_sent(lambda: seen.append(1))
    assert seen == []
    end(line.turn)
    assert seen == [1]


def test_a_connection_ends_at_once_only_outside_a_turn(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one, whoever reads it may be on the stack."""
    ended: list[object] = []
    monkeypatch.setattr(line.turn, "disconnect", ended.append)
    begin(line.turn, hold=False)
    line.turn.lose(line.transport)
    assert ended == [] and line.transport.disconnecting
    end(line.turn)
    line.turn.lose(line.transport)
    assert ended == [line.transport]


def test_without_a_way_to_end_a_connection_at_once_it_is_asked_to_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line.turn, "disconnect", None)
    line.turn.lose(line.transport)
    assert line.transport.disconnecting


def test_a_lost_connection_takes_it_along(line: Line) -> None:
    begin(line.turn, hold=True)
    line.outbox.hold(b"a")
    line.outbox.stopProducing()
    line.turn.send()
    assert line.got() == b""


def test_what_the_socket_does_not_take_goes_to_the_transport(line: Line) -> None:
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
def test_order_is_kept_whatever_is_mixed(steps: list[tuple[str, int]]) -> None:
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
