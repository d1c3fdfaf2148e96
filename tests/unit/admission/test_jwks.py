"""JwksClient: fetch, cache, renewal, refetch after a key mismatch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.admission.httpcall import Answer, TooLarge, Unreachable
from viewport_relay.admission.jwks import JwksClient
from viewport_relay.admission.keys import KeySet
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason, Refusal

MakeAnswer = Callable[..., Answer]
Settle = Callable[[Any], Any]
HOUR = 3600.0


@pytest.fixture
def documents(keys: dict[str, SigningKey]) -> dict[str, str]:
    """A JWK set with one key, for each algorithm."""
    return {name: json.dumps({"keys": [key.jwk()]}) for name, key in keys.items()}


@pytest.fixture
def make(http: Any, clock: Clock, log: Any, counters: Counters) -> Callable[..., JwksClient]:
    def build(**settings: Any) -> JwksClient:
        platform_clock = PlatformClock(clock, clock.seconds)
        return JwksClient(
            clock, http, "http://platform.example/jwks", log, counters, platform_clock, **settings
        )

    return build


@pytest.fixture
def jwks(make: Callable[..., JwksClient]) -> JwksClient:
    return make()


def kids(found: KeySet | None) -> list[str]:
    assert found is not None
    return [key.kid for key in found]


def test_start_fetches_at_once(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], log: Any, counters: Counters
) -> None:
    http.replies = [answer(200, documents["RS256"])]
    assert not jwks.ready and jwks.age_seconds is None
    jwks.start()
    assert jwks.ready and jwks.age_seconds == 0.0
    call, body = http.asked[0]
    assert (call.method, call.limit, call.max_bytes, body) == ("GET", 2.0, 262_144, None)
    assert call.headers.getRawHeaders("accept") == ["application/jwk-set+json, application/json;q=0.9"]
    (entry,) = log.named("jwks_fetched")
    assert entry["kids"] == ["RS256"] and counters.jwks_fetches == {"ok": 1}


def test_start_retries_with_back_off_until_a_set_arrives(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], clock: Clock
) -> None:
    http.replies = [Unreachable("connection refused")]
    jwks.start()
    times = []
    for _ in range(960):
        before = len(http.asked)
        clock.advance(0.125)
        if len(http.asked) > before:
            times.append(clock.seconds())
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5]
    http.replies = [answer(200, documents["RS256"])]
    clock.advance(30)
    assert jwks.ready
    asked = len(http.asked)
    clock.advance(600)
    assert len(http.asked) == asked and not clock.getDelayedCalls()


def test_stop_cancels_the_back_off(jwks: JwksClient, http: Any, clock: Clock) -> None:
    http.replies = [Unreachable("connection refused")]
    jwks.start()
    jwks.stop()
    assert not clock.getDelayedCalls()


def test_stop_cancels_a_fetch_and_its_waiters(jwks: JwksClient, http: Any, settle: Settle) -> None:
    gone: list[Any] = []
    http.replies = [Deferred(gone.append)]
    jwks.start()
    waiting = Deferred.fromCoroutine(jwks.current())
    jwks.stop()
    assert gone
    with pytest.raises(CancelledError):
        settle(waiting)


def test_a_fresh_set_serves_without_a_fetch(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], clock: Clock, settle: Settle
) -> None:
    http.replies = [answer(200, documents["RS256"])]
    jwks.start()
    clock.advance(HOUR - 1)
    assert kids(settle(jwks.current())) == ["RS256"]
    assert len(http.asked) == 1 and jwks.age_seconds == HOUR - 1


def test_an_expired_set_serves_while_its_refetch_runs(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], clock: Clock, settle: Settle
) -> None:
    pending: Deferred[Answer] = Deferred()
    http.replies = [answer(200, documents["RS256"]), pending]
    jwks.start()
    clock.advance(HOUR)
    for _ in range(3):
        assert kids(settle(jwks.current())) == ["RS256"]
    assert len(http.asked) == 2
    pending.callback(answer(200, documents["ES256"]))
    assert kids(settle(jwks.current())) == ["ES256"] and jwks.age_seconds == 0.0


def test_a_stale_set_serves_for_a_day_with_warnings(
    jwks: JwksClient,
    http: Any,
    answer: MakeAnswer,
    documents: dict[str, str],
    clock: Clock,
    settle: Settle,
    log: Any,
) -> None:
    http.replies = [answer(200, documents["RS256"]), Unreachable("connection refused")]
    jwks.start()
    clock.advance(HOUR)
    for _ in range(100):
        assert kids(settle(jwks.current())) == ["RS256"]
    assert len(http.asked) == 2  # one warning per period, not one per upgrade
    (entry,) = log.named("jwks_refetch_failed")
    assert (
        entry["event"] == "jwks_refetch_failed"
        and entry["why"] == "connection refused"
        and entry["ageSeconds"] == HOUR
    )
    clock.advance(24 * HOUR - HOUR - 1)
    assert kids(settle(jwks.current())) == ["RS256"]
    clock.advance(1)
    with pytest.raises(Refusal) as refused:
        settle(jwks.current())
    assert refused.value.reason is Reason.JWKS_UNREACHABLE
    http.replies = [answer(200, documents["ES256"])]
    assert kids(settle(jwks.current())) == ["ES256"]


UNREACHABLE = {
    "refused": (Unreachable("connection refused"), "connection refused"),
    "time out": (Unreachable("time out"), "time out"),
    "too large": (TooLarge("the answer is longer than 262144 bytes", 200), "longer than 262144"),
    "404": ((404, "{}"), "HTTP 404, not 200"),
    "500": ((500, ""), "HTTP 500, not 200"),
    "redirect": ((302, ""), "a redirect (HTTP 302), which is not followed"),
    "304 to nothing": ((304, ""), "HTTP 304, not 200"),
    "page": ((200, "<html>"), "not JSON"),
    "empty": ((200, ""), "not JSON"),
    "no set": ((200, "{}"), "not a JWK set"),
    "no keys": ((200, '{"keys":[]}'), "no key"),
    "only oct": ((200, '{"keys":[{"kty":"oct","k":"eA"}]}'), "no usable key"),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_with_nothing_cached_the_details_say_what_is_wrong(
    name: str, jwks: JwksClient, http: Any, answer: MakeAnswer, settle: Settle, documents: dict[str, str],
    counters: Counters, log: Any,
) -> None:  # fmt: skip
    reply, why = UNREACHABLE[name]
    http.replies = [reply if isinstance(reply, Exception) else answer(*reply)]
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            settle(jwks.current())
        assert refused.value.reason is Reason.JWKS_UNREACHABLE
        assert why in refused.value.detail and why in refused.value.details["why"]
        assert refused.value.detail.endswith(" (http://platform.example/jwks)")
        assert refused.value.details["url"] == "http://platform.example/jwks"
    assert counters.jwks_fetches == {"failed": 2}
    entry = log.named("jwks_fetch_failed")[0]
    assert entry["reason"] is Reason.JWKS_UNREACHABLE and entry["url"] == "http://platform.example/jwks"
    http.replies = [answer(200, documents["RS256"])]
    assert kids(settle(jwks.current())) == ["RS256"]  # the next upgrade fetches again


def test_concurrent_upgrades_share_one_fetch(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle
) -> None:
    pending: Deferred[Answer] = Deferred()
    http.replies = [pending]
    jwks.start()
    waiting = [Deferred.fromCoroutine(jwks.current()) for _ in range(20)]
    waiting[0].cancel()
    with pytest.raises(CancelledError):
        settle(waiting[0])
    pending.callback(answer(200, documents["RS256"]))
    assert len(http.asked) == 1
    assert all(kids(settle(each)) == ["RS256"] for each in waiting[1:])


def test_a_rotated_key_is_fetched_without_cool_down_the_first_time(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle
) -> None:
    http.replies = [answer(200, documents["RS256"]), answer(200, documents["ES256"])]
    jwks.start()
    seen = settle(jwks.current())
    assert kids(settle(jwks.newer_than(seen))) == ["ES256"]
    assert http.asked[1][0].headers.getRawHeaders("cache-control") == ["no-cache"]


def test_made_up_kids_cause_one_fetch_per_cool_down(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle, clock: Clock
) -> None:
    http.replies = [answer(200, documents["RS256"])]
    jwks.start()
    for second in range(90):
        seen = settle(jwks.current())
        for _ in range(50):
            found = settle(jwks.newer_than(seen))
            seen = found or seen
        assert len(http.asked) == 2 + second // 30
        clock.advance(1)


def test_a_failed_refetch_starts_the_cool_down_too(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle, clock: Clock
) -> None:
    http.replies = [answer(200, documents["RS256"]), Unreachable("time out")]
    jwks.start()
    seen = settle(jwks.current())
    for _ in range(10):
        assert settle(jwks.newer_than(seen)) is None
    assert len(http.asked) == 2
    clock.advance(30)
    http.replies = [answer(200, documents["ES256"])]
    assert kids(settle(jwks.newer_than(seen))) == ["ES256"]


def test_concurrent_mismatches_share_one_refetch(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle
) -> None:
    pending: Deferred[Answer] = Deferred()
    http.replies = [answer(200, documents["RS256"]), pending]
    jwks.start()
    seen = settle(jwks.current())
    waiting = [Deferred.fromCoroutine(jwks.newer_than(seen)) for _ in range(10)]
    assert len(http.asked) == 2
    pending.callback(answer(200, documents["ES256"]))
    assert {id(settle(each)) for each in waiting} == {id(jwks.held)}
    assert len(http.asked) == 2


def test_a_mismatch_against_an_older_set_needs_no_fetch(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle
) -> None:
    http.replies = [answer(200, documents["RS256"]), answer(200, documents["ES256"])]
    jwks.start()
    old = settle(jwks.current())
    settle(jwks.newer_than(old))
    assert kids(settle(jwks.newer_than(old))) == ["ES256"] and len(http.asked) == 2


def test_a_cancelled_waiter_does_not_cancel_the_refetch(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle
) -> None:
    pending: Deferred[Answer] = Deferred()
    http.replies = [answer(200, documents["RS256"]), pending]
    jwks.start()
    waiting = Deferred.fromCoroutine(jwks.newer_than(settle(jwks.current())))
    waiting.cancel()
    with pytest.raises(CancelledError):
        settle(waiting)
    pending.callback(answer(200, documents["ES256"]))
    assert kids(settle(jwks.current())) == ["ES256"]


def test_a_renewal_in_progress_does_not_replace_the_refetch(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle, clock: Clock
) -> None:
    """The renewal began before the key rotation: its answer has the old keys, so a refetch follows."""
    renewal: Deferred[Answer] = Deferred()
    http.replies = [answer(200, documents["RS256"], etag='"1"'), renewal, answer(200, documents["ES256"])]
    jwks.start()
    clock.advance(HOUR)
    seen = settle(jwks.current())
    waiting = [Deferred.fromCoroutine(jwks.newer_than(seen)) for _ in range(3)]
    renewal.callback(answer(304))
    assert [kids(settle(each)) for each in waiting] == [["ES256"]] * 3
    assert len(http.asked) == 3


CACHE_CONTROL = [
    ({}, HOUR),
    ({"cache_control": "public, max-age=600"}, 600),
    ({"cache_control": "max-age=5"}, 60),
    ({"cache_control": "max-age=99999999"}, HOUR),
    ({"cache_control": 'max-age="120"'}, 120),
    ({"cache_control": "no-store"}, 60),
    ({"cache_control": "private, no-cache"}, 60),
    ({"cache_control": "max-age=soon"}, HOUR),
    ({"cache_control": "max-age=-5"}, HOUR),
    ({"cache_control": "s-max-age=5, x-no-storey"}, HOUR),
]


@pytest.mark.parametrize("headers,ttl", CACHE_CONTROL)
def test_cache_control_shortens_within_bounds(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle, clock: Clock,
    headers: dict[str, str], ttl: float,
) -> None:  # fmt: skip
    http.replies = [answer(200, documents["RS256"], **headers)]
    jwks.start()
    clock.advance(ttl - 1)
    settle(jwks.current())
    assert len(http.asked) == 1
    clock.advance(1)
    settle(jwks.current())
    assert len(http.asked) == 2


def test_a_configured_ttl_below_a_minute_is_kept(
    make: Any, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle, clock: Clock
) -> None:
    http.replies = [answer(200, documents["RS256"], cache_control="max-age=600")]
    jwks = make(ttl=5)
    jwks.start()
    clock.advance(5)
    settle(jwks.current())
    assert len(http.asked) == 2


def test_an_etag_is_sent_and_304_renews_the_set(
    jwks: JwksClient,
    http: Any,
    answer: MakeAnswer,
    documents: dict[str, str],
    settle: Settle,
    clock: Clock,
    log: Any,
) -> None:
    http.replies = [answer(200, documents["RS256"], etag='W/"7"'), answer(304)]
    jwks.start()
    seen = settle(jwks.current())
    for round_ in (1, 2):
        clock.advance(HOUR)
        settle(jwks.current())
        assert http.asked[round_][0].headers.getRawHeaders("if-none-match") == ['W/"7"']
        assert jwks.held is seen and jwks.age_seconds == 0.0
    assert settle(jwks.newer_than(seen)) is None
    assert len(log.named("jwks_fetched")) == 1


@pytest.mark.parametrize("etag", ["x" * 257, "\u20ac"])
def test_an_invalid_etag_is_not_kept(
    jwks: JwksClient,
    http: Any,
    answer: MakeAnswer,
    documents: dict[str, str],
    settle: Settle,
    clock: Clock,
    etag: str,
) -> None:
    http.replies = [answer(200, documents["RS256"], etag=etag)]
    jwks.start()
    clock.advance(HOUR)
    settle(jwks.current())
    assert not http.asked[1][0].headers.hasHeader("if-none-match")


def test_after_flush_the_next_upgrade_fetches(
    jwks: JwksClient, http: Any, answer: MakeAnswer, documents: dict[str, str], settle: Settle
) -> None:
    http.replies = [answer(200, documents["RS256"], etag='"1"'), answer(200, documents["ES256"])]
    jwks.start()
    jwks.flush()
    settle(jwks.current())
    assert not http.asked[1][0].headers.hasHeader("if-none-match")
    assert kids(settle(jwks.current())) == ["ES256"] and len(http.asked) == 2
