"""Periodic calls and time limits of services."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from viewport_relay.service.timers import with_deadline


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("ends_at", [0.0, 1.9, 2.1])
def test_a_deadline_is_one_call_while_the_end_is_still_waited_for(ends_at: float, fails: bool) -> None:
    clock, calls = Clock(), list[str]()
    ending: Deferred[str] = Deferred()
    ended: list[object] = []
    waiting = with_deadline(clock, 2.0, ending, lambda: calls.append("late"))
    waiting.addBoth(ended.append)
    clock.advance(ends_at)
    assert ended == []
    if fails:
        ending.errback(ValueError("why"))
        assert [type(failure.value) for failure in ended] == [ValueError]  # type: ignore[attr-defined]
    else:
        ending.callback("done")
        assert ended == ["done"]
    clock.advance(10)
    assert calls == (["late"] if ends_at > 2 else [])
    assert not clock.getDelayedCalls()
