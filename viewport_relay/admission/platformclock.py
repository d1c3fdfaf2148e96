"""The difference of this clock and the platform's, by the Date header of answers (RFC 9110 section 6.6.1). No I/O."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime

from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.httpcall import Answer


class PlatformClock:
    """Remembers the last answer of the platform. `now` gives seconds since the epoch, `clock` the reactor's seconds."""

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        #: when the last answer came, in the reactor's seconds; None before the first
        self.answered_at: float | None = None
        self._date: tuple[str, float] | None = None

    def observe(self, answer: Answer) -> None:
        """Note an answer that was understood. An answer from a cache, which has an Age, tells nothing of the clock."""
        self.answered_at = self._clock.seconds()
        date = answer.header("date")
        if date is not None and answer.header("age") is None:
            self._date = (date[:64], self._clock.seconds())

    def offset(self) -> float | None:
        """Seconds by which this clock is ahead of the platform's, exact to about one; None if no answer had a Date."""
        if self._date is None:
            return None
        date, received = self._date
        try:
            sent = parsedate_to_datetime(date)
        except (ValueError, TypeError, OverflowError):
            return None
        # The header has whole seconds, so half of one is missing on average. What has passed since is measured, so that the
        # offset is right at once when this machine's clock is set.
        theirs = sent.timestamp() + 0.5 + self._clock.seconds() - received
        return self._now() - theirs
