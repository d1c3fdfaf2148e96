"""Test doubles of a carrier and a backplane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from tests.unit.backplane.seats import SeatStore
from viewport_relay.backplane.interface import (
    BusFrame,
    CarrierFailed,
    Parcel,
    Publisher,
    Receiver,
    SeatClaim,
    TargetKey,
    Whereabouts,
)


class StubCarrier:
    """Records each call; with `hold` a call stays pending until `answer` or `fail`."""

    batch = 4
    lanes = 2
    calls = 8

    def __init__(self, *, hold: bool = False) -> None:
        self.hold = hold
        self.seen: list[tuple[Any, ...]] = []
        self.held: list[Deferred[Any]] = []
        self.seats = SeatStore()
        self.entries = self.seats.entries
        self.frames: list[tuple[str, bytes]] = []
        self.failing: CarrierFailed | None = None
        self.pulls: list[Deferred[Any]] = []
        self.one_lane = True

    async def _call(self, *what: Any) -> None:
        self.seen.append(what)
        if self.hold:
            waiting: Deferred[Any] = Deferred()
            self.held.append(waiting)
            await waiting
        if self.failing is not None:
            raise self.failing

    def answer(self) -> None:
        self.held.pop(0).callback(None)

    def fail(self, error: CarrierFailed) -> None:
        self.held.pop(0).errback(error)

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    def peers_changed(self, number: int) -> None: ...

    def lane(self, parcel: Parcel) -> object:
        return None if self.one_lane else parcel.target

    async def announce(self, target: TargetKey, entry: Mapping[str, object], claim: SeatClaim) -> str | None:
        await self._call("announce", target, entry.get("machineId"))
        return self.seats.take(target, entry, claim, new=True)

    async def renew(self, target: TargetKey, entry: Mapping[str, object], claim: SeatClaim) -> str | None:
        await self._call("renew", target)
        return self.seats.take(target, entry, claim, new=False)

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self._call("withdraw", target)
        self.seats.withdraw(target, str(entry["relayId"]))

    async def moved(self) -> Sequence[TargetKey]:
        return self.seats.moved("a")

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        await self._call("resolve", target)
        return self.entries.get(target)

    async def publish(self, relay_id: str, frames: Sequence[BusFrame]) -> int | None:
        await self._call("publish", len(frames))
        self.frames += [(relay_id, bytes(frame)) for frame in frames]
        return None

    async def take_back(self, relay_id: str, marks: Sequence[bytes]) -> Sequence[bytes]:
        return ()

    async def pull(self) -> Sequence[Any]:
        waiting: Deferred[Any] = Deferred()
        self.pulls.append(waiting)
        found: Sequence[Any] = await waiting
        return found


class StubBackplane:
    """Look-ups are answered by the test; published parcels are kept, or lost while `broken`."""

    redirects = True

    def __init__(self) -> None:
        self.lookups: list[Deferred[Whereabouts | None]] = []
        self.known_place: Whereabouts | None = None
        self.slow = True
        self.published: list[Parcel] = []
        self.publishers: list[Publisher | None] = []
        self.receiver: Receiver | None = None
        self.broken = False
        self.seats: list[tuple[TargetKey, object | None]] = []
        self.peers = 0

    def seat_changed(
        self, target: TargetKey, holder: object | None, machine_id: str | None, generation: int | None
    ) -> None:
        self.seats.append((target, holder))

    def peers_changed(self, number: int) -> None:
        self.peers = number

    def known(self, target: TargetKey) -> Whereabouts | None:
        return None if self.slow else self.known_place

    def resolve(self, target: TargetKey) -> Deferred[Whereabouts | None]:
        if not self.slow:
            return succeed(self.known_place)
        waiting: Deferred[Whereabouts | None] = Deferred()
        self.lookups.append(waiting)
        return waiting

    def found(self, place: Whereabouts | None) -> None:
        """Answer the oldest look-up."""
        self.lookups.pop(0).callback(place)

    def publish(self, parcel: Parcel, publisher: Publisher | None = None) -> None:
        if self.broken:
            self.lose(parcel)
            return
        self.published.append(parcel)
        self.publishers.append(publisher)

    def lose(self, *parcels: Parcel) -> None:
        """Report these parcels as lost."""
        assert self.receiver is not None
        self.receiver.lost(parcels)

    def start(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def describe(self) -> Mapping[str, Any]:
        return {"mode": "redis", "up": True}
