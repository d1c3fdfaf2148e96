"""Presence: announces the daemons of this relay. `lookups` finds those of other relays.

For each target one call is in flight at a time, so that a daemon that leaves and comes back is never announced in
the wrong order. An announcement that failed is made again at the next refresh, or as soon as the backplane recovers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from attrs import define
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from viewport_relay.backplane.interface import Carrier, CarrierFailed, SeatClaim, TargetKey
from viewport_relay.backplane.lookups import log_failed
from viewport_relay.backplane.outage import Outage
from viewport_relay.observe.sink import EventSink

T = TypeVar("T")

#: Seconds after which a withdrawal that cannot be told is given up: by then the entry has expired.
WITHDRAW_FOR: Final = 60.0
#: Seconds between two looks for seats that other relays took.
MOVES_EVERY: Final = 0.5
#: Seconds after its join for which a daemon that is not announced yet counts as new.
NEW: Final = 2.0
#: Parts into which a refresh of all targets is spread.
_SLICES: Final = 10

_NO_CLAIM: Final = SeatClaim(None, 0)
#: `_Seat.told` while it is not known whether an announcement has reached the other relays.
_PERHAPS: Final = object()


@define(eq=False)
class _Seat:
    """A seat of this relay: its present `holder`, and the holder that was announced last (`told`)."""

    holder: object | None = None
    machine_id: str | None = None
    claim: SeatClaim = _NO_CLAIM
    told: object | None = None
    told_machine: str | None = None
    renew_at: float = 0.0
    changed_at: float = 0.0
    busy: bool = False


class Presence:
    """Announcements of the daemons here.

    An announcement names `relay_id` and `ws_base_url` and is renewed every `interval` seconds; with 0 there is none.
    `now` gives seconds since the epoch.
    """

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        outage: Outage,
        log: EventSink,
        now: Callable[[], float],
        *,
        relay_id: str,
        ws_base_url: str,
        interval: float,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._outage = outage
        self._relay_id = relay_id
        self._ws_base_url = ws_base_url
        self._interval = interval
        self._log = log
        self._now = now
        self._moved: Callable[[TargetKey, object], None] = lambda target, holder: None
        self._seats: dict[TargetKey, _Seat] = {}
        self._calls = DeferredSemaphore(carrier.calls)
        self._refresh = LoopingCall(self._look_round)
        self._moves = LoopingCall(lambda: Deferred.fromCoroutine(self._look_for_moved()))
        self._refresh.clock = self._moves.clock = clock
        self._settled: list[Deferred[None]] = []

    def start(self, moved: Callable[[TargetKey, object], None]) -> None:
        """Begin. `moved` is called with a target and its holder when another relay holds the daemon now."""
        self._moved = moved
        if self._interval:
            self._refresh.start(max(0.02, self._interval / _SLICES), now=False)
            self._moves.start(MOVES_EVERY, now=False)

    async def settle(self) -> None:
        """Renew nothing any more, and wait until each announcement in flight is made or has failed."""
        self.stop()
        if any(seat.busy for seat in self._seats.values()):
            waiting: Deferred[None] = Deferred()
            self._settled.append(waiting)
            await waiting

    def stop(self) -> None:
        """Renew nothing any more."""
        for loop in (self._refresh, self._moves):
            if loop.running:
                loop.stop()

    # -- the daemons here ----------------------------------------------------------------------------------

    def changed(
        self, target: TargetKey, holder: object | None, machine_id: str | None, generation: int | None = None
    ) -> None:
        """The daemon of this target is now `holder`, or there is none."""
        seat = self._seats.get(target)
        if not self._interval or (seat is None and holder is None):
            return
        if seat is None:
            seat = self._seats[target] = _Seat()
        if seat.holder is not holder:
            seat.holder, seat.machine_id = holder, machine_id
            seat.claim = SeatClaim(generation, int(self._now() * 1000))
            seat.changed_at = self._clock.seconds()
        self._go_on(target, seat)

    def tell_again(self) -> None:
        """Announce every daemon again after an outage: the carrier may have lost its data."""
        for target, seat in tuple(self._seats.items()):
            seat.renew_at = 0.0
            self._go_on(target, seat)

    def _look_round(self) -> None:
        now = self._clock.seconds()
        for target, seat in tuple(self._seats.items()):
            if seat.holder is None and now - seat.changed_at >= WITHDRAW_FOR and not seat.busy:
                del self._seats[target]
            elif now >= seat.renew_at:
                self._go_on(target, seat)

    async def _look_for_moved(self) -> None:
        """Renew at once what another relay has taken: the renewal finds out whether that is so."""
        if not self._seats or self._outage.is_down:
            return
        try:
            targets = await self._carrier.moved()
        except CarrierFailed:  # logged as an outage, or tried again soon
            return
        for target in targets:
            seat = self._seats.get(target)
            if seat is not None and seat.holder is not None:
                seat.renew_at = 0.0
                self._go_on(target, seat)

    def _go_on(self, target: TargetKey, seat: _Seat) -> None:
        if not seat.busy:
            seat.busy = True
            Deferred.fromCoroutine(self._tell(target, seat)).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        self._log.event("internal_error", message=failure.getTraceback())

    async def _tell(self, target: TargetKey, seat: _Seat) -> None:
        try:
            while await self._step(target, seat):
                pass
        except CarrierFailed as error:
            log_failed(self._log, target, error)  # a refresh or the recovery tries again
        finally:
            seat.busy = False
            if seat.holder is None and seat.told is None:
                self._seats.pop(target, None)
            while self._settled and not any(other.busy for other in self._seats.values()):
                self._settled.pop().callback(None)

    async def _step(self, target: TargetKey, seat: _Seat) -> bool:
        """Make one announcement or withdrawal; False when none is due."""
        holder, now = seat.holder, self._clock.seconds()
        if holder is None:
            if seat.told is None:
                return False
            await self._call(partial(self._carrier.withdraw, target, self._entry(target, seat.told_machine)))
            seat.told = None
            return True
        if seat.told is holder and now < seat.renew_at:
            return False
        seat.renew_at = now + self._interval
        machine_id = seat.machine_id
        entry = self._entry(target, machine_id)
        # A daemon that could not be announced when it came may have moved on since: it is not the newest.
        new = seat.told is not holder and now - seat.changed_at <= NEW
        try:
            other = await self._call(partial(self._carrier.take, target, entry, seat.claim, new=new))
        except CarrierFailed:
            # Only the answer may be lost: a daemon that leaves now has to be withdrawn.
            seat.told, seat.told_machine = seat.told or _PERHAPS, machine_id
            raise
        if other is None:
            seat.told, seat.told_machine = holder, machine_id
            return True
        seat.told = None  # the entry is another relay's
        if seat.holder is holder:
            self._moved(target, holder)
        return seat.holder is not holder  # one that stays is announced again at the next refresh

    async def _call(self, call: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        async with self._calls:
            if self._outage.is_down:
                raise self._outage.failed
            return await call()

    def _entry(self, target: TargetKey, machine_id: str | None) -> dict[str, object]:
        machine = {} if machine_id is None else {"machineId": machine_id}
        return {
            "relayId": self._relay_id,
            "relayWsBaseUrl": self._ws_base_url,
            "daemonConnected": True,
            "runtimeTargetId": target[1],
            **machine,
            "updatedAtMs": int(self._now() * 1000),
        }
