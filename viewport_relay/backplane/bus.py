"""The bus: messages for peers on other relays leave, and those from other relays come in.

Outgoing messages of one lane (see `Carrier.lane`) are published call after call, several in one where the carrier
can, so that their order is kept from the first one on, also while the carrier is still connecting. What waits is
bounded for each relay; clients that would fill it are not read meanwhile. Incoming messages are checked and handed on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from attrs import Factory, define
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from viewport_relay.backplane.batch import MAGIC, BatchSigner, BatchVerifier
from viewport_relay.backplane.interface import Arrival, Carrier, CarrierFailed, Feeder, Parcel
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.replay import BadFrame
from viewport_relay.backplane.signing import FrameSigner, FrameVerifier
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason

#: Bytes that wait for one relay above which those who feed it are not read, and below which they are again.
PAUSE_AT: Final = 262_144
RESUME_AT: Final = 65_536
#: Payload bytes of one publish call: about the time for which it holds the reactor and the carrier up.
CALL_BYTES: Final = 1_048_576
#: Incoming frames that are handled before the reactor gets its turn.
SLICE: Final = 64
#: Seconds between two pulls that fail: the first, and the longest.
_RETRY_FIRST: Final = 0.25
_RETRY_MOST: Final = 5.0


@define(eq=False)
class _Queued:
    parcel: Parcel
    failed: Callable[[], None]
    dropped: bool = False  # it has gone, for newer ones: whoever comes upon it in its lane passes it over


@define(eq=False)
class _Lane:
    """Its calls go one after the other; it is there as long as something waits or is under way."""

    queue: deque[_Queued] = Factory(deque)


@define(eq=False)
class _Relay:
    """What is queued for one relay, over all lanes: `waiting` oldest first, the rest is on its way."""

    bytes: int = 0
    frames: int = 0
    waiting: deque[_Queued] = Factory(deque)
    paused: dict[Feeder, None] = Factory(dict)


class Outbound:
    """What leaves. `most_bytes` and `most_frames` bound what waits for one relay.

    `reads_batches` gives the instance of a relay that reads what `batch_signer` signs, None for all others.
    """

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        outage: Outage,
        signer: FrameSigner,
        log: EventSink,
        counters: Counters,
        *,
        most_bytes: int,
        most_frames: int,
        batch_signer: BatchSigner | None = None,
        reads_batches: Callable[[str], str | None] = lambda relay_id: None,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._outage = outage
        self._signer = signer
        self._batch_signer = batch_signer
        self._reads_batches = reads_batches
        self._log = log
        self._counters = counters
        self._most_bytes = most_bytes
        self._most_frames = most_frames
        self._lanes: dict[object, _Lane] = {}
        self._relays: dict[str, _Relay] = {}
        self._calls = DeferredSemaphore(carrier.lanes)
        self._flushed: list[Deferred[None]] = []

    @property
    def queued(self) -> int:
        """Bytes that wait, for all relays."""
        return sum(relay.bytes for relay in self._relays.values())

    def publish(self, parcel: Parcel, failed: Callable[[], None], feeder: Feeder | None = None) -> None:
        """Queue a message; `failed` is called when it cannot be carried. `feeder` is paused while too much waits.

        When too much waits for a relay, the oldest that waits for it goes, unless it is on its way already.
        """
        if self._outage.is_down:
            self._counters.bus_publish_failed += 1
            failed()
            return
        size = len(parcel.payload)
        relay = self._relays.get(parcel.to_relay)
        if relay is None:
            relay = self._relays[parcel.to_relay] = _Relay()
        queued = _Queued(parcel, failed)
        relay.waiting.append(queued)
        relay.bytes += size
        relay.frames += 1
        dropped = []
        while len(relay.waiting) > 1 and (relay.bytes > self._most_bytes or relay.frames > self._most_frames):
            oldest = relay.waiting.popleft()
            oldest.dropped = True
            relay.bytes -= len(oldest.parcel.payload)
            relay.frames -= 1
            dropped.append(oldest)
        if feeder is not None and relay.bytes >= PAUSE_AT and feeder not in relay.paused:
            relay.paused[feeder] = None
            feeder.pause_reading(relay)
        key = self._carrier.lane(parcel)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
            # At the end of this turn: what one read brings leaves together.
            self._clock.callLater(0, self._begin, key, lane)
        lane.queue.append(queued)
        if dropped:
            self._counters.bus_queue_dropped += len(dropped)
            self._counters.bus_publish_failed += len(dropped)
            for oldest in dropped:
                oldest.failed()

    async def flush(self) -> None:
        """Wait until nothing is queued any more."""
        if self._lanes:
            waiting: Deferred[None] = Deferred()
            self._flushed.append(waiting)
            await waiting

    def _begin(self, key: object, lane: _Lane) -> None:
        Deferred.fromCoroutine(self._send(key, lane)).addErrback(
            lambda failure: self._log.event("internal_error", message=failure.getTraceback())
        )

    async def _send(self, key: object, lane: _Lane) -> None:
        while lane.queue:
            await self._calls.acquire()  # for one batch: lanes that always have something take turns
            try:
                batch = self._next_batch(lane)
                if batch:
                    await self._publish(batch)
            finally:
                self._calls.release()
        del self._lanes[key]
        if not self._lanes:
            flushed, self._flushed = self._flushed, []
            for waiting in flushed:
                waiting.callback(None)

    async def _publish(self, batch: list[_Queued]) -> None:
        try:
            if self._outage.is_down:
                raise self._outage.failed
            # Signed now, not when they were queued: they have to be fresh when they arrive.
            await self._carrier.publish(self._signed([queued.parcel for queued in batch]))
        except CarrierFailed as error:
            self._failed(batch, error)
        else:
            self._counters.bus_publish_ok += len(batch)
        finally:
            self._gone(batch)

    def _signed(self, parcels: list[Parcel]) -> list[tuple[str, bytes]]:
        """Bus frames for the relays that they are for, in the form that each reads; those of one relay in order."""
        if self._batch_signer is None:
            return [(parcel.to_relay, self._signer.sign(parcel)) for parcel in parcels]
        relays: dict[str, list[Parcel]] = {}
        for parcel in parcels:
            relays.setdefault(parcel.to_relay, []).append(parcel)
        signed = []
        for relay_id, theirs in relays.items():
            instance = self._reads_batches(relay_id)
            if instance is None:
                signed += [(relay_id, self._signer.sign(parcel)) for parcel in theirs]
            else:
                signed.append((relay_id, self._batch_signer.sign(theirs, instance)))
        return signed

    def _next_batch(self, lane: _Lane) -> list[_Queued]:
        batch: list[_Queued] = []
        size = 0
        while lane.queue and len(batch) < self._carrier.batch and size < CALL_BYTES:
            queued = lane.queue.popleft()
            if queued.dropped:
                continue
            # Those of one relay leave in the order in which they came, whatever their lanes.
            self._relays[queued.parcel.to_relay].waiting.remove(queued)
            batch.append(queued)
            size += len(queued.parcel.payload)
        return batch

    def _failed(self, batch: list[_Queued], error: CarrierFailed) -> None:
        self._counters.bus_publish_failed += len(batch)
        if not error.outage:  # an outage has been told already
            self._log.event(
                "bus_publish_failed",
                message=error.why,
                frames=len(batch),
                workspaceId=batch[0].parcel.target[0],
                runtimeTargetId=batch[0].parcel.target[1],
                targetRelayId=batch[0].parcel.to_relay,
            )
        for queued in batch:
            queued.failed()

    def _gone(self, batch: list[_Queued]) -> None:
        for queued in batch:
            relay = self._relays[queued.parcel.to_relay]
            relay.bytes -= len(queued.parcel.payload)
            relay.frames -= 1
            if not relay.frames:
                del self._relays[queued.parcel.to_relay]
            if relay.paused and relay.bytes <= RESUME_AT:
                paused, relay.paused = relay.paused, {}
                for feeder in paused:
                    feeder.resume_reading(relay)


class Inbound:
    """What comes in. `arrived` gets the good frames in order, at most SLICE at a time; the rest is counted and logged."""

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        verifier: FrameVerifier,
        log: EventSink,
        counters: Counters,
        batch_verifier: BatchVerifier | None = None,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._verifier = verifier
        self._batch_verifier = batch_verifier
        self._log = log
        self._counters = counters
        self._arrived: Callable[[Sequence[Arrival]], None] = lambda arrivals: None
        self._pulling: Deferred[None] | None = None

    @property
    def running(self) -> bool:
        return self._pulling is not None

    def start(self, arrived: Callable[[Sequence[Arrival]], None]) -> None:
        """Begin to pull."""
        self._arrived = arrived
        self._pulling = Deferred.fromCoroutine(self._pull())
        self._pulling.addErrback(self._ended)

    def stop(self) -> None:
        """Give up the pull that is under way."""
        pulling, self._pulling = self._pulling, None
        if pulling is not None:
            pulling.cancel()

    def _ended(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.event("internal_error", message=failure.getTraceback())

    async def _pull(self) -> None:
        retry = _RETRY_FIRST
        while True:
            try:
                frames = await self._carrier.pull()
            except CarrierFailed:
                await deferLater(self._clock, retry)
                retry = min(2 * retry, _RETRY_MOST)
                continue
            retry = _RETRY_FIRST
            waiting = [frame for raw in frames for frame in self._verified(raw)]
            for at in range(0, len(waiting), SLICE):
                if at:
                    await deferLater(self._clock, 0)
                self._take(waiting[at : at + SLICE])

    def _verified(self, raw: object) -> Iterable[Arrival | BadFrame]:
        if isinstance(raw, bytes) and raw.startswith(MAGIC) and self._batch_verifier is not None:
            return self._batch_verifier.verify(raw)
        if isinstance(raw, bytes | dict):
            return (self._verifier.verify(raw),)
        return (BadFrame(Reason.BUS_FRAME_REFUSED, "not a JSON object"),)

    def _take(self, frames: Sequence[Arrival | BadFrame]) -> None:
        self._counters.bus_pull_frames += len(frames)
        arrivals = []
        for frame in frames:
            if isinstance(frame, Arrival):
                arrivals.append(frame)
            else:
                self._refuse(frame)
        if arrivals:
            self._arrived(arrivals)

    def _refuse(self, frame: BadFrame) -> None:
        counters = self._counters
        counters.drops[frame.reason] += 1
        if frame.reason is Reason.BUS_SIGNATURE_INVALID:
            counters.bus_pull_invalid_signature += 1
        elif frame.reason is Reason.BUS_SIGNATURE_STALE:
            counters.bus_pull_stale_signature += 1
        elif frame.reason is Reason.BUS_SIGNATURE_REPLAYED:
            counters.bus_pull_replayed_signature += 1
        if not frame.usual:
            self._log.event("bus_drop", reason=frame.reason, detail=frame.detail, sourceRelayId=frame.source)
