"""Deferred cache: concurrent callers of a key share one call, whose result is kept for the time that the call names.

Failures are not kept. The cache refreshes nothing and starts no timers: an expired entry is dropped when its key is asked for,
when a value is stored, or by `expire`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from attrs import Factory, define, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@frozen
class Fetched(Generic[V]):
    """What a call gives: the value, and for how many seconds it may be remembered (0 or less: not at all).

    A refusal that should be remembered for a short time is a value too; the asker raises it.
    """

    value: V
    ttl: float


Fetch = Callable[[], Coroutine["Deferred[Any]", Any, Fetched[V]]]


@frozen
class _Kept(Generic[V]):
    value: V
    until: float


@define(eq=False)
class _Flight(Generic[V]):
    """One call on its way, with those who wait for it in order of arrival."""

    call: Deferred[Any] | None = None
    waiters: dict[Deferred[V], None] = Factory(dict)
    ended: bool = False


class DeferredCache(Generic[K, V]):
    """Remembers at most `max_entries` values (the oldest goes first); calls on their way come on top.

    `clock` measures the lives of entries. With `abandon` a call is cancelled when the last one who waited for
    it has gone; without, it goes on and its result is remembered.
    """

    def __init__(self, clock: IReactorTime, max_entries: int, *, abandon: bool = True) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._abandon = abandon
        self._kept: dict[K, _Kept[V]] = {}  # oldest first
        self._flights: dict[K, _Flight[V]] = {}

    def __len__(self) -> int:
        """How many values are remembered, those that have run out included."""
        return len(self._kept)

    @property
    def in_flight(self) -> int:
        """How many calls are on their way."""
        return len(self._flights)

    def peek(self, key: K) -> V | None:
        """The remembered value, if there is one that has not run out."""
        kept = self._kept.get(key)
        return None if kept is None or self._clock.seconds() >= kept.until else kept.value

    def get(self, key: K, fetch: Fetch[V]) -> Deferred[V]:
        """The remembered value, or what a call gives: one on its way, else `fetch()`, which starts now.

        Cancelling the Deferred takes this one waiter out and harms no other.
        """
        kept = self._kept.get(key)
        if kept is not None:
            if self._clock.seconds() < kept.until:
                return succeed(kept.value)
            del self._kept[key]
        flight = self._flights.get(key)
        if flight is not None:
            return self._wait(key, flight)
        flight = self._flights[key] = _Flight()
        waiter = self._wait(key, flight)
        flight.call = Deferred.fromCoroutine(fetch())
        flight.call.addCallbacks(
            self._arrived, self._failed, callbackArgs=(key, flight), errbackArgs=(key, flight)
        )
        return waiter

    def put(self, key: K, value: V, ttl: float) -> None:
        """Remember a value that needed no call, for `ttl` seconds; 0 or less: not at all."""
        if ttl > 0:
            self._keep(key, Fetched(value, ttl))

    def expire(self) -> None:
        """Forget expired values, so that no secret stays in memory because its key is not asked for again."""
        now = self._clock.seconds()
        for key in [key for key, kept in self._kept.items() if now >= kept.until]:
            del self._kept[key]

    def flush(self) -> None:
        """Forget every value. Calls on their way still answer those who wait; the answers are not kept."""
        self._kept.clear()
        self._flights.clear()

    def cancel(self) -> None:
        """Flush, and cancel the calls on their way; who waits for them gets CancelledError."""
        flights = list(self._flights.values())
        self.flush()
        for flight in flights:
            if flight.call is not None:
                flight.call.cancel()

    def _wait(self, key: K, flight: _Flight[V]) -> Deferred[V]:
        waiter: Deferred[V] = Deferred(lambda gone: self._left(key, flight, gone))
        flight.waiters[waiter] = None
        return waiter

    def _left(self, key: K, flight: _Flight[V], waiter: Deferred[V]) -> None:
        flight.waiters.pop(waiter, None)
        if flight.waiters or flight.ended or not self._abandon:
            return
        self._end(key, flight)
        if flight.call is not None:
            flight.call.cancel()

    def _end(self, key: K, flight: _Flight[V]) -> bool:
        """The call is over; False if it was flushed meanwhile."""
        flight.ended = True
        if self._flights.get(key) is not flight:
            return False
        del self._flights[key]
        return True

    def _arrived(self, fetched: Fetched[V], key: K, flight: _Flight[V]) -> None:
        if self._end(key, flight) and fetched.ttl > 0:
            self._keep(key, fetched)
        while flight.waiters:  # one at a time: a waiter may cancel another one
            waiter = next(iter(flight.waiters))
            del flight.waiters[waiter]
            waiter.callback(fetched.value)

    def _failed(self, failure: Failure, key: K, flight: _Flight[V]) -> None:
        self._end(key, flight)
        while flight.waiters:
            waiter = next(iter(flight.waiters))
            del flight.waiters[waiter]
            waiter.errback(failure)

    def _keep(self, key: K, fetched: Fetched[V]) -> None:
        now = self._clock.seconds()
        while self._kept:
            oldest = next(iter(self._kept))
            if len(self._kept) < self._max_entries and now < self._kept[oldest].until:
                break
            del self._kept[oldest]
        if self._max_entries > 0:
            self._kept[key] = _Kept(fetched.value, now + fetched.ttl)
