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
from viewport_relay.wire.outbox import MOST_HELD, TURN, Outbox


class Counted:
    """A socket that counts its sends."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.sends = 0
        self.flags = 0  # of the last
        self.most: int | None = None  # bytes that one takes

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sends += 1
        self.flags = flags
        return self.real.send(data[: self.most])


class Line:
    """An outbox that writes to a real socket while that takes it, and to Twisted's transport when it does not."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.sock: Any = Counted(ours)
        self.kept = bytearray()  # what went to the transport
        self.transport: Any = MemoryTransport(Clock(), self.kept.extend)
        self.transport.protocol = self
        self.transport.window = 0
        self.outbox = Outbox(self.transport, lambda: None)
        self.outbox.write_directly(self.transport, self.sock)

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


def begin(hold: bool) -> None:
    """As the dispatcher does."""
    TURN.within, TURN.running = True, hold


def end() -> None:
    TURN.within = TURN.running = False
    TURN.send()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    line.outbox.write(b"hello")  # ready from now on
    assert line.outbox.ready is line.sock and line.got() == b"hello"
    line.sock.sends = 0
    yield line
    end()
    line.close()


def test_without_a_turn_everything_leaves_at_once(line: Line) -> None:
    line.outbox.hold(b"a")
    line.outbox.hold(b"b")
    assert line.got() == b"ab" and line.sock.sends == 2


def test_within_a_turn_it_leaves_together_at_the_end(line: Line) -> None:
    begin(hold=True)
    for piece in (b"a", b"b", b"c"):
        line.outbox.hold(piece)
    assert line.got() == b"" and not line.outbox.idle
    TURN.send()
    assert line.got() == b"abc" and line.sock.sends == 1 and line.outbox.idle


def test_whatever_is_written_otherwise_comes_after_it(line: Line) -> None:
    begin(hold=True)
    line.outbox.hold(b"a")
    line.outbox.write(b"b")
    assert line.got() == b"ab"
    line.outbox.hold(b"c")
    line.outbox.write_last(b"d")  # a Close is held too
    assert line.got() == b"" and not line.outbox.drained
    TURN.send()
    assert line.got() == b"cd" and line.outbox.drained


def test_what_the_transport_still_has_comes_first(line: Line) -> None:
    begin(hold=True)
    while line.outbox.ready is not None:
        line.outbox.write(b"x" * 60_000)
    line.outbox.hold(b"after")  # the transport has bytes of the write before
    TURN.send()
    line.transport.window = 1 << 30
    while line.transport.turn():
        pass
    assert line.kept.endswith(b"xafter") and line.outbox.idle


def test_what_is_held_is_bounded(line: Line) -> None:
    begin(hold=True)
    line.outbox.hold(b"x" * (MOST_HELD - 1))
    assert line.sock.sends == 0
    line.outbox.hold(b"y")
    assert line.sock.sends == 1 and TURN.held == 0


def test_who_waits_for_the_end_of_the_turn_is_told_when_all_has_left(line: Line) -> None:
    seen: list[bytes] = []
    TURN.when_sent(lambda: seen.append(line.got()))
    assert seen == [b""]
    begin(hold=True)
    line.outbox.hold(b"a")
    TURN.when_sent(lambda: seen.append(line.got()))
    assert seen == [b""]
    TURN.send()
    TURN.send()
    assert seen == [b"", b"a"]


def test_the_last_words_before_the_end_are_said_at_once_and_may_share_its_segment(line: Line) -> None:
    begin(hold=True)
    line.outbox.write_last(b"bye", ends=True)
    assert line.got() == b"bye" and line.sock.flags == socket.MSG_MORE and line.outbox.drained
    end()
    assert line.sock.sends == 1


def test_last_words_keep_their_place_and_are_never_cut(line: Line) -> None:
    begin(hold=True)
    line.outbox.hold(b"a")
    line.outbox.write_last(b"bye", ends=True)
    end()
    assert line.got() == b"abye" and line.sock.flags == 0
    line.sock.most = 1
    line.outbox.write_last(b"bye", ends=True)
    line.transport.window = 1 << 30
    while line.transport.turn():
        pass
    assert line.got() + line.kept == b"bye" and line.outbox.idle


def test_a_turn_that_holds_nothing_still_has_an_end() -> None:
    seen: list[int] = []
    begin(hold=False)
    TURN.when_sent(lambda: seen.append(1))
    assert seen == []
    end()
    assert seen == [1]


def test_a_connection_ends_at_once_only_outside_a_turn(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one, whoever reads it may be on the stack."""
    ended: list[object] = []
    monkeypatch.setattr(TURN, "disconnect", ended.append)
    begin(hold=False)
    TURN.lose(line.transport)
    assert ended == [] and line.transport.disconnecting
    end()
    TURN.lose(line.transport)
    assert ended == [line.transport]


def test_without_a_way_to_end_a_connection_at_once_it_is_asked_to_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TURN, "disconnect", None)
    TURN.lose(line.transport)
    assert line.transport.disconnecting


def test_a_lost_connection_takes_it_along(line: Line) -> None:
    begin(hold=True)
    line.outbox.hold(b"a")
    line.outbox.stopProducing()
    TURN.send()
    assert line.got() == b""


def test_what_the_socket_does_not_take_goes_to_the_transport(line: Line) -> None:
    begin(hold=True)
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
        begin(hold=True)
        for number, (kind, size) in enumerate(steps):
            data = b"%03d" % number * size
            if kind == "turn":
                TURN.send()
            elif kind == "write":
                line.outbox.write(data)
                sent += data
            else:
                line.outbox.hold(data)
                sent += data
        end()
        assert line.got() == sent
    finally:
        end()
        line.close()
