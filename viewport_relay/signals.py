"""What the process does on a signal: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads.

Handlers run in the reactor, not in the signal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


class Signals:
    """Take the signals once the reactor runs: twistd raises one again after the shutdown, so that a clean end
    would look like a crash."""

    def __init__(
        self,
        reactor: Any,
        stop: Callable[[str], None],
        stop_now: Callable[[], None],
        reload: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._stop = stop
        self._stop_now = stop_now
        self._reload = reload
        self._asked = 0

    def take(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._reactor.callFromThread(self.received, number))

    def received(self, number: int) -> None:
        """In the reactor."""
        if number == signal.SIGHUP:
            self._reload()
            return
        self._asked += 1
        if self._asked == 1:
            self._stop(signal.Signals(number).name)
        else:
            self._stop_now()
