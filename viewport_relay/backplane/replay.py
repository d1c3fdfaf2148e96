"""Replay protection for bus frames: how old a frame may be, and that each signature is accepted once."""

from __future__ import annotations

from collections.abc import Callable
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

    When more than that come, the older generation is forgotten early. `floor` (seconds since the epoch) then rises, and
    frames issued before it count as stale: what can no longer be remembered is not accepted.
    """

    def __init__(self, window: float, most: int = SEEN_MAX) -> None:
        self._window = window
        self._most = most
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()
        self._new_since = float("-inf")
        self.floor = float("-inf")

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def is_new(self, signature: bytes, now: float) -> bool:
        """Remember a signature; whether it is new. `now` is seconds since the epoch."""
        if now < self._new_since:
            self._new_since = now  # the clock was set back: what is known stays known
        elif now - self._new_since >= self._window or len(self._new) >= self._most:
            self._turn(now)
        key = signature[:16]
        if key in self._new or key in self._old:
            return False
        self._new.add(key)
        return True

    def _turn(self, now: float) -> None:
        if self._old and now - self._new_since < self._window:
            self.floor = self._new_since  # what is forgotten came before
        self._old, self._new = self._new, set()
        self._new_since = now


class Freshness:
    """Decides whether a correctly signed frame is fresh and new.

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
        self.guard = ReplayGuard(2 * max_skew)
        self.restarted = True

    def judge(
        self, signature: bytes, issued_at_ms: int, source: str, *, for_this_process: bool | None = None
    ) -> BadFrame | None:
        """Why the frame is refused, or None. `for_this_process` is None where the form does not tell."""
        now, issued = self._now(), issued_at_ms / 1000
        if abs(now - issued) > self._max_skew or issued < self.guard.floor:
            return BadFrame(Reason.BUS_SIGNATURE_STALE, f"issued {round(now - issued, 1)} s ago", source)
        if issued < self._started and self._clock.seconds() < self._guarded_until:
            other_process = self.restarted if for_this_process is None else not for_this_process
            if other_process:
                detail = f"issued {round(now - issued, 1)} s ago, before this relay was restarted"
                return BadFrame(Reason.BUS_SIGNATURE_STALE, detail, source, usual=True)
        if not self.guard.is_new(signature, now):
            return BadFrame(Reason.BUS_SIGNATURE_REPLAYED, "seen before", source)
        return None
