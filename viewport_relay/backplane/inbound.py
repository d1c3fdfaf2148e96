"""The incoming side of the bus: messages from other relays are pulled, checked and handed on in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from viewport_relay.backplane.batch import MAGIC, BatchVerifier
from viewport_relay.backplane.interface import Arrival, Carrier, CarrierFailed
from viewport_relay.backplane.replay import BadFrame
from viewport_relay.backplane.signing import FrameVerifier
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason

#: Arrivals that are handled before the reactor gets its turn.
SLICE: Final = 256
#: Seconds after a pull that failed. The carrier's own connection has the back-off: while it is down a pull fails without a call.
_RETRY: Final = 0.25


class Inbound:
    """The incoming side of the bus. `arrived` gets the accepted frames in order, at most SLICE at a time; refused ones are logged."""

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        verifier: FrameVerifier,
        batch_verifier: BatchVerifier,
        log: EventSink,
        counters: Counters,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._verifier = verifier
        self._batch_verifier = batch_verifier
        self._log = log
        self._counters = counters
        self._pulling: Deferred[None] | None = None

    def start(self, arrived: Callable[[Sequence[Arrival]], None]) -> None:
        """Start pulling."""
        self._pulling = Deferred.fromCoroutine(self._pull(arrived))
        self._pulling.addErrback(self._ended)

    def stop(self) -> None:
        """Cancel the pull in flight."""
        pulling, self._pulling = self._pulling, None
        if pulling is not None:
            pulling.cancel()

    def _ended(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.event("internal_error", message=failure.getTraceback())

    async def _pull(self, arrived: Callable[[Sequence[Arrival]], None]) -> None:
        while True:
            try:
                frames = await self._carrier.pull()
            except CarrierFailed as error:
                if not error.outage:  # else it was logged when it began
                    self._log.event("bus_pull_failed", message=error.why)
                await deferLater(self._clock, _RETRY)
                continue
            waiting = [frame for raw in frames for frame in self._verified(raw)]
            for at in range(0, len(waiting), SLICE):
                if at:
                    await deferLater(self._clock, 0)
                arrivals = self._counted(waiting[at : at + SLICE])
                if arrivals:
                    arrived(arrivals)

    def _verified(self, raw: object) -> Iterable[Arrival | BadFrame]:
        if isinstance(raw, bytes) and raw.startswith(MAGIC):
            return self._batch_verifier.verify(raw)
        if isinstance(raw, bytes | dict):
            return (self._verifier.verify(raw),)
        return (BadFrame(Reason.BUS_FRAME_REFUSED, "not a JSON object"),)

    def _counted(self, frames: Sequence[Arrival | BadFrame]) -> list[Arrival]:
        """Count frames, and give the accepted ones."""
        arrivals = []
        for frame in frames:
            if type(frame) is Arrival:
                self._counters.bus_pull_frames += len(frame.sizes)
                arrivals.append(frame)
            elif isinstance(frame, BadFrame):
                self._counters.bus_pull_frames += 1
                self._refuse(frame)
        return arrivals

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
