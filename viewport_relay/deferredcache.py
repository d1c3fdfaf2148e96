"""Deferred cache: concurrent callers of a key share one call, whose result is kept for the time that the call names.

Failures are not kept. The cache has no timers: an expired entry is dropped at the next `get` of its key, when a value is
stored, or by `expire`.
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
    """The result of a call: the value, and for how many seconds it may be cached (0 or less: not at all).

    A refusal that should be cached for a short time is a value too; the caller of `get` raises it.
    """

    value: V
    ttl: float


Fetch = Callable[[], Coroutine["Deferred[Any]", Any, Fetched[V]]]


@define(eq=False)
class _Flight(Generic[V]):
    """A call in flight, with its waiters in order of arrival."""

    call: Deferred[Any] | None = None
    waiters: dict[Deferred[V], None] = Factory(dict)
    ended: bool = False


class DeferredCache(Generic[K, V]):
    """A cache of at most `max_entries` values (the oldest is evicted first), and the calls in flight.

    `clock` measures the lifetime of entries. With `abandon` a call is cancelled when its last waiter has cancelled;
    without, the call continues and its result is cached.
    """

    def __init__(self, clock: IReactorTime, max_entries: int, *, abandon: bool = True) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._abandon = abandon
        self._kept: dict[K, tuple[V, float]] = {}  # with the time of expiry; oldest first
        self._flights: dict[K, _Flight[V]] = {}

    def __len__(self) -> int:
        """Number of cached values, expired ones included."""
        return len(self._kept)

    @property
    def in_flight(self) -> int:
        """Number of calls in flight."""
        return len(self._flights)

    def peek(self, key: K) -> V | None:
        """The cached value that has not expired, or None."""
        kept = self._kept.get(key)
        return None if kept is None or self._clock.seconds() >= kept[1] else kept[0]

    def get(self, key: K, fetch: Fetch[V]) -> Deferred[V]:
        """Fire with the cached value, or with the result of the call in flight, or of `fetch()`, which then starts.

        Cancelling the Deferred removes this waiter only.
        """
        kept = self._kept.get(key)
        if kept is not None:
            value, until = kept
            if self._clock.seconds() < until:
                return succeed(value)
            del self._kept[key]
        flight = self._flights.get(key)
        if flight is not None:
            return self._wait(key, flight)
        flight = self._flights[key] = _Flight()
        waiter = self._wait(key, flight)
        flight.call = Deferred.fromCoroutine(fetch())
        flight.call.addBoth(self._settle, key, flight)
        return waiter

    def put(self, key: K, value: V, ttl: float) -> None:
        """Store a value for `ttl` seconds; 0 or less: not at all."""
        if ttl <= 0 or self._max_entries <= 0:
            return
        now = self._clock.seconds()
        while self._kept:
            oldest, (_, until) = next(iter(self._kept.items()))
            if len(self._kept) < self._max_entries and now < until:
                break
            del self._kept[oldest]
        self._kept[key] = (value, now + ttl)

    def expire(self) -> None:
        """Drop expired values, so that a secret does not stay in memory when its key is not used again."""
        now = self._clock.seconds()
        for key in [key for key, (_, until) in self._kept.items() if now >= until]:
            del self._kept[key]

    def flush(self) -> None:
        """Drop every value. Calls in flight still answer their waiters; their results are not cached."""
        self._kept.clear()
        self._flights.clear()

    def cancel(self) -> None:
        """Flush, and cancel the calls in flight; their waiters get CancelledError."""
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
        """End a call; False if it was flushed meanwhile."""
        flight.ended = True
        if self._flights.get(key) is not flight:
            return False
        del self._flights[key]
        return True

    def _settle(self, result: Fetched[V] | Failure, key: K, flight: _Flight[V]) -> None:
        """Give the result of a call to its waiters."""
        current = self._end(key, flight)
        value: Any = result
        if isinstance(result, Fetched):
            value = result.value
            if current:
                self.put(key, value, result.ttl)
        while flight.waiters:  # one at a time: a waiter may cancel another one
            waiter = next(iter(flight.waiters))
            del flight.waiters[waiter]
            waiter.callback(value)  # a Failure calls the errbacks
