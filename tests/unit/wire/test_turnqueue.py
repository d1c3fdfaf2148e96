"""The queue of connections that wait for a turn: how long they work, in which order, and what happens to errors."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.memorywire import timed_calls
from viewport_relay.wire.turnqueue import SHARE_SECONDS, TICK_SECONDS, TURN_SECONDS, TurnQueue


class Turns:
    """A reactor whose clock moves while work is done."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = TurnQueue(self.clock)
        self.done: list[str] = []

    def work(self, name: str, seconds: float = 0.0, *, again: int = 0) -> None:
        """Add work that takes some time, and comes back so many times."""

        def call() -> None:
            self.done.append(name)
            self.clock.rightNow += seconds
            if again:
                self.work(name, seconds, again=again - 1)

        self.queue.add(call)

    def turn(self) -> list[str]:
        """What is done in one turn."""
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


def test_who_comes_back_goes_behind_the_others_and_into_the_next_turn() -> None:
    turns = Turns()
    turns.work("flood", again=2)
    turns.work("once")
    assert turns.turn() == ["flood", "once"]
    assert turns.turn() == ["flood"]
    assert turns.turn() == ["flood"]
    assert turns.turn() == []


def test_one_costly_piece_ends_the_turn() -> None:
    turns = Turns()
    turns.work("costly", 1.0)
    turns.work("next")
    assert turns.turn() == ["costly"]
    assert turns.turn() == ["next"]


def test_busy_is_for_those_that_are_not_being_served() -> None:
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


def test_what_is_added_for_later_is_done_together_after_the_tick() -> None:
    turns = Turns()
    for name in "ab":
        turns.queue.add_later(lambda name=name: turns.done.append(name))  # type: ignore[misc]
    assert len(turns.clock.getDelayedCalls()) == 1
    turns.clock.advance(TICK_SECONDS / 2)
    assert turns.done == []
    turns.clock.advance(TICK_SECONDS / 2)
    assert turns.done == ["a", "b"]
    assert turns.clock.getDelayedCalls() == []


def test_an_error_does_not_keep_the_others_from_their_turn() -> None:
    turns = Turns()

    def fail() -> None:
        raise ZeroDivisionError

    turns.queue.add(fail)
    turns.work("next")
    with pytest.raises(ZeroDivisionError):
        turns.turn()
    assert turns.turn() == ["next"]
