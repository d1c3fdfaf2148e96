"""FairQueue: no delay when idle, otherwise round-robin by key, within the reactor's time for work of low priority."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tests.memorywire import timed_calls
from viewport_relay.wire.fairqueue import FairQueue


class Work:
    """A queue, and the names of the work that it has run."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = FairQueue(self.clock)
        self.done: list[str] = []

    def piece(self, name: str, also: Callable[[], object] = lambda: None) -> Callable[[], None]:
        def work() -> None:
            self.done.append(name)
            also()

        return work

    def add(self, key: str, name: str) -> None:
        self.queue.run(key, self.piece(name))

    def waiter(self, key: str, name: str) -> Deferred[None]:
        turn = self.queue.turn(key).addCallback(lambda _: self.done.append(name))
        return turn.addErrback(lambda failure: failure.trap(CancelledError))

    def turns(self, number: int = 1) -> None:
        for _ in range(number):
            timed_calls(self.clock)


def test_an_idle_queue_runs_work_at_once() -> None:
    work = Work()
    for n in range(3):
        work.add("a", f"a{n}")
        assert work.done[-1] == f"a{n}"
        work.turns()
    assert work.clock.getDelayedCalls() == []


def test_keys_take_turns() -> None:
    work = Work()
    for n in range(4):
        work.add("greedy", f"greedy{n}")
    work.add("modest", "modest0")
    assert work.done == ["greedy0"]
    work.turns(3)
    assert work.done == ["greedy0", "greedy1", "modest0", "greedy2"]
    work.turns(2)
    assert work.done[4:] == ["greedy3"] and work.clock.getDelayedCalls() == []


def test_work_that_is_added_while_work_runs_has_a_later_place() -> None:
    work = Work()
    work.queue.run("a", work.piece("first", lambda: work.add("a", "second")))
    assert work.done == ["first"]
    work.turns()
    assert work.done == ["first", "second"]


def test_a_turn_within_work_of_the_same_key_is_at_once() -> None:
    work = Work()
    work.queue.run("a", work.piece("read", lambda: (work.waiter("a", "answered"), work.waiter("b", "other"))))
    assert work.done == ["read", "answered"]
    work.turns()
    assert work.done == ["read", "answered", "other"]


def test_a_cancelled_waiter_takes_no_turn() -> None:
    work = Work()
    work.add("a", "first")
    work.waiter("a", "left").cancel()
    work.waiter("a", "next")
    work.turns(2)  # the first comes to nothing
    assert work.done == ["first", "next"]


def test_a_stopped_queue_drops_what_waits() -> None:
    work = Work()
    work.add("a", "first")
    work.add("a", "late")
    work.queue.stop()
    work.turns()
    assert work.done == ["first"] and work.clock.getDelayedCalls() == []


def test_an_exception_does_not_stop_the_queue() -> None:
    work = Work()
    work.add("a", "first")
    work.queue.run("a", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    work.add("b", "other")
    with pytest.raises(ZeroDivisionError):
        work.turns()
    work.turns(2)
    assert work.done == ["first", "other"]
