"""Peers that join and leave within seconds, again and again: their joins and leaves are counted instead of written.

The first LIVES short lives of a peer (role, workspace, target and address) within a window are written as they are. What
follows is counted, and one finding (`PEER_FLAPPING`) tells how many lives there were. The join of a connection that stays is
written when the window ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from attrs import Factory, define, frozen

#: A life of fewer seconds is short; so many short lives in a window are written; seconds of a window.
SHORT: Final = 5.0
LIVES: Final = 5
WINDOW: Final = 60.0

#: Most peers told apart. Joins and leaves of further ones are written as they are.
MOST_PEERS: Final = 4096

_Peer: TypeAlias = tuple[object, ...]


@frozen
class Join:
    """A join that was counted: the connection, when it joined, and the details of its entry."""

    connection_id: str | None
    at: float
    details: Mapping[str, Any]


@define(eq=False)
class Flap:
    """One window of one peer. `lives` counts short lives, `count` those that were not written.

    `details` are those of the last leave. `longest` is in seconds, the other times in seconds since the epoch.
    """

    opened: float
    lives: int = 0
    count: int = 0
    longest: float = 0.0
    first: float = 0.0
    last: float = 0.0
    details: Mapping[str, Any] = Factory(dict)
    joined: Join | None = None

    @property
    def text(self) -> str:
        """The finding in words."""
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"joined and left within {max(1, math.ceil(self.longest))} s, {times}"


class Flapping:
    """Decides for each join and leave whether the entry is written or counted."""

    def __init__(self) -> None:
        self._peers: dict[_Peer, Flap] = {}  # the oldest window first
        self._stayed: list[Join] = []

    def joined(self, at: float, connection_id: str | None, details: Mapping[str, Any]) -> bool:
        """True when the join of a flapping peer was counted and must not be written."""
        flap = self._peers.get(_peer(details))
        if flap is None or flap.lives < LIVES or flap.joined is not None:
            return False
        flap.joined = Join(connection_id, at, details)
        return True

    def left(self, at: float, connection_id: str | None, details: Mapping[str, Any]) -> Flap | None:
        """The window that counted this leave, which must not be written; None: write it (`stayed` first)."""
        seconds = details.get("seconds")
        if not isinstance(seconds, int | float):
            return None
        peer = _peer(details)
        flap = self._peers.get(peer)
        if flap is None:
            if seconds < SHORT and len(self._peers) < MOST_PEERS:
                self._peers[peer] = Flap(at, lives=1)
            return None
        counted = flap.joined if flap.joined and flap.joined.connection_id == connection_id else None
        if counted is not None:
            flap.joined = None
        if seconds >= SHORT:
            if counted is not None:
                self._stayed.append(counted)
            return None
        flap.lives += 1
        if counted is None:
            return None
        flap.count += 1
        flap.first = flap.first or counted.at
        flap.last, flap.longest, flap.details = at, max(flap.longest, float(seconds)), details
        return flap

    def stayed(self) -> Sequence[Join]:
        """Joins that were counted and must be written after all, once."""
        stayed, self._stayed = self._stayed, []
        return stayed

    def ended(self, at: float, *, everything: bool = False) -> Sequence[Flap]:
        """Close the windows that are over (or all of them) and give those that counted something.

        A wall clock that was set back ends them too.
        """
        if not self._peers or (not everything and 0 <= at - self._oldest < WINDOW):
            return ()
        over: list[Flap] = []
        for peer, flap in list(self._peers.items()):
            if not everything and 0 <= at - flap.opened < WINDOW:
                break
            del self._peers[peer]
            if flap.joined is not None:
                self._stayed.append(flap.joined)
            if flap.count:
                over.append(flap)
        return over

    @property
    def _oldest(self) -> float:
        """When the oldest window was opened."""
        return next(iter(self._peers.values())).opened if self._peers else math.inf


def _peer(details: Mapping[str, Any]) -> _Peer:
    named = details.get
    return named("role"), named("workspaceId"), named("runtimeTargetId"), named("ip")
