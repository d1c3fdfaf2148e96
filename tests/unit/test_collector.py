"""The garbage collector of a relay: full collections come by a timer, and sooner only after much growth."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from viewport_relay.collector import FULL_SECONDS, THRESHOLDS, settle


class Node:
    """A cycle of one object."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def clock() -> Iterator[Clock]:
    before = gc.get_threshold()
    yield Clock()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_an_old_cycle_is_freed_by_the_timer_and_not_by_little_growth(clock: Clock) -> None:
    settle(clock)
    assert gc.get_freeze_count() and gc.get_threshold() == THRESHOLDS
    node = Node()
    seen = weakref.ref(node)
    gc.collect(1)
    gc.collect(1)  # so that it is in the oldest generation
    del node
    full: list[int] = []
    gc.callbacks.append(lambda phase, info: full.append(info["generation"]))
    try:
        grown = [[number] for number in range(200_000)]
    finally:
        gc.callbacks.pop()
    assert 1 in full and 2 not in full and len(grown) == 200_000
    assert seen() is not None
    clock.advance(FULL_SECONDS)
    assert seen() is None


def test_old_cycles_are_freed_by_much_growth_too(clock: Clock) -> None:
    """Strangers make cycles faster than the timer frees them."""
    settle(clock)
    node = Node()
    seen = weakref.ref(node)
    gc.collect(1)
    gc.collect(1)
    del node
    grown = [[number] for number in range(400_000)]
    assert len(grown) == 400_000 and seen() is None
