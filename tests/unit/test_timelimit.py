"""Time limits on Deferreds: an answer that arrived in time counts, even if a long turn delays its read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from viewport_relay.timelimit import TimeLimits


class _Reader(Protocol):
    """Calls `read` with received bytes."""

    def __init__(self, read: Callable[[bytes], None]) -> None:
        self._read = read

    def dataReceived(self, data: bytes) -> None:
        self._read(data)


@contextmanager
def reading(read: Callable[[bytes], None]) -> Iterator[socket.socket]:
    """The other end of a connection that the reactor reads."""
    reactor: Any = _reactor
    protocol = _Reader(read)
    factory = Factory()
    factory.buildProtocol = lambda address: protocol  # type: ignore[method-assign,assignment]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        yield theirs
        transport: Any = protocol.transport
        transport.abortConnection()


def _expired(result: object, seconds: float) -> bytes:
    raise TimeoutError(f"{seconds:g} s")


@pytest_twisted.ensureDeferred
async def test_an_answer_that_arrived_during_a_long_turn_is_accepted() -> None:
    reactor: Any = _reactor
    answer: Deferred[bytes] = Deferred()
    with reading(answer.callback) as server:

        def long_turn(_: bytes) -> None:
            server.send(b"answer")
            time.sleep(0.3)  # the limit expires before the next read

        with reading(long_turn) as other:
            limits: Any = TimeLimits(reactor)
            waiting = answer.addTimeout(0.1, limits, _expired)
            other.send(b"work")
            assert await waiting == b"answer"
            limits.stop()


def test_without_an_answer_the_limit_expires() -> None:
    clock = Clock()
    waiting: Deferred[bytes] = Deferred()
    results: list[Any] = []
    limits: Any = TimeLimits(clock)
    waiting.addTimeout(2.0, limits, _expired).addBoth(results.append)
    clock.advance(1.9)
    assert results == []
    clock.advance(0.2)
    assert results[0].check(TimeoutError)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("after", [0.5, 2.0])
def test_no_timer_is_left_after_an_answer(after: float) -> None:
    clock = Clock()
    waiting: Deferred[bytes] = Deferred()
    results: list[Any] = []
    limits: Any = TimeLimits(clock)
    waiting.addTimeout(2.0, limits, _expired).addBoth(results.append)
    limits.stop()
    clock.callLater(after, waiting.callback, b"answer")
    clock.advance(after)
    assert results == [b"answer"] and clock.getDelayedCalls() == []


class Limits:
    """Time limits on a clock, and the names of the calls that were made, with their times."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.limits = TimeLimits(self.clock)
        self.made: list[tuple[str, float]] = []

    def call(self, name: str, delay: float) -> Any:
        return self.limits.callLater(delay, lambda: self.made.append((name, self.clock.seconds())))

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds / 0.5))


def test_each_call_is_made_at_its_time() -> None:
    limits = Limits()
    limits.call("a", 2)
    limits.wait(0.5)
    limits.call("b", 2)
    limits.call("c", 1)
    limits.call("at once", 0)
    limits.wait(5)
    assert limits.made == [("at once", 1.0), ("c", 1.5), ("a", 2.0), ("b", 2.5)]
    assert not limits.clock.getDelayedCalls()


def test_many_calls_of_one_delay_are_one_of_the_reactor() -> None:
    limits = Limits()
    calls = [limits.call(str(number), 2) for number in range(100)]
    assert len(limits.clock.getDelayedCalls()) == 1
    for call in calls[:-1]:
        call.cancel()
    limits.wait(3)
    assert limits.made == [("99", 2.0)]


def test_a_call_that_is_cancelled_or_made_is_over() -> None:
    limits = Limits()
    cancelled, made = limits.call("cancelled", 1), limits.call("made", 1)
    assert cancelled.active() and made.active()
    cancelled.cancel()
    limits.wait(1)
    assert limits.made == [("made", 1.0)] and not cancelled.active() and not made.active()
    with pytest.raises(AlreadyCancelled):
        cancelled.cancel()
    with pytest.raises(AlreadyCalled):
        made.cancel()
    with pytest.raises(AlreadyCalled):
        made.reset(1)


def test_a_call_that_is_set_anew() -> None:
    limits = Limits()
    call = limits.call("late", 2)
    limits.call("other", 2)
    limits.wait(1)
    call.reset(2)
    limits.wait(3)
    assert limits.made == [("other", 2.0), ("late", 3.0)]
    limits.call("sooner", 2).reset(0.5)
    limits.wait(3)
    assert limits.made[-1] == ("sooner", 4.5)


def test_after_the_stop_no_delayed_call_is_left_for_nothing() -> None:
    limits = Limits()
    limits.call("before", 2).cancel()
    assert len(limits.clock.getDelayedCalls()) == 1
    last = limits.call("last", 3)
    limits.limits.stop()
    assert len(limits.clock.getDelayedCalls()) == 1
    last.cancel()
    assert not limits.clock.getDelayedCalls()
    limits.call("after", 1).cancel()
    assert not limits.clock.getDelayedCalls()
