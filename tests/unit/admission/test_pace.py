"""How many tokens are verified in one turn, and what becomes of the others."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.admission.pace import PER_TURN, Pace


class Turns:
    """A clock whose `turn` runs what is due now, and nothing that becomes due by it, as the reactor does."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.gone_on: list[int] = []
        self.callers: list[Deferred[None]] = []

    def come(self, count: int) -> None:
        for _ in range(count):
            number = len(self.callers)
            caller = Deferred.fromCoroutine(self.pace.turn())
            self.callers.append(caller)
            caller.addCallback(lambda _, number=number: self.gone_on.append(number))

    def turn(self) -> None:
        for call in list(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = 1
            call.func()


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_so_many_go_on_in_each_turn_in_order(turns: Turns) -> None:
    turns.come(2 * PER_TURN + 3)
    assert turns.gone_on == list(range(PER_TURN))
    turns.turn()
    assert turns.gone_on == list(range(2 * PER_TURN))
    turns.come(1)  # behind those that wait already
    turns.turn()
    assert turns.gone_on == list(range(2 * PER_TURN + 4))
    turns.turn()
    assert turns.clock.getDelayedCalls() == []  # an idle relay has no timer of it


def test_who_leaves_while_it_waits_takes_no_place(turns: Turns) -> None:
    turns.come(2 * PER_TURN + 1)
    turns.callers[PER_TURN].addErrback(lambda failure: failure.trap(CancelledError))
    turns.callers[PER_TURN].cancel()
    turns.turn()
    assert PER_TURN not in turns.gone_on and turns.gone_on[-1] == 2 * PER_TURN


def test_a_stop_cancels_those_that_wait(turns: Turns) -> None:
    turns.come(PER_TURN + 2)
    ended: list[object] = []
    for caller in turns.callers[PER_TURN:]:
        caller.addErrback(lambda failure: ended.append(failure.trap(CancelledError)))
    turns.pace.stop()
    assert ended == [CancelledError, CancelledError] and turns.clock.getDelayedCalls() == []
