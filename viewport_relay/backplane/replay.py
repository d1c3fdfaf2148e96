"""Replay protection for bus frames: how old a frame may be, and that each single frame is accepted once."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from viewport_relay.reasons import Reason

#: Signatures that one generation of the replay guard remembers, about 100 bytes each.
SEEN_MAX: Final = 131_072
#: Seconds by which another relay's clock may be behind ours just after a restart. It is less than a process takes to start,
#: so what the process before has read was issued earlier.
START_MARGIN: Final = 0.25


@frozen
class BadFrame:
    """The reason why a bus frame is refused. `detail` holds nothing of the payload; `source` is the relay that it names."""

    reason: Reason
    detail: str
    source: str = ""
    #: no fault: the frame is this relay's own, for another one, or for the process before a restart
    usual: bool = False


class ReplayGuard:
    """Remembers signatures for at least `window` seconds, in two generations of at most `most` each.

    When more than that come, the older generation is forgotten early, and what was issued no later than its latest frame
    is refused for as long as it could be fresh: what can no longer be remembered is not accepted. Windows are measured by
    `clock`, whatever is done to the clock of the machine. A single frame that was forgotten is accepted once more if that is
    set back to the time of its issue; a batch is not (see `batch`).
    """

    def __init__(self, clock: IReactorTime, window: float, most: int = SEEN_MAX) -> None:
        self._clock = clock
        self._window = window
        self._most = most
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()
        self._new_since = self._new_latest = self._old_latest = self._floor = -inf

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def is_new(self, signature: bytes, issued: float) -> bool:
        """Remember a signature; whether it is new. `issued` is seconds since the epoch."""
        over = self._clock.seconds() - self._new_since >= self._window
        if over or len(self._new) >= self._most:
            # What was forgotten early is stale by the time when the next window is over.
            self._floor = -inf if over else self._old_latest
            self._old, self._old_latest = self._new, self._new_latest
            self._new, self._new_latest = set(), -inf
            self._new_since = self._clock.seconds()
        key = signature[:16]
        if key in self._new or key in self._old or issued <= self._floor:
            return False
        self._new.add(key)
        self._new_latest = max(self._new_latest, issued)
        return True


class Freshness:
    """Decides whether a correctly signed frame is fresh. `guard` knows the single frames that were accepted.

    A relay that restarts has forgotten which signatures it saw. So a frame issued before the start of this process is
    refused when there was a process before: the frame was for that one, whose peers are gone. `restarted` says whether
    there was one; until it is known, it counts as so. The batched form names the process that it is for: a frame that
    names this one was issued after the start, whatever its clock says.

    `now` gives seconds since the epoch, `max_skew` is in seconds. `clock` bounds the time after the start in which the
    rule holds, so that a clock that is set back later costs no frame.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float], max_skew: float) -> None:
        self._clock = clock
        self._now = now
        self._max_skew = max_skew
        self._started = now() - START_MARGIN
        self._guarded_until = clock.seconds() + max_skew + START_MARGIN
        # A frame from the future is good until its time of issue plus the skew.
        self.guard = ReplayGuard(clock, 2 * max_skew)
        self.restarted = True

    def why_stale(
        self, issued_at_ms: int, source: str, *, for_this_process: bool | None = None
    ) -> BadFrame | None:
        """Why the frame is refused as stale, or None. `for_this_process` is None where the form does not tell."""
        now, issued = self._now(), issued_at_ms / 1000
        if abs(now - issued) > self._max_skew:
            return BadFrame(Reason.BUS_SIGNATURE_STALE, f"issued {round(now - issued, 1)} s ago", source)
        if issued < self._started and self._clock.seconds() < self._guarded_until:
            other_process = self.restarted if for_this_process is None else not for_this_process
            if other_process:
                detail = f"issued {round(now - issued, 1)} s ago, before this relay was restarted"
                return BadFrame(Reason.BUS_SIGNATURE_STALE, detail, source, usual=True)
        return None
