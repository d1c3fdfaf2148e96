"""The fair queue: at once when idle, one at a time when not, in turn by key."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.wire.fairqueue import INTERVAL, FairQueue


def asked(queue: FairQueue, served: list[str], key: str, name: str) -> Deferred[None]:
    turn = queue.turn(key)
    turn.addCallback(lambda _: served.append(name))
    turn.addErrback(lambda failure: failure.trap(CancelledError))
    return turn


def test_who_comes_when_nothing_waits_is_served_at_once() -> None:
    clock, served = Clock(), []  # type: ignore[var-annotated]
    queue = FairQueue(clock)
    for n in range(3):
        asked(queue, served, "a", f"a{n}")
        assert served[-1] == f"a{n}"
        clock.advance(INTERVAL)
    assert clock.getDelayedCalls() == []


def test_keys_take_turns_at_the_interval() -> None:
    clock, served = Clock(), []  # type: ignore[var-annotated]
    queue = FairQueue(clock)
    for n in range(4):
        asked(queue, served, "greedy", f"greedy{n}")
    asked(queue, served, "modest", "modest0")
    assert served == ["greedy0"]
    for _ in range(3):
        clock.advance(INTERVAL)
    assert served == ["greedy0", "greedy1", "modest0", "greedy2"]
    for _ in range(3):
        clock.advance(INTERVAL)
    assert served[4:] == ["greedy3"] and clock.getDelayedCalls() == []


def test_a_cancelled_waiter_takes_no_turn() -> None:
    clock, served = Clock(), []  # type: ignore[var-annotated]
    queue = FairQueue(clock)
    asked(queue, served, "a", "first")
    asked(queue, served, "a", "left").cancel()
    asked(queue, served, "a", "next")
    clock.advance(INTERVAL)
    assert served == ["first", "next"]


def test_a_stopped_queue_cancels_its_waiters() -> None:
    clock, served = Clock(), []  # type: ignore[var-annotated]
    queue = FairQueue(clock)
    asked(queue, served, "a", "first")
    asked(queue, served, "a", "late")
    queue.stop()
    assert served == ["first"] and clock.getDelayedCalls() == []


def test_a_clock_that_was_set_back_stops_no_one() -> None:
    clock, served = Clock(), []  # type: ignore[var-annotated]
    queue = FairQueue(clock)
    clock.rightNow = 100.0
    asked(queue, served, "a", "first")
    clock.rightNow = 50.0
    asked(queue, served, "a", "second")
    assert served == ["first", "second"]
