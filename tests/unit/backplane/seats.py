"""Python model of the relay's Redis scripts and of their data about seats, and what carriers in memory share.

`tests/integration/backplane/test_seat_scripts.py` compares the scripts with this model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from viewport_relay.backplane.interface import Parcel, SeatClaim, TargetKey

T = TypeVar("T")


class SeatStore:
    """Presence entries, their claims, and the seats taken from each relay."""

    def __init__(self) -> None:
        self.entries: dict[TargetKey, Mapping[str, Any]] = {}
        self.claims: dict[TargetKey, tuple[str, SeatClaim]] = {}
        self.taken: defaultdict[str, list[TargetKey]] = defaultdict(list)

    def take(self, target: TargetKey, entry: Mapping[str, Any], claim: SeatClaim, *, new: bool) -> str | None:
        """Write the entry and return None, or return the relay whose claim has precedence."""
        ours, since = str(entry["relayId"]), claim.since_ms
        owner, known = self.claims.get(target, ("", None))
        there = self.entries.get(target)
        if there is not None and there["relayId"] != ours:
            other = str(there["relayId"])
            theirs = known if owner == other else None
            if _stands(theirs, claim, new=new):
                return other
            self.taken[other].append(target)
            if theirs is not None:
                since = max(since, theirs.since_ms + 1)
        elif owner == ours and known is not None:
            since = max(since, known.since_ms)
        self.entries[target] = entry
        self.claims[target] = ours, SeatClaim(claim.generation, since)
        return None

    def withdraw(self, target: TargetKey, relay_id: str) -> None:
        """Delete the entry unless another relay owns it."""
        if self.entries.get(target, {"relayId": relay_id})["relayId"] == relay_id:
            self.entries.pop(target, None)
            self.claims.pop(target, None)

    def moved(self, relay_id: str) -> Sequence[TargetKey]:
        """Seats that were taken from this relay since the last call."""
        return self.taken.pop(relay_id, [])

    def lose_everything(self) -> None:
        """Drop all data, as a restart of Redis without persistence."""
        self.entries.clear()
        self.claims.clear()
        self.taken.clear()


def _stands(theirs: SeatClaim | None, ours: SeatClaim, *, new: bool) -> bool:
    if theirs is not None and None not in (theirs.generation, ours.generation):
        assert theirs.generation is not None and ours.generation is not None
        if theirs.generation != ours.generation:
            return theirs.generation > ours.generation
    return not new and (theirs is None or theirs.since_ms >= ours.since_ms)


class SeatCarrier:
    """A carrier's presence, on a SeatStore. A subclass runs commands in `carry`, where it records, delays or fails them."""

    batch = 512
    publishes = 1024
    calls = 64

    def __init__(self, seats: SeatStore, relay_id: str) -> None:
        self.seats = seats
        self._relay_id = relay_id

    async def carry(self, what: tuple[object, ...], command: Callable[[], T]) -> T:
        """Run a command; `what` is its name, target and machine id."""
        raise NotImplementedError

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    def peers_changed(self, number: int) -> None: ...

    def series(self, parcel: Parcel) -> object:
        return None

    async def take(
        self, target: TargetKey, entry: Mapping[str, object], claim: SeatClaim, *, new: bool
    ) -> str | None:
        what = ("announce", target, entry.get("machineId")) if new else ("renew", target)
        return await self.carry(what, lambda: self.seats.take(target, entry, claim, new=new))

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self.carry(("withdraw", target), lambda: self.seats.withdraw(target, self._relay_id))

    async def moved(self) -> Sequence[TargetKey]:
        return await self.carry(("moved",), lambda: self.seats.moved(self._relay_id))

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        return await self.carry(("resolve", target), lambda: self.seats.entries.get(target))
