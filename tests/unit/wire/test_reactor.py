"""RelayReactor: direct dispatch of socket events, and when control returns to Twisted's main loop."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python import log

from viewport_relay.wire.reactor import LOW_PRIORITY_SECONDS, MOST_ACCEPTS, RelayReactor
from viewport_relay.wire.turn import Turn, turn_of


class Selectable:
    """A selectable that reads one byte at a time."""

    def __init__(self, turn: Turn, handler: Callable[[], object] = lambda: None) -> None:
        self.turn = turn
        self.ours, self.theirs = socket.socketpair()
        self.handler = handler
        self.read = 0
        self.turns: list[bool] = []
        self.lost: Any = None

    def fileno(self) -> int:
        return self.ours.fileno()

    def doRead(self) -> object:
        self.ours.recv(1)
        self.read += 1
        self.turns.append(self.turn.running)
        return self.handler()

    def connectionLost(self, reason: Any) -> None:
        self.lost = reason

    def logPrefix(self) -> str:
        return "test"


class Bench:
    """A reactor that is marked as running, and its readers."""

    def __init__(self) -> None:
        self.reactor: Any = RelayReactor()
        self.reactor.running = True
        self.readers: list[Selectable] = []

    def reader(self, said: bytes, handler: Callable[[], object] = lambda: None) -> Selectable:
        reader = Selectable(self.reactor.turn, handler)
        self.reactor.addReader(reader)
        reader.theirs.send(said)
        self.readers.append(reader)
        return reader

    def iterate(self, seconds: float) -> float:
        """Run one iteration; returns its duration in seconds."""
        began = time.monotonic()
        self.reactor.doIteration(seconds)
        return time.monotonic() - began

    def close(self) -> None:
        self.reactor.removeAll()
        for reader in self.readers:
            reader.ours.close()
            reader.theirs.close()
        self.reactor._poller.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert not bench.reactor.turn.running
    bench.close()


def test_the_turn_of_another_reactor_never_runs() -> None:
    turn = turn_of(Clock())
    assert turn.disconnect is None and turn_of(Clock()) is not turn


def test_the_clock_is_monotonic(bench: Bench) -> None:
    assert abs(bench.reactor.seconds() - time.monotonic()) < 1


def test_several_sockets_make_a_turn_and_one_makes_none(bench: Bench) -> None:
    readers = [bench.reader(b"1") for _ in range(3)]
    bench.iterate(0)
    assert [reader.turns for reader in readers] == [[True]] * 3
    readers[0].theirs.send(b"2")
    bench.iterate(0)
    assert readers[0].turns == [True, False]


def test_end_closes_a_connection_at_once(bench: Bench) -> None:
    reader = bench.reader(b"")
    bench.reactor.end(reader)
    assert reader.lost.check(ConnectionDone) and reader not in bench.reactor.getReaders()


def test_polling_repeats_while_only_sockets_have_events(bench: Bench) -> None:
    reader = bench.reader(b"12345")
    took = bench.iterate(0.05)
    assert reader.read == 5 and 0.04 < took < 1


def test_without_time_one_poll(bench: Bench) -> None:
    reader = bench.reader(b"12345")
    bench.iterate(0)
    assert reader.read == 1


ASKS: dict[str, Callable[[Any], object]] = {
    "a timer": lambda reactor: reactor.callLater(60, lambda: None),
    "a call from a thread": lambda reactor: reactor.threadCallQueue.append((print, (), {})),
    "stop": lambda reactor: setattr(reactor, "_justStopped", True),
    "crash": lambda reactor: setattr(reactor, "running", False),
}


@pytest.mark.parametrize("name", ASKS)
def test_a_request_to_the_reactor_ends_the_iteration(bench: Bench, name: str) -> None:
    reader = bench.reader(b"123", lambda: ASKS[name](bench.reactor) and None)
    assert bench.iterate(30) < 5
    assert reader.read == 1
    bench.reactor.threadCallQueue.clear()


def test_a_timer_is_not_missed(bench: Bench) -> None:
    """A timer that is moved forward during the iteration counts, too."""
    far = bench.reactor.callLater(60, lambda: None)
    bench.reactor.runUntilCurrent()
    bench.reader(b"1", lambda: far.reset(0.05))
    took = bench.iterate(30)
    assert 0.04 < took < 5
    far.cancel()


@pytest.mark.parametrize("fault", [ValueError("of a handler"), KeyboardInterrupt()], ids=type)
def test_an_exception_of_a_handler_ends_its_connection_only(bench: Bench, fault: BaseException) -> None:
    def fail() -> None:
        raise fault

    seen: list[Any] = []
    log.addObserver(seen.append)
    try:
        bad, good = bench.reader(b"1", fail), bench.reader(b"1")
        bench.iterate(0)
    finally:
        log.removeObserver(seen.append)
    assert bad.lost is not None and good.lost is None and good.read == 1
    assert any(event.get("isError") for event in seen)


def test_a_reason_returned_by_a_handler_ends_its_connection(bench: Bench) -> None:
    why = ValueError("over")
    reader = bench.reader(b"1", lambda: why)
    bench.iterate(0)
    assert reader.lost is not None


def test_work_of_low_priority_that_is_left_begins_the_next_turn_without_sleep(bench: Bench) -> None:
    # A clock of its own: on a busy machine the time of a turn may pass before its first piece of work.
    clock, done = Clock(), list[bool]()
    bench.reactor.seconds = clock.seconds
    turn = bench.reactor.turn

    def work() -> None:
        done.append(turn.running)  # what it sends is held
        clock.advance(LOW_PRIORITY_SECONDS)
        if len(done) < 3:
            turn.later(work)
        else:
            bench.reactor.threadCallQueue.append((print, (), {}))  # ends the iteration

    reader = bench.reader(b"1", lambda: turn.later(work))
    for _ in range(2):  # a round without events goes back to the timers
        assert bench.iterate(30) < 5
    assert done == [True] * 3 and reader.read == 1
    bench.reactor.threadCallQueue.clear()


def test_an_exception_in_work_of_low_priority_is_logged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[object] = []
    monkeypatch.setattr(log, "err", lambda: logged.append(True))
    done: list[int] = []

    def read() -> None:
        bench.reactor.turn.later(lambda: 1 // 0)
        bench.reactor.turn.later(lambda: done.append(1))

    bench.reader(b"1", read)
    bench.iterate(0)
    assert logged == [True] and done == [1]


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_the_number_of_accepts_per_turn_is_bounded_and_peers_are_served_between_them(
    family: str, tmp_path: Path
) -> None:
    reactor = RelayReactor()
    reactor.running = True
    factory = Factory()
    made: list[Protocol] = []

    def build(address: object) -> Protocol:
        made.append(Protocol())
        return made[-1]

    factory.buildProtocol = build  # type: ignore[method-assign,assignment]
    if family == "tcp":
        port = reactor.listenTCP(0, factory, backlog=100, interface="127.0.0.1")
        kind, address = socket.AF_INET, ("127.0.0.1", port.getHost().port)
    else:
        port = reactor.listenUNIX(str(tmp_path / "socket"), factory, backlog=100)
        kind, address = socket.AF_UNIX, str(tmp_path / "socket")
    looks: list[int] = []
    reactor.turn.look = lambda: looks.append(len(made))
    crowd = [socket.socket(kind) for _ in range(3 * MOST_ACCEPTS)]
    try:
        for each in crowd:
            each.connect(address)
        for turn in (1, 2, 3):
            reactor.iterate(0)
            assert len(made) == turn * MOST_ACCEPTS
        assert set(looks) == {
            number + 1 for number in range(len(made))
        }  # peers are served between two accepts
    finally:
        for each in crowd:
            each.close()
        for protocol in made:
            protocol.transport.abortConnection()  # type: ignore[union-attr]
        port.stopListening()
