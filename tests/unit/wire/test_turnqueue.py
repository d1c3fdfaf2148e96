"""TurnQueue: time budget per turn, order of connections, handling of exceptions."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.memorywire import timed_calls
from viewport_relay.wire.turnqueue import SHARE_SECONDS, TICK_SECONDS, TURN_SECONDS, TurnQueue


class Turns:
    """A reactor whose clock advances with the work that is done."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = TurnQueue(self.clock)
        self.done: list[str] = []

    def work(self, name: str, seconds: float = 0.0, *, again: int = 0) -> None:
        """Add work that takes `seconds` and is added again `again` times."""

        def call() -> None:
            self.done.append(name)
            self.clock.rightNow += seconds
            if again:
                self.work(name, seconds, again=again - 1)

        self.queue.add(call)

    def turn(self) -> list[str]:
        """Run one turn; returns the names of the work done."""
        self.done.clear()
        timed_calls(self.clock)
        return list(self.done)


def test_those_that_wait_work_in_turn_for_a_bounded_time() -> None:
    turns = Turns()
    for name in "abcdefgh":
        turns.work(name, TURN_SECONDS / 3)
    assert turns.turn() == ["a", "b", "c"]
    assert turns.turn() == ["d", "e", "f"]
    assert turns.turn() == ["g", "h"]
    assert turns.turn() == []


def test_repeated_work_goes_to_the_end_of_the_next_turn() -> None:
    turns = Turns()
    turns.work("flood", again=2)
    turns.work("once")
    assert turns.turn() == ["flood", "once"]
    assert turns.turn() == ["flood"]
    assert turns.turn() == ["flood"]
    assert turns.turn() == []


def test_one_costly_call_ends_the_turn() -> None:
    turns = Turns()
    turns.work("costly", 1.0)
    turns.work("next")
    assert turns.turn() == ["costly"]
    assert turns.turn() == ["next"]


def test_busy_is_false_for_the_work_in_progress() -> None:
    turns = Turns()
    assert not turns.queue.busy and turns.queue.share == TURN_SECONDS
    seen: list[tuple[bool, float]] = []
    turns.queue.add(lambda: seen.append((turns.queue.busy, turns.queue.share)))
    assert turns.queue.busy and turns.queue.share == SHARE_SECONDS
    turns.turn()
    assert seen == [(False, SHARE_SECONDS)]
    assert not turns.queue.busy and turns.queue.share == TURN_SECONDS


def test_a_costly_input_makes_the_rest_of_its_turn_busy() -> None:
    turns = Turns()
    turns.queue.end_turn()
    turns.queue.end_turn()
    assert turns.queue.busy
    turns.turn()
    assert not turns.queue.busy


def test_later_work_is_done_together_after_the_tick() -> None:
    turns = Turns()
    for name in "ab":
        turns.queue.add_later(lambda name=name: turns.done.append(name))  # type: ignore[misc]
    assert len(turns.clock.getDelayedCalls()) == 1
    turns.clock.advance(TICK_SECONDS / 2)
    assert turns.done == []
    turns.clock.advance(TICK_SECONDS / 2)
    assert turns.done == ["a", "b"]
    assert turns.clock.getDelayedCalls() == []


def test_an_exception_does_not_stop_the_queue() -> None:
    turns = Turns()

    def fail() -> None:
        raise ZeroDivisionError

    turns.queue.add(fail)
    turns.work("next")
    with pytest.raises(ZeroDivisionError):
        turns.turn()
    assert turns.turn() == ["next"]


def test_sockets_are_served_between_two_pieces_of_work_and_what_they_bring_and_takes_long_waits() -> None:
    turns = Turns()

    def look() -> None:
        turns.done.append("sockets")
        assert turns.queue.busy  # so a long read is left to a later turn

    turns.queue._turn.look = look  # type: ignore[method-assign]
    for name in "ab":
        turns.work(name, TURN_SECONDS / 2)
    assert turns.turn() == ["a", "sockets", "b"]
    assert not turns.queue.busy or turns.turn() == []
