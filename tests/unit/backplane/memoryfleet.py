"""A fleet in memory: each relay's own presence, bus, sessions and connections, over a fake Redis with faults on request.

    fleet = MemoryFleet("a", "b", "c")
    fleet["a"].cut()                     # commands hang, and fail after two seconds
    daemon = fleet["b"].relay.daemon(5)
    fleet.wait(1.0)

All relays share one clock, which only `wait` advances.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater

from tests.memorywire import Log, MemoryRelay
from tests.unit.backplane.seats import SeatCarrier, SeatStore
from viewport_relay.backplane.batch import BatchVerifier, ParcelSigner
from viewport_relay.backplane.inbound import Inbound
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
from viewport_relay.backplane.lookups import Lookups
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.outbound import Outbound
from viewport_relay.backplane.presence import Presence
from viewport_relay.backplane.replay import Freshness
from viewport_relay.backplane.signing import FrameVerifier
from viewport_relay.backplane.unread import mark_of
from viewport_relay.observe.counters import Counters

T = TypeVar("T")

KEY = "a-bus-key-of-some-length"
#: Time-out of a command, and interval of reconnect attempts, in seconds.
LIMIT = 2.0
AGAIN = 0.1


class MemoryRedis:
    """The content of Redis: seats and queues."""

    def __init__(self) -> None:
        self.seats = SeatStore()
        self.queues: defaultdict[str, deque[bytes]] = defaultdict(deque)


class MemoryCarrier(SeatCarrier):
    """One relay's connection to Redis."""

    def __init__(
        self, clock: Clock, redis: MemoryRedis, relay_id: str, down: Callable[[CarrierFailed], None]
    ) -> None:
        super().__init__(redis.seats, relay_id)
        self._clock = clock
        self._redis = redis
        self.down = down
        self.connected = True
        self.refuses = False
        self.delay = 0.0  # delay of each command
        self.loses_answers = 0  # number of commands that succeed without an answer
        self._hanging: list[Deferred[None]] = []

    async def carry(self, what: tuple[object, ...], command: Callable[[], T]) -> T:
        if self.delay:
            await deferLater(self._clock, self.delay)
        if self.refuses:
            raise self._failed("refused")
        if not self.connected:
            hanging: Deferred[None] = Deferred()
            self._hanging.append(hanging)
            hanging.addTimeout(LIMIT, self._clock, lambda result, limit: None)
            await hanging
            raise self._failed("Redis does not answer in time")
        found = command()
        if self.loses_answers:
            self.loses_answers -= 1
            raise self._failed("the connection to Redis was lost")
        return found

    def heal(self) -> None:
        """End all faults; pending commands fail, as after the reset of a partitioned connection."""
        self.connected, self.refuses, self.delay, self.loses_answers = True, False, 0.0, 0
        hanging, self._hanging = self._hanging, []
        for one in hanging:
            if not one.called:
                one.callback(None)

    def _failed(self, why: str) -> CarrierFailed:
        failed = CarrierFailed(why)
        self.down(failed)
        return failed

    async def publish(self, relay_id: str, frames: Sequence[BusFrame]) -> int | None:
        def push() -> int:
            queue = self._redis.queues[relay_id]
            queue.extend(map(bytes, frames))
            return len(queue)

        return await self.carry(("publish",), push)

    async def take_back(
        self, relay_id: str, marks: Sequence[bytes], place: Place
    ) -> tuple[Sequence[bytes], Place | None]:
        def take_back() -> Sequence[bytes]:
            there = {mark_of(frame): frame for frame in self._redis.queues[relay_id]}
            found = [mark for mark in marks if mark in there]
            for mark in found:
                self._redis.queues[relay_id].remove(there[mark])
            return found

        return await self.carry(("take_back",), take_back), None

    async def pull(self) -> Sequence[bytes | Mapping[str, object]]:
        await deferLater(self._clock, 0.01)
        queue = self._redis.queues[self._relay_id]
        if not self.connected or self.refuses or not queue:
            return []
        found = tuple(queue)
        queue.clear()
        return found


class MemoryBackplane:
    """One relay's backplane, assembled as by `backplane.fleet`."""

    redirects = False

    def __init__(self, clock: Clock, redis: MemoryRedis, relay_id: str) -> None:
        self.log, self.counters = Log(), Counters()
        self._clock = clock
        self.outage = Outage(clock, self.log, self.counters, lambda: self.presence.tell_again())
        self.outage.expect("redis")
        self.carrier = carrier = MemoryCarrier(clock, redis, relay_id, self.down)

        def now() -> float:
            return 1_800_000_000.0 + clock.seconds()

        self.presence = Presence(
            clock,
            carrier,
            self.outage,
            self.log,
            now,
            relay_id=relay_id,
            ws_base_url=f"ws://{relay_id}",
            interval=20.0,
        )
        self.lookups = Lookups(
            clock, carrier, self.outage, self.log, is_own=relay_id.__eq__, acceptable=lambda url: True
        )
        self._outbound = Outbound(
            clock,
            lambda call: clock.callLater(0, call),
            carrier,
            self.outage,
            ParcelSigner(KEY, relay_id, now, lambda other: f"process of {other}"),
            self.log,
            self.counters,
            self._lost,
            most_bytes=1 << 22,
            most_frames=10_000,
        )
        freshness = Freshness(clock, now, 15.0)
        verifier = BatchVerifier(KEY, relay_id, f"process of {relay_id}", freshness, 1 << 20)
        single = FrameVerifier(KEY, relay_id, freshness, 1 << 20)
        self._inbound = Inbound(clock, carrier, single, verifier, self.log, self.counters)
        self._receiver: Receiver | None = None

    def down(self, failed: CarrierFailed) -> None:
        self.outage.down("redis", failed)
        self._clock.callLater(AGAIN, self._reconnect)

    def _reconnect(self) -> None:
        if self.carrier.connected and not self.carrier.refuses:
            self.outage.up("redis")
        elif self.outage.is_down:
            self._clock.callLater(AGAIN, self._reconnect)

    def _lost(self, parcels: Sequence[Parcel]) -> None:
        assert self._receiver is not None
        self._receiver.lost(parcels)

    def seat_changed(
        self, target: TargetKey, holder: object | None, machine_id: str | None, generation: int | None
    ) -> None:
        self.presence.changed(target, holder, machine_id, generation)

    def peers_changed(self, number: int) -> None: ...

    def known(self, target: TargetKey) -> Whereabouts | None:
        return self.lookups.known(target)

    def resolve(self, target: TargetKey) -> Deferred[Whereabouts | None]:
        return self.lookups.resolve(target)

    def publish(self, parcel: Parcel, publisher: Publisher | None = None) -> None:
        self._outbound.publish(parcel, publisher)

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.presence.start(receiver.moved)
        self._inbound.start(receiver.arrived)

    def stop(self) -> Deferred[None]:
        self._inbound.stop()
        self.presence.stop()
        self.lookups.stop()
        return succeed(None)

    def describe(self) -> Mapping[str, Any]:
        return {"mode": "redis"}


class Member:
    """One relay of the fleet, and its network to Redis."""

    def __init__(self, clock: Clock, redis: MemoryRedis, relay_id: str) -> None:
        self.relay_id = relay_id
        self.backplane = MemoryBackplane(clock, redis, relay_id)
        # A contest with a half-open daemon ends within what the tests allow for healing.
        self.relay = MemoryRelay(backplane=self.backplane, clock=clock, RELAY_PONG_TIMEOUT_MS="400")
        self.backplane.start(self.relay.relaying.remote)

    def cut(self) -> None:
        """Partition the network: commands hang."""
        self.backplane.carrier.connected = False

    def refuse(self) -> None:
        """Refuse commands at once."""
        self.backplane.carrier.refuses = True

    def heal(self) -> None:
        self.backplane.carrier.heal()


class MemoryFleet:
    """Relays that share a Redis and a clock."""

    def __init__(self, *relay_ids: str) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.redis = MemoryRedis()
        self.members = {name: Member(self.clock, self.redis, name) for name in relay_ids}

    def __getitem__(self, relay_id: str) -> Member:
        return self.members[relay_id]

    def pump(self) -> None:
        for member in self.members.values():
            member.relay.pump()

    def wait(self, seconds: float, step: float = 0.02) -> None:
        """Advance the clock, with turns of the reactor for all relays."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(step, end - self.clock.seconds()))
            self.pump()

    def restart_redis(self) -> None:
        """Drop all data of Redis and every connection to it."""
        self.redis.seats.lose_everything()
        self.redis.queues.clear()
        for member in self.members.values():
            member.backplane.down(CarrierFailed("the connection to Redis was lost"))

    def stop(self) -> None:
        for member in self.members.values():
            member.backplane.stop()
