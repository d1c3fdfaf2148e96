"""The signals of the process: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads.

Handlers run in the reactor, not in the signal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@define(eq=False)
class Signals:
    """Handles the signals instead of twistd, from the start of the reactor on.

    twistd raises the signal again after the shutdown, so that a clean end looks like a crash.
    """

    _reactor: Any
    _stop: Callable[[str], None]
    _stop_now: Callable[[], None]
    _reload: Callable[[], None]
    _asked: int = field(default=0, init=False)

    def take(self) -> None:
        """Install the handlers for the rest of the process."""
        for number in _HANDLED:
            signal.signal(number, lambda number, _: self._reactor.callFromThread(self.received, number))
        self._reactor.addSystemEventTrigger("after", "shutdown", self._ignore)

    @staticmethod
    def _ignore() -> None:
        """Ignore signals at exit: a late signal would change the exit status."""
        for number in _HANDLED:
            signal.signal(number, signal.SIG_IGN)

    def received(self, number: int) -> None:
        """Handle a signal, in the reactor."""
        if number == signal.SIGHUP:
            self._reload()
            return
        self._asked += 1
        if self._asked == 1:
            self._stop(signal.Signals(number).name)
        else:
            self._stop_now()
