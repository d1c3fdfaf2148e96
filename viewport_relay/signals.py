"""The signals of the process: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads, others are ignored.

Handlers run in the reactor, not in the signal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Signals without a meaning here that would end the process without a drain: a log rotation or a script sends them to the
#: wrong process. SIGQUIT, SIGABRT and SIGXCPU keep their effect, an end at once: they are for debuggers, watchdogs and limits.
_UNUSED: Final = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


@define(eq=False)
class Signals:
    """Handles the signals instead of twistd, from the start of the reactor on.

    twistd raises the signal again after the shutdown, so that a clean end looks like a crash.
    """

    _reactor: Any
    _stop: Callable[[str], None]
    _stop_now: Callable[[], None]
    _reload: Callable[[], None]
    _unused: Callable[[str], None]
    _asked: int = field(default=0, init=False)

    def take(self) -> None:
        """Install the handlers for the rest of the process. An unused signal that has one, of `twistd --logfile`, keeps it."""
        for number in (*_HANDLED, *(n for n in _UNUSED if signal.getsignal(n) == signal.SIG_DFL)):
            signal.signal(number, lambda number, _: self._reactor.callFromThread(self.received, number))
        self._reactor.addSystemEventTrigger("after", "shutdown", self._ignore)

    @staticmethod
    def _ignore() -> None:
        """Ignore signals at exit: a late signal would change the exit status."""
        for number in (*_HANDLED, *_UNUSED):
            signal.signal(number, signal.SIG_IGN)

    def received(self, number: int) -> None:
        """Handle a signal, in the reactor."""
        if number == signal.SIGHUP:
            self._reload()
            return
        if number not in _HANDLED:
            self._unused(_name(number))
            return
        self._asked += 1
        if self._asked == 1:
            self._stop(_name(number))
        else:
            self._stop_now()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
