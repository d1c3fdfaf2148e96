"""Outbox of a connection: order, fairness, back-pressure, closing.

The transport is Twisted's `FileDescriptor` over memory (tests/memorywire.py), with its real pausing and resuming.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.memorywire import MemoryTransport
from viewport_relay.wire.outbox import HIGH_WATER, Outbox
from viewport_relay.wire.turn import Turn

BIG = b"x" * (HIGH_WATER + 1)
BYE = b"\x88\x03bye"  # a Close frame


class Feeder:
    """A source whose reading is paused while its lane holds messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused: set[object] = set()
        self.log: list[str] = []
        self.on_resume: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return self.name

    def pause_reading(self, cause: object) -> None:
        assert cause not in self.paused
        self.paused.add(cause)
        self.log.append("pause")

    def resume_reading(self, cause: object) -> None:
        self.paused.discard(cause)
        self.log.append("resume")
        self.on_resume()


class Line:
    """An outbox on a transport whose peer reads only in `take`."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.resumed = 0
        self.transport = MemoryTransport(Clock(), self.got.extend)
        self.transport.protocol = self
        self.transport.window = 0
        self.outbox = Outbox(Turn(), self.transport)
        self.outbox.on_idle = self._resumed

    def _resumed(self) -> None:
        self.resumed += 1

    def connectionLost(self, reason: object) -> None:
        self.outbox.stopProducing()

    def take(self, size: int = 1 << 60) -> bytes:
        """Let the peer read up to `size` bytes; returns these bytes."""
        begin = len(self.got)
        self.transport.window = size
        while self.transport.turn():
            pass
        self.transport.window = 0
        return bytes(self.got[begin:])

    def fill(self) -> None:
        """Write more than the transport's high-water mark."""
        self.outbox.write(BIG)
        assert self.outbox.blocked

    def drain_filling(self) -> bytes:
        """Read everything; returns the bytes after those of `fill`."""
        return self.take()[len(BIG) :]


def test_messages_are_sent_in_order() -> None:
    line = Line()
    for number in range(100):
        line.outbox.write(b"%03d" % number)
    assert line.take() == b"".join(b"%03d" % number for number in range(100))
    assert line.outbox.idle
    assert line.outbox.pending <= HIGH_WATER


def test_past_the_high_water_mark_messages_are_queued() -> None:
    line = Line()
    while not line.outbox.blocked:
        line.outbox.write(b"a" * 1000)
    assert HIGH_WATER < line.transport.unsent <= HIGH_WATER + 1000
    line.outbox.write(b"b" * 500)
    line.outbox.write(b"c" * 500)
    assert line.outbox.queued == 1000
    assert line.transport.unsent + 1000 <= line.outbox.pending <= line.transport.unsent + 2000
    assert not line.outbox.idle
    assert line.resumed == 0
    assert line.take().endswith(b"a" * 1000 + b"b" * 500 + b"c" * 500)
    assert (line.outbox.queued, line.outbox.blocked, line.outbox.idle) == (0, False, True)
    assert line.resumed == 1


def test_a_feeder_is_paused_exactly_while_its_lane_holds_messages() -> None:
    line, one, two = Line(), Feeder("one"), Feeder("two")
    line.outbox.write(b"x", one)
    assert one.log == []
    line.fill()
    line.outbox.write(b"1", one)
    line.outbox.write(b"2", one)
    assert (one.log, two.log) == (["pause"], [])
    line.outbox.write(b"3", two)
    assert two.log == ["pause"]
    line.take()
    assert line.got.endswith(b"x132")
    assert (one.log, two.log) == (["pause", "resume"], ["pause", "resume"])
    assert not one.paused
    assert not two.paused


def test_round_robin_a_flood_delays_other_lanes_by_one_message() -> None:
    line, flood, quiet = Line(), Feeder("flood"), Feeder("quiet")
    line.fill()
    for _ in range(1000):
        line.outbox.write(b"F" * 100, flood)
    line.outbox.write(b"q", quiet)
    line.outbox.write(b"Q", quiet)
    line.outbox.write(b"p")  # a frame of the connection itself, a pong
    after = line.drain_filling()
    assert after.startswith(b"F" * 100 + b"q" + b"p" + b"F" * 100 + b"Q" + b"F" * 100)
    assert after.count(b"F") == 100_000


def test_a_new_lane_gets_its_turn_during_a_flood() -> None:
    line, flood, late = Line(), Feeder("flood"), Feeder("late")
    line.fill()
    for _ in range(10):
        line.outbox.write(b"F" * HIGH_WATER, flood)
    line.take(len(BIG))  # the transport resumes and takes two of the flood's messages
    line.outbox.write(b"late", late)
    rest = line.take()
    assert rest.index(b"late") <= 3 * HIGH_WATER
    assert rest.count(b"F") == 10 * HIGH_WATER


def test_a_feeder_that_writes_in_its_resume_callback_keeps_its_order() -> None:
    line, feeder = Line(), Feeder("feeder")
    line.fill()
    line.outbox.write(b"1", feeder)
    feeder.on_resume = lambda: line.outbox.write(b"2", feeder)
    assert line.drain_filling() == b"12"


def test_forgetting_a_feeder_drops_its_lane_only() -> None:
    line, gone, there = Line(), Feeder("gone"), Feeder("there")
    line.fill()
    line.outbox.write(b"a", gone)
    line.outbox.write(b"b", there)
    line.outbox.write(b"c", gone)
    line.outbox.forget(gone)
    line.outbox.forget(Feeder("stranger"))
    assert line.outbox.queued == 1
    assert line.drain_filling() == b"b"
    assert line.outbox.idle


def test_the_close_frame_follows_all_queued_messages() -> None:
    line, feeder = Line(), Feeder("feeder")
    line.fill()
    line.outbox.write(b"1", feeder)
    line.outbox.send_close(b"bye", ends=False)
    line.outbox.write(b"2")
    assert line.drain_filling() == b"12" + BYE
    assert line.resumed == 1

    line = Line()
    line.outbox.write(b"1")
    line.outbox.send_close(b"bye", ends=False)
    assert line.take() == b"1" + BYE


def test_a_lost_connection_drops_its_queue_and_resumes_the_feeders() -> None:
    line, feeder = Line(), Feeder("feeder")
    line.fill()
    line.outbox.write(b"1", feeder)
    line.outbox.send_close(b"bye", ends=False)
    line.transport.vanish()
    assert not feeder.paused
    assert (line.outbox.queued, line.outbox.pending) == (0, 0)
    assert line.take() == b""
    assert line.resumed == 0


feeders = st.sampled_from(["", "a", "b", "c"])
moves = st.lists(
    st.one_of(
        st.tuples(st.just("write"), feeders, st.integers(1, 3 * HIGH_WATER)),
        st.tuples(st.just("take"), st.just(""), st.integers(1, 4 * HIGH_WATER)),
        st.tuples(st.just("forget"), st.sampled_from(["a", "b", "c"]), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(moves)
def test_each_feeders_order_is_kept_without_loss_or_duplicates(steps: list[tuple[str, str, int]]) -> None:
    line = Line()
    known = {name: Feeder(name) for name in "abc"}
    written: dict[str, list[bytes]] = {name: [] for name in ("", *known)}
    forgotten: dict[str, set[bytes]] = {name: set() for name in known}
    total = 0
    for what, name, size in steps:
        if what == "take":
            line.take(size)
        elif what == "forget":
            queued = line.outbox.queued
            line.outbox.forget(known[name])
            dropped = queued - line.outbox.queued
            for message in reversed(written[name]):  # the last ones waited
                if dropped:
                    forgotten[name].add(message)
                    dropped -= len(message)
            assert not dropped
            known[name] = Feeder(name)
        else:
            total += 1
            message = b"<%s %06d %s>" % (name.encode(), total, b"." * size)
            written[name].append(message)
            line.outbox.write(message, known.get(name))
        waiting_for = line.outbox._lanes.feeders if line.outbox._lanes is not None else ()
        for feeder in known.values():
            assert bool(feeder.paused) == (feeder in waiting_for)
    line.take()
    assert line.outbox.idle
    assert line.outbox.queued == 0
    for name, messages in written.items():
        lost = forgotten.get(name, set())
        got = [message for message in messages if message in line.got]
        assert got == [message for message in messages if message not in lost]
        places = [line.got.index(message) for message in got]
        assert places == sorted(places)
    assert len(line.got) == sum(
        len(m) for name, ms in written.items() for m in ms if m not in forgotten.get(name, set())
    )
