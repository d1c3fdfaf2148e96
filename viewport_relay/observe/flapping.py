"""Peers that join and leave within seconds, again and again: their joins and leaves are counted instead of written.

The first LIVES short lives of a peer (role, workspace, target and address) within a window are written as they are. Further
ones are counted, and one entry `flapping` (PEER_FLAPPING) tells how many there were. The join of a connection that stays is
written when the window ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final

from viewport_relay.observe.entry import LogEntry
from viewport_relay.observe.folding import FoldWindow, over
from viewport_relay.reasons import Reason

#: A life of fewer seconds is short; so many short lives in a window are written.
SHORT: Final = 5.0
LIVES: Final = 5

#: Most peers told apart. Joins and leaves of further ones are written as they are.
MOST_PEERS: Final = 4096

_PEER: Final = ("role", "workspaceId", "runtimeTargetId", "ip")


class Flap(FoldWindow):
    """One window of one peer. `lives` counts short lives, `count` those that were not written.

    `details` are those of the last leave. `longest` is in seconds. `joined` is the join that was counted, of the connection
    that is open.
    """

    of: ClassVar[str] = "leave"
    lives: int = 0
    longest: float = 0.0
    details: Mapping[str, Any] = {}
    joined: LogEntry | None = None

    def summary(self, at: float) -> LogEntry:
        """The entry `flapping` of what was counted so far."""
        of_peer = ("role", "workspaceId", "runtimeTargetId", "clientId", "ip", "detail")
        details = self.counted() | {name: self.details.get(name) for name in of_peer}
        reason = Reason.PEER_FLAPPING
        return LogEntry(at, reason.entry.level, "flapping", reason, self.text, None, details)

    @property
    def text(self) -> str:
        """The counted joins and leaves in words."""
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"joined and left within {max(1, math.ceil(self.longest))} s, {times}"


class Flapping:
    """Decides for each join and leave whether the entry is written or counted.

    `write` writes the join of a connection that stays, which was counted at first.
    """

    def __init__(self, write: Callable[[LogEntry], None]) -> None:
        self._peers: dict[tuple[object, ...], Flap] = {}  # the oldest window first
        self._write = write

    def joined(self, join: LogEntry) -> bool:
        """True when the join of a flapping peer was counted and must not be written."""
        flap = self._peers.get(_peer(join))
        if flap is None or flap.lives < LIVES or flap.joined is not None:
            return False
        flap.joined = join
        return True

    def left(self, leave: LogEntry) -> Flap | None:
        """The window that counted this leave, which must not be written; None: it must be written."""
        seconds = leave.details.get("seconds")
        if not isinstance(seconds, int | float):
            return None
        flap = self._peers.get(_peer(leave))
        if flap is None:
            if seconds < SHORT and len(self._peers) < MOST_PEERS:
                self._peers[_peer(leave)] = Flap(leave.at, lives=1)
            return None
        counted = flap.joined
        if counted is None or counted.connection_id != leave.connection_id:
            flap.lives += seconds < SHORT
            return None
        flap.joined = None
        if seconds >= SHORT:
            self._write(counted)
            return None
        flap.lives += 1
        flap.first = flap.first or counted.at
        flap.add(leave.at)
        flap.longest, flap.details = max(flap.longest, float(seconds)), leave.details
        return flap

    def shift(self, seconds: float) -> None:
        """Move all times: the wall clock was set."""
        for flap in self._peers.values():
            flap.shift(seconds)

    def ended(self, at: float, *, everything: bool = False) -> Iterator[Flap]:
        """Close the windows that are over (or all of them) and give those that counted something."""
        for flap in over(self._peers, at, everything=everything):
            if flap.count:
                yield flap
            if flap.joined is not None:
                self._write(flap.joined)


def _peer(entry: LogEntry) -> tuple[object, ...]:
    return tuple(map(entry.details.get, _PEER))
