"""Periodic calls as Twisted services."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.internet import TimerService
from twisted.application.service import IServiceCollection
from twisted.internet.interfaces import IReactorTime


def every(
    parent: IServiceCollection, clock: IReactorTime, seconds: float, call: Callable[[], object]
) -> TimerService:
    """Call every `seconds` while the parent runs, the first time at its start."""
    timer = TimerService(seconds, call)
    timer.clock = clock
    timer.setServiceParent(parent)
    return timer
