"""The daemon's seat of one target: who may sit, who must go (wire contract, section 2).

Pure: the caller pings, waits, closes. A challenger of equal generation waits until the holder is known to live (the
caller turns it away) or leaves (`leave` gives the seat to the first who waits).
"""

from __future__ import annotations

from typing import Final, TypeAlias

from attrs import frozen

from viewport_relay.reasons import Reason
from viewport_relay.routing.peer import Peer

#: How many times within a minute a higher generation takes the seat at once.
MOST_REPLACEMENTS: Final = 3
_MINUTE: Final = 60.0


@frozen
class Seated:
    """The daemon has the seat; `replaced` is who had it until now."""

    replaced: Peer | None = None


@frozen
class Refused:
    """The daemon does not get the seat: close it, a second later."""

    reason: Reason


@frozen
class Contested:
    """The holder must show life: ping it and wait."""

    holder: Peer


Arrival: TypeAlias = Seated | Refused | Contested


class Seat:
    """At most one daemon. Generations are the grants' `daemonIssueGeneration`."""

    __slots__ = ("_generation", "_highest", "_replacements", "challengers", "holder")

    def __init__(self) -> None:
        self.holder: Peer | None = None
        self.challengers: list[Peer] = []
        self._generation: int | None = None  # the holder's, as it counts
        self._highest: int | None = None
        self._replacements: tuple[float, ...] = ()  # when the latest were

    def arrive(self, peer: Peer, now: float) -> Arrival:
        """A daemon wants the seat at `now` (seconds, monotonic)."""
        generation = peer.grant.claims.daemon_issue_generation
        if generation is not None:
            if self._highest is not None and generation < self._highest:
                return Refused(Reason.STALE_DAEMON_GENERATION)
            self._highest = generation
        holder = self.holder
        if holder is None:
            self._sit(peer)
            return Seated()
        higher = generation is not None and self._generation is not None and generation > self._generation
        if higher and not self._restless(now):
            self._replacements = (*self._replacements, now)[-MOST_REPLACEMENTS:]
            self._sit(peer)
            return Seated(replaced=holder)
        self.challengers.append(peer)
        return Contested(holder)

    def _restless(self, now: float) -> bool:
        """Whether the seat changed hands so often that a higher generation no longer takes it at once."""
        return len(self._replacements) == MOST_REPLACEMENTS and now - self._replacements[0] < _MINUTE

    def _sit(self, peer: Peer) -> None:
        self.holder = peer
        # A daemon without a generation counts as whatever is there.
        generation = peer.grant.claims.daemon_issue_generation
        self._generation = self._highest if generation is None else generation

    def leave(self, peer: Peer) -> Peer | None:
        """`peer` is gone, whether it sat or waited: who has the seat now, if it changed hands."""
        if peer in self.challengers:
            self.challengers.remove(peer)
        if self.holder is not peer:
            return None
        self.holder = None
        return self._next()

    def _next(self) -> Peer | None:
        while self.challengers:
            peer = self.challengers.pop(0)
            generation = peer.grant.claims.daemon_issue_generation
            if generation is None or self._highest is None or generation >= self._highest:
                self._sit(peer)
                return peer
            # A higher generation came meanwhile: the caller finds this one among the challengers no longer.
        return None
