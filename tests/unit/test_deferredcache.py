"""DeferredCache: one call for concurrent callers, a time to live per value, no caching of failures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.deferredcache import DeferredCache, Fetched


class Calls:
    """A callable with pending calls; the test fires the Deferreds in `open`."""

    def __init__(self) -> None:
        self.open: list[Deferred[Any]] = []
        self.cancelled = 0

    async def __call__(self) -> Fetched[Any]:
        waiting: Deferred[Any] = Deferred()
        self.open.append(waiting)
        try:
            return await waiting
        except CancelledError:
            self.cancelled += 1
            raise


class Outcome:
    """The value or the error of one waiter."""

    def __init__(self, waiter: Deferred[Any]) -> None:
        self.deferred = waiter
        self.value: Any = None
        self.error: BaseException | None = None
        waiter.addCallbacks(self._good, self._bad)

    def _good(self, value: Any) -> None:
        self.value = value

    def _bad(self, failure: Any) -> None:
        self.error = failure.value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def cache(clock: Clock) -> DeferredCache[str, Any]:
    return DeferredCache(clock, 3)


def test_concurrent_callers_share_one_call(cache: DeferredCache[str, Any], calls: Calls) -> None:
    outcomes = [Outcome(cache.get("k", calls)) for _ in range(5)]
    assert len(calls.open) == 1 and cache.in_flight == 1
    calls.open[0].callback(Fetched("v", 10))
    assert [o.value for o in outcomes] == ["v"] * 5
    assert cache.in_flight == 0


def test_other_keys_have_other_calls(cache: DeferredCache[str, Any], calls: Calls) -> None:
    a, b = Outcome(cache.get("a", calls)), Outcome(cache.get("b", calls))
    calls.open[1].callback(Fetched("B", 10))
    assert (a.value, b.value) == (None, "B")


def test_a_value_is_kept_for_its_time_to_live(
    cache: DeferredCache[str, Any], calls: Calls, clock: Clock
) -> None:
    cache.get("k", calls)
    calls.open[0].callback(Fetched("v", 10))
    clock.advance(9.99)
    assert Outcome(cache.get("k", calls)).value == "v" and len(calls.open) == 1
    clock.advance(0.01)
    assert Outcome(cache.get("k", calls)).value is None and len(calls.open) == 2


def test_peek_starts_no_call(cache: DeferredCache[str, Any], calls: Calls, clock: Clock) -> None:
    assert cache.peek("k") is None and calls.open == []
    cache.get("k", calls)
    assert cache.peek("k") is None
    calls.open[0].callback(Fetched("v", 10))
    assert cache.peek("k") == "v"
    clock.advance(10)
    assert cache.peek("k") is None and len(calls.open) == 1


@pytest.mark.parametrize("ttl", [0, -1])
def test_without_time_to_live_a_value_is_not_cached(
    cache: DeferredCache[str, Any], calls: Calls, ttl: float
) -> None:
    outcome = Outcome(cache.get("k", calls))
    calls.open[0].callback(Fetched("v", ttl))
    assert outcome.value == "v" and len(cache) == 0
    cache.get("k", calls)
    assert len(calls.open) == 2


def test_a_failure_reaches_every_waiter_and_is_not_cached(
    cache: DeferredCache[str, Any], calls: Calls
) -> None:
    outcomes = [Outcome(cache.get("k", calls)) for _ in range(3)]
    calls.open[0].errback(ValueError("no"))
    assert [type(o.error) for o in outcomes] == [ValueError] * 3
    again = Outcome(cache.get("k", calls))
    calls.open[1].callback(Fetched("v", 1))
    assert again.value == "v"


def test_a_call_that_fires_at_once(cache: DeferredCache[str, Any]) -> None:
    async def fetch() -> Fetched[str]:
        return Fetched("v", 5)

    async def fail() -> Fetched[str]:
        raise KeyError("x")

    assert Outcome(cache.get("k", fetch)).value == "v"
    assert isinstance(Outcome(cache.get("other", fail)).error, KeyError)
    assert cache.in_flight == 0 and len(cache) == 1


def test_cancelling_one_waiter_leaves_the_others_pending(
    cache: DeferredCache[str, Any], calls: Calls
) -> None:
    one, two = Outcome(cache.get("k", calls)), Outcome(cache.get("k", calls))
    one.deferred.cancel()
    assert isinstance(one.error, CancelledError) and calls.cancelled == 0
    calls.open[0].callback(Fetched("v", 5))
    assert two.value == "v"


def test_the_call_is_cancelled_with_its_last_waiter(cache: DeferredCache[str, Any], calls: Calls) -> None:
    outcomes = [Outcome(cache.get("k", calls)) for _ in range(3)]
    for outcome in outcomes:
        outcome.deferred.cancel()
    assert calls.cancelled == 1 and cache.in_flight == 0
    assert all(isinstance(o.error, CancelledError) for o in outcomes)
    again = Outcome(cache.get("k", calls))
    calls.open[1].callback(Fetched("v", 5))
    assert again.value == "v"


def test_without_abandon_the_call_continues_without_waiters(clock: Clock, calls: Calls) -> None:
    cache: DeferredCache[str, Any] = DeferredCache(clock, 3, abandon=False)
    Outcome(cache.get("k", calls)).deferred.cancel()
    assert calls.cancelled == 0 and cache.in_flight == 1
    calls.open[0].callback(Fetched("v", 5))
    assert Outcome(cache.get("k", calls)).value == "v" and len(calls.open) == 1


def test_a_callback_that_cancels_another_waiter(cache: DeferredCache[str, Any], calls: Calls) -> None:
    first = cache.get("k", calls)
    second = Outcome(cache.get("k", calls))
    first.addCallback(lambda _: second.deferred.cancel())
    third = Outcome(cache.get("k", calls))
    calls.open[0].callback(Fetched("v", 5))
    assert isinstance(second.error, CancelledError) and third.value == "v"


def test_a_callback_that_calls_get_again(cache: DeferredCache[str, Any], calls: Calls) -> None:
    inner: list[Outcome] = []
    cache.get("k", calls).addCallback(lambda _: inner.append(Outcome(cache.get("k", calls))))
    calls.open[0].callback(Fetched("v", 5))
    assert inner[0].value == "v" and len(calls.open) == 1


def test_flush_drops_values_and_pending_calls(cache: DeferredCache[str, Any], calls: Calls) -> None:
    cache.get("old", calls)
    calls.open[0].callback(Fetched("v", 100))
    pending = Outcome(cache.get("k", calls))
    cache.flush()
    newer = Outcome(cache.get("k", calls))
    assert len(calls.open) == 3
    calls.open[1].callback(Fetched("before", 100))
    assert pending.value == "before" and newer.value is None and len(cache) == 0
    calls.open[2].callback(Fetched("after", 100))
    assert newer.value == "after" and Outcome(cache.get("k", calls)).value == "after"


def test_a_flushed_call_is_cancelled_with_its_last_waiter(
    cache: DeferredCache[str, Any], calls: Calls
) -> None:
    pending = Outcome(cache.get("k", calls))
    cache.flush()
    newer = Outcome(cache.get("k", calls))
    pending.deferred.cancel()
    assert calls.cancelled == 1
    calls.open[1].callback(Fetched("v", 1))
    assert newer.value == "v"


def test_cancel_cancels_every_call(cache: DeferredCache[str, Any], calls: Calls) -> None:
    outcomes = [Outcome(cache.get(key, calls)) for key in "aab"]
    cache.cancel()
    assert calls.cancelled == 2 and cache.in_flight == 0
    assert all(isinstance(o.error, CancelledError) for o in outcomes)


def test_the_oldest_value_is_dropped_when_the_cache_is_full(
    cache: DeferredCache[str, Any], calls: Calls
) -> None:
    for index, key in enumerate("abcd"):
        cache.get(key, calls)
        calls.open[index].callback(Fetched(key, 100))
    assert len(cache) == 3
    assert [Outcome(cache.get(key, calls)).value for key in "bcd"] == ["b", "c", "d"]
    assert Outcome(cache.get("a", calls)).value is None


def test_expired_values_are_dropped_when_a_value_is_stored(
    cache: DeferredCache[str, Any], calls: Calls, clock: Clock
) -> None:
    for index, key in enumerate("ab"):
        cache.get(key, calls)
        calls.open[index].callback(Fetched(key, 1))
    clock.advance(1)
    cache.get("c", calls)
    calls.open[2].callback(Fetched("c", 1))
    assert len(cache) == 1


@given(
    size=st.integers(0, 4),
    steps=st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5), st.floats(0, 3)), max_size=60),
)
def test_the_cache_is_bounded_and_returns_no_expired_value(
    size: int, steps: list[tuple[int, float, float]]
) -> None:
    clock = Clock()
    cache: DeferredCache[int, float] = DeferredCache(clock, size)
    stored: dict[int, tuple[float, float]] = {}
    for key, ttl, pause in steps:
        clock.advance(pause)
        fetched_at = clock.seconds()

        async def fetch(key: int = key, ttl: float = ttl, fetched_at: float = fetched_at) -> Fetched[float]:
            stored[key] = (fetched_at, ttl)
            return Fetched(fetched_at, ttl)

        value = Outcome(cache.get(key, fetch)).value
        assert value == stored[key][0]
        assert value == fetched_at or clock.seconds() < value + stored[key][1]
        assert len(cache) <= size


def test_expire_drops_expired_values_only() -> None:
    clock = Clock()
    cache: DeferredCache[str, str] = DeferredCache(clock, 8)

    async def short() -> Fetched[str]:
        return Fetched("short", 5.0)

    async def long() -> Fetched[str]:
        return Fetched("long", 50.0)

    cache.get("a", short)
    cache.get("b", long)
    clock.advance(6.0)
    assert len(cache) == 2
    cache.expire()
    assert len(cache) == 1
    assert Outcome(cache.get("b", short)).value == "long"
