"""PlatformQueue: concurrency limit, order, time limit in the queue."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.admission.httpcall import TimedOut, Unreachable
from viewport_relay.admission.platformqueue import IN_FLIGHT_MAX, PlatformQueue

LIMIT = 2.0


class Asked:
    """Requests through a queue, with those that were sent and their results."""

    def __init__(self, clock: Clock) -> None:
        self._queue = PlatformQueue(clock, LIMIT)
        self.sent: dict[int, Deferred[str]] = {}
        self.results: dict[int, Any] = {}
        self.waits: list[Deferred[Any]] = []

    def ask(self, count: int = 1) -> None:
        for _ in range(count):
            number = len(self.waits)

            def request(number: int = number) -> Deferred[str]:
                self.sent[number] = Deferred()
                return self.sent[number]

            waiting = Deferred.fromCoroutine(self._queue.run(request))
            self.waits.append(waiting)
            waiting.addBoth(lambda result, number=number: self.results.__setitem__(number, result))


@pytest.fixture
def asked(clock: Clock) -> Asked:
    return Asked(clock)


def test_the_limit_of_concurrent_requests_and_the_order_of_the_queue(asked: Asked) -> None:
    asked.ask(IN_FLIGHT_MAX + 3)
    assert list(asked.sent) == list(range(IN_FLIGHT_MAX))
    asked.sent[7].callback("answer")
    assert asked.results == {7: "answer"} and list(asked.sent)[-1] == IN_FLIGHT_MAX
    asked.sent[3].errback(Unreachable("connection refused"))
    assert asked.results[3].check(Unreachable) and list(asked.sent)[-1] == IN_FLIGHT_MAX + 1
    asked.waits[5].cancel()  # cancelled: the peer has disconnected
    assert asked.results[5].check(CancelledError) and list(asked.sent)[-1] == IN_FLIGHT_MAX + 2


def test_a_cancelled_request_is_never_sent(asked: Asked) -> None:
    asked.ask(IN_FLIGHT_MAX + 2)
    asked.waits[IN_FLIGHT_MAX].cancel()
    assert asked.results[IN_FLIGHT_MAX].check(CancelledError)
    asked.sent[0].callback("answer")
    assert IN_FLIGHT_MAX not in asked.sent and IN_FLIGHT_MAX + 1 in asked.sent


def test_a_slow_platform_that_answers_causes_no_timeout(asked: Asked, clock: Clock) -> None:
    """Under a storm of new tokens the time limit applies to each request, not to the queue."""
    asked.ask(10 * IN_FLIGHT_MAX)
    for number in range(10 * IN_FLIGHT_MAX):
        clock.advance(LIMIT / IN_FLIGHT_MAX / 2)
        asked.sent[number].callback(number)
    assert asked.results == {number: number for number in range(10 * IN_FLIGHT_MAX)}


def test_without_answers_the_wait_is_at_most_twice_the_limit(asked: Asked, clock: Clock) -> None:
    asked.ask(3 * IN_FLIGHT_MAX)
    clock.advance(LIMIT / 2)
    asked.ask()  # queued for less than the limit when the first requests time out
    late = len(asked.waits) - 1
    clock.advance(LIMIT / 2)
    for number in range(IN_FLIGHT_MAX):
        asked.sent[number].errback(TimedOut("time out"))
    assert set(asked.results) == set(range(3 * IN_FLIGHT_MAX))
    assert {result.type for result in asked.results.values()} == {TimedOut}
    waited = asked.results[3 * IN_FLIGHT_MAX - 1].value
    assert waited.why == "time out in the queue of requests" and "platform" in waited.hint
    assert late in asked.sent
    asked.sent[late].callback("answer")
    assert asked.results[late] == "answer"


def test_timed_out_requests_free_their_places(asked: Asked, clock: Clock) -> None:
    asked.ask(2 * IN_FLIGHT_MAX)
    clock.advance(LIMIT)
    for number in range(IN_FLIGHT_MAX):
        asked.sent[number].errback(TimedOut("time out"))
    first = len(asked.waits)
    asked.ask(IN_FLIGHT_MAX + 1)
    assert len([number for number in asked.sent if number >= first]) == IN_FLIGHT_MAX
