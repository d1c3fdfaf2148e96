"""Pace: token checks per turn of the reactor, order, cancellation."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.admission.pace import PER_TURN, Pace


class Turns:
    """A clock with a `turn` that, like the reactor, runs the calls that are due now and none that they schedule."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.resumed: list[int] = []
        self.callers: list[Deferred[None]] = []

    def add(self, count: int) -> None:
        for _ in range(count):
            number = len(self.callers)
            caller = Deferred.fromCoroutine(self.pace.turn())
            self.callers.append(caller)
            caller.addCallback(lambda _, number=number: self.resumed.append(number))

    def turn(self) -> None:
        for call in list(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = 1
            call.func()


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_each_turn_resumes_a_fixed_number_in_order(turns: Turns) -> None:
    turns.add(2 * PER_TURN + 3)
    assert turns.resumed == list(range(PER_TURN))
    turns.turn()
    assert turns.resumed == list(range(2 * PER_TURN))
    turns.add(1)  # queued behind the pending callers
    turns.turn()
    assert turns.resumed == list(range(2 * PER_TURN + 4))
    turns.turn()
    assert turns.clock.getDelayedCalls() == []  # no timer remains when the queue is empty


def test_a_cancelled_caller_takes_no_place(turns: Turns) -> None:
    turns.add(2 * PER_TURN + 1)
    turns.callers[PER_TURN].addErrback(lambda failure: failure.trap(CancelledError))
    turns.callers[PER_TURN].cancel()
    turns.turn()
    assert PER_TURN not in turns.resumed and turns.resumed[-1] == 2 * PER_TURN


def test_stop_cancels_pending_callers(turns: Turns) -> None:
    turns.add(PER_TURN + 2)
    ended: list[object] = []
    for caller in turns.callers[PER_TURN:]:
        caller.addErrback(lambda failure: ended.append(failure.trap(CancelledError)))
    turns.pace.stop()
    assert ended == [CancelledError, CancelledError] and turns.clock.getDelayedCalls() == []
