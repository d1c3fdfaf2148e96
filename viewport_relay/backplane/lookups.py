"""Look-ups: which relay holds the daemon of a target, asked from the carrier and remembered for a short time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from viewport_relay.backplane.interface import Carrier, CarrierFailed, TargetKey, Whereabouts
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.redirect import LONGEST_URL
from viewport_relay.deferredcache import DeferredCache, Fetched
from viewport_relay.observe.sink import EventSink

#: Seconds for which an entry is remembered, and for which it is remembered that there is none: the first is the
#: wire protocol's, the second only keeps a client that insists from asking at every frame.
FOUND_TTL: Final = 2.0
ABSENT_TTL: Final = 0.25
#: Seconds after which an entry that is used is asked for again.
ASK_AGAIN: Final = 1.0
#: Targets remembered at most.
CACHE_MAX: Final = 8192


def log_failed(log: EventSink, target: TargetKey, error: CarrierFailed) -> None:
    """Log a failed call about a target's presence; an outage is logged by `Outage`."""
    if not error.outage:
        log.event(
            "presence_failed",
            reason=error.reason,
            message=error.why,
            workspaceId=target[0],
            runtimeTargetId=target[1],
        )


@define(eq=False)
class _Found:
    """A resolved place; from `ask_again` on a use of it resolves it again."""

    place: Whereabouts | None
    ask_again: float


class Lookups:
    """A cache of where the daemons of other relays are.

    `is_own` tells the ids of this relay: its entries about daemons that are not here are of an earlier process.
    `acceptable` says whether clients may be sent to a URL.
    """

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        outage: Outage,
        log: EventSink,
        *,
        is_own: Callable[[str], bool],
        acceptable: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._outage = outage
        self._log = log
        self._is_own = is_own
        self._acceptable = acceptable
        self._cache: DeferredCache[TargetKey, _Found] = DeferredCache(clock, CACHE_MAX, abandon=False)

    def stop(self) -> None:
        """Cancel the look-ups in flight."""
        self._cache.cancel()

    def known(self, target: TargetKey) -> Whereabouts | None:
        """The cached relay of a daemon. It is resolved again before it expires, so that no frame waits for it."""
        found = self._cache.peek(target)
        if found is None:
            return None
        if self._clock.seconds() >= found.ask_again:
            found.ask_again = float("inf")
            Deferred.fromCoroutine(self._ask_again(target))
        return found.place

    def resolve(self, target: TargetKey) -> Deferred[Whereabouts | None]:
        """The other relay that holds the daemon. Never fails: where the carrier does, the result is None."""
        asking = self._cache.get(target, partial(self._ask, target))
        return asking.addCallbacks(lambda found: found.place, lambda failure: None)

    async def _ask(self, target: TargetKey) -> Fetched[_Found]:
        if self._outage.is_down:
            raise self._outage.failed
        try:
            place = self._read(await self._carrier.resolve(target) or {})
        except CarrierFailed as error:
            log_failed(self._log, target, error)
            raise
        ttl = ABSENT_TTL if place is None else FOUND_TTL
        return Fetched(_Found(place, self._clock.seconds() + ASK_AGAIN), ttl)

    async def _ask_again(self, target: TargetKey) -> None:
        try:
            fetched = await self._ask(target)
        except CarrierFailed:
            return  # it is forgotten when its time is over
        self._cache.put(target, fetched.value, fetched.ttl)

    def _read(self, entry: Mapping[str, object]) -> Whereabouts | None:
        relay_id, url = entry.get("relayId"), entry.get("relayWsBaseUrl")
        if entry.get("daemonConnected") is not True or type(relay_id) is not str or type(url) is not str:
            return None
        if not relay_id or len(relay_id) > 128 or self._is_own(relay_id) or len(url) > LONGEST_URL:
            return None
        return Whereabouts(relay_id, url) if self._acceptable(url) else None
