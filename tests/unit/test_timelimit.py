"""Time limits on answers: what has arrived counts, however late this process reads it."""

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
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from viewport_relay.timelimit import add_time_limit


class _Reader(Protocol):
    """Calls `read` with what comes."""

    def __init__(self, read: Callable[[bytes], None]) -> None:
        self._read = read

    def dataReceived(self, data: bytes) -> None:
        self._read(data)


@contextmanager
def reading(read: Callable[[bytes], None]) -> Iterator[socket.socket]:
    """The other end of a connection that the reactor reads from."""
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
async def test_an_answer_that_came_during_a_long_turn_is_taken() -> None:
    reactor: Any = _reactor
    answer: Deferred[bytes] = Deferred()
    with reading(answer.callback) as server:

        def long_turn(_: bytes) -> None:
            server.send(b"answer")
            time.sleep(0.3)  # the limit is over before anything is read again

        with reading(long_turn) as other:
            waiting = add_time_limit(answer, 0.1, reactor, _expired)
            other.send(b"work")
            assert await waiting == b"answer"


def test_without_an_answer_the_time_is_over() -> None:
    clock = Clock()
    waiting: Deferred[bytes] = Deferred()
    results: list[Any] = []
    add_time_limit(waiting, 2.0, clock, _expired).addBoth(results.append)
    clock.advance(1.9)
    assert results == []
    clock.advance(0.2)
    assert results[0].check(TimeoutError)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("after", [0.5, 2.0])
def test_nothing_is_left_behind_after_an_answer(after: float) -> None:
    clock = Clock()
    waiting: Deferred[bytes] = Deferred()
    results: list[Any] = []
    add_time_limit(waiting, 2.0, clock, _expired).addBoth(results.append)
    clock.callLater(after, waiting.callback, b"answer")
    clock.advance(after)
    assert results == [b"answer"] and clock.getDelayedCalls() == []
