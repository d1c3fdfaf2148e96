"""Test doubles of a carrier and a backplane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed

from tests.unit.backplane.seats import SeatCarrier, SeatStore
from viewport_relay.backplane.interface import (
    BusFrame,
    CarrierFailed,
    Parcel,
    Place,
    Publisher,
    Receiver,
    TargetKey,
    Whereabouts,
)

T = TypeVar("T")


class StubCarrier(SeatCarrier):
    """Records each call; with `hold` a call stays pending until `answer` or `fail`."""

    batch = 4
    publishes = 2
    calls = 8

    def __init__(self, *, hold: bool = False) -> None:
        super().__init__(SeatStore(), "a")
        self.hold = hold
        self.seen: list[tuple[Any, ...]] = []
        self.held: list[Deferred[Any]] = []
        self.entries = self.seats.entries
        self.frames: list[tuple[str, bytes]] = []
        self.failing: Exception | None = None
        self.pulls: list[Deferred[Any]] = []
        self.one_series = True

    async def carry(self, what: tuple[object, ...], command: Callable[[], T]) -> T:
        if what[0] != "moved":
            await self._call(*what)
        return command()

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

    def series(self, parcel: Parcel) -> object:
        return None if self.one_series else parcel.target

    async def publish(self, relay_id: str, frames: Sequence[BusFrame]) -> int | None:
        await self._call("publish", len(frames))
        self.frames += [(relay_id, bytes(frame)) for frame in frames]
        return None

    async def take_back(
        self, relay_id: str, marks: Sequence[bytes], place: Place
    ) -> tuple[Sequence[bytes], Place | None]:
        return (), None

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
