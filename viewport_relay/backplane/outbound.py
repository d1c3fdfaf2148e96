"""The outgoing side of the bus: messages for peers on other relays leave in order, several in one call.

What the sockets bring for one relay leaves together when they are quiet. Messages of one series (see `Carrier.series`)
are published call after call, so that their order is kept from the first one on, also while the carrier is still
connecting. What waits is bounded for each relay; a client that publishes too much is not read meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from viewport_relay.backplane.batch import ParcelSigner
from viewport_relay.backplane.interface import Carrier, CarrierFailed, Parcel, Publisher
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.unread import UnreadQueues
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink

#: Bytes that wait for one relay above which the clients that publish to it are not read, but at most a quarter of what may wait.
#: They are read again below a quarter of that.
PAUSE_AT: Final = 1_048_576
#: Payload bytes of one publish call, and at most one message more: what stays in the caches while it is copied.
CALL_BYTES: Final = 524_288


@define(eq=False)
class _Series:
    """Messages that are published call after call; it exists as long as one is queued or in flight."""

    relay: _Relay
    key: object
    queue: deque[Parcel] = Factory(deque)


@define(eq=False)
class _Relay:
    """The messages for one relay, queued or in flight, over all series."""

    relay_id: str
    bytes: int = 0
    frames: int = 0
    series: dict[object, _Series] = Factory(dict)
    paused: dict[Publisher, None] = Factory(dict)


class Outbound:
    """The outgoing side of the bus. `most_bytes` and `most_frames` bound the queue for one relay, `most_bytes` also its unread frames.

    `when_quiet` calls back when no socket has more to read, or soon. `lost` gets the parcels that could not be carried.
    """

    def __init__(
        self,
        clock: IReactorTime,
        when_quiet: Callable[[Callable[[], None]], object],
        carrier: Carrier,
        outage: Outage,
        signer: ParcelSigner,
        log: EventSink,
        counters: Counters,
        lost: Callable[[Sequence[Parcel]], None],
        *,
        most_bytes: int,
        most_frames: int,
    ) -> None:
        self._when_quiet = when_quiet
        self._carrier = carrier
        self._series_of = carrier.series
        self._outage = outage
        self._signer = signer
        self._log = log
        self._counters = counters
        self._lost = lost
        self._most_bytes = most_bytes
        self._most_frames = most_frames
        self._pause_at = min(PAUSE_AT, most_bytes // 4)
        self._unread = UnreadQueues(clock, carrier, self._taken_back, most_bytes)
        self._relays: dict[str, _Relay] = {}
        self._ready: deque[_Series] = deque()  # series whose next call can be made
        self._begins = False  # whether `_begin` will be called, when the sockets are quiet
        self._calls = 0  # in flight
        self._flushed: list[Deferred[None]] = []

    @property
    def queued(self) -> int:
        """Bytes queued or in flight, for all relays."""
        return sum(relay.bytes for relay in self._relays.values())

    def publish(self, parcel: Parcel, publisher: Publisher | None = None) -> None:
        """Queue a message. `publisher` is paused while too much waits for its relay.

        Over the bounds the oldest message of the relay's longest series goes, unless it is on its way already.
        """
        if self._outage.is_down:
            self._counters.bus_publish_failed += len(parcel.payloads)
            self._lost((parcel,))
            return
        relay = self._relays.get(parcel.to_relay)
        if relay is None:
            relay = self._relays[parcel.to_relay] = _Relay(parcel.to_relay)
        frames = len(parcel.payloads)
        if frames > 1 and (self._carrier.batch == 1 or self._exceeds(relay, parcel.size, frames)):
            for single in parcel.singles():  # each is carried or dropped by itself
                self.publish(single, publisher)
            return
        key = self._series_of(parcel)
        series = relay.series.get(key)
        if series is None:
            series = relay.series[key] = _Series(relay, key)
            self._ready.append(series)
            self._send_ready()
        series.queue.append(parcel)
        relay.bytes += parcel.size
        relay.frames += frames
        if publisher is not None and relay.bytes >= self._pause_at and publisher not in relay.paused:
            relay.paused[publisher] = None
            publisher.pause_reading(relay)
        if self._exceeds(relay):
            self._drop_oldest(relay, parcel)

    def _exceeds(self, relay: _Relay, size: int = 0, frames: int = 0) -> bool:
        """Whether what waits for a relay, and so much more, is over the bounds."""
        return relay.bytes + size > self._most_bytes or relay.frames + frames > self._most_frames

    def _drop_oldest(self, relay: _Relay, newest: Parcel) -> None:
        dropped = []
        while self._exceeds(relay):
            series = max(relay.series.values(), key=lambda series: len(series.queue))
            if series.queue[0] is newest:
                break
            oldest = series.queue.popleft()
            relay.bytes -= oldest.size
            relay.frames -= len(oldest.payloads)
            dropped.append(oldest)
        if dropped:
            frames = sum([len(parcel.payloads) for parcel in dropped])
            self._counters.bus_queue_dropped += frames
            self._counters.bus_publish_failed += frames
            self._lost(dropped)

    async def flush(self) -> None:
        """Wait until the queues are empty and no call is in flight."""
        if self._relays:
            waiting: Deferred[None] = Deferred()
            self._flushed.append(waiting)
            await waiting

    def _send_ready(self) -> None:
        """Send when the sockets are quiet: with what they still bring."""
        if self._ready and not self._begins:
            self._begins = True
            self._when_quiet(self._begin)

    def _begin(self) -> None:
        self._begins = False
        while self._ready and self._calls < self._carrier.publishes:
            self._calls += 1
            Deferred.fromCoroutine(self._send(self._ready.popleft())).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        self._log.event("internal_error", message=failure.getTraceback())

    async def _send(self, series: _Series) -> None:
        """Publish one batch: series that always have something take turns."""
        relay = series.relay
        try:
            if series.queue:  # else what waited was dropped
                await self._publish(relay, *self._next_batch(series))
        finally:
            self._calls -= 1
            if series.queue:
                self._ready.append(series)
            else:
                del relay.series[series.key]
                if not relay.series:
                    del self._relays[relay.relay_id]
            self._send_ready()
        if not self._relays:
            flushed, self._flushed = self._flushed, []
            for waiting in flushed:
                waiting.callback(None)

    async def _publish(self, relay: _Relay, batch: list[Parcel], size: int, frames: int) -> None:
        try:
            if self._outage.is_down:
                raise self._outage.failed
            relay_id = relay.relay_id
            if not self._unread.takes(relay_id):
                raise CarrierFailed(f"the relay {relay_id} does not read its queue")
            # Signed now, not when they were queued: they have to be fresh when they arrive.
            signed = self._signer.sign(relay_id, batch)
            length = await self._carrier.publish(relay_id, [frame for frame, _ in signed])
            if length is not None:
                self._unread.pushed(relay_id, signed, length)
        except CarrierFailed as error:
            self._failed(batch, frames, error)
        else:
            self._counters.bus_publish_ok += frames
        finally:
            relay.bytes -= size
            relay.frames -= frames
            if relay.paused and relay.bytes <= self._pause_at // 4:
                paused, relay.paused = relay.paused, {}
                for publisher in paused:
                    publisher.resume_reading(relay)

    def _next_batch(self, series: _Series) -> tuple[list[Parcel], int, int]:
        """The next batch, the bytes of its payloads, and their number."""
        queue, most = series.queue, self._carrier.batch
        batch: list[Parcel] = []
        size = frames = 0
        while queue and frames < most and size < CALL_BYTES:
            parcel = queue.popleft()
            batch.append(parcel)
            size += parcel.size
            frames += len(parcel.payloads)
        return batch, size, frames

    def _failed(self, batch: list[Parcel], frames: int, error: CarrierFailed) -> None:
        self._counters.bus_publish_failed += frames
        if not error.outage:  # else it was logged when it began
            self._log.event(
                "bus_publish_failed",
                message=error.why,
                frames=frames,
                workspaceId=batch[0].target[0],
                runtimeTargetId=batch[0].target[1],
                targetRelayId=batch[0].to_relay,
            )
        self._lost(batch)

    def _taken_back(self, relay_id: str, parcels: Sequence[Parcel], was_read: bool) -> None:
        self._counters.bus_queue_unread += sum([len(parcel.payloads) for parcel in parcels])
        if was_read:
            self._log.event(
                "bus_queue_unread",
                message=f"the relay {relay_id} does not read its queue",
                targetRelayId=relay_id,
            )
        self._lost(parcels)

    def stop(self) -> None:
        """Stop watching the queues of other relays."""
        self._unread.stop()
