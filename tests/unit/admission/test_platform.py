"""Validation by the platform: request, cache, errors, shared requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from treq.testing import RequestTraversalAgent, StringStubbingResource
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, TimedOut, TooLarge, Unreachable
from viewport_relay.admission.platform import PlatformValidator, ValidationSettings
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.admission.token import TokenSource
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

MakeAnswer = Callable[..., Answer]
Settle = Callable[[Any], Any]
URL = "http://platform.example/validate"
TOKEN = "header.payload.signature"
SOURCE = TokenSource(TOKEN, "header")
OK = json.dumps({"ok": True, "claims": {"workspaceId": "ws-1"}})
DENIED = json.dumps({"ok": False, "reason": "REVOKED"})


@pytest.fixture
def make(
    http: Any, clock: Clock, log: Any, counters: Counters, now: float
) -> Callable[..., PlatformValidator]:
    def build(**settings: Any) -> PlatformValidator:
        chosen = ValidationSettings(**{"url": URL, "internal_key": "internal-key", **settings})
        return PlatformValidator(
            clock, http, chosen, counters, PlatformClock(clock, clock.seconds), lambda: now + clock.seconds()
        )

    return build


@pytest.fixture
def exp(now: float) -> float:
    return now + 300


def test_through_treq_itself(
    clock: Clock, log: Any, counters: Counters, query: UpgradeQuery, exp: float, settle: Settle
) -> None:
    """The request as treq's in-memory client receives it."""
    seen: list[Any] = []

    def respond(
        method: bytes, url: str, params: Any, headers: Any, data: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        seen.append((method, url, {k.lower().decode(): v for k, v in headers.items()}, json.loads(data)))
        return 200, {"content-type": "application/json"}, OK.encode()

    http = HttpClient(clock, RequestTraversalAgent(StringStubbingResource(respond)))
    validator = PlatformValidator(
        clock, http, ValidationSettings(URL, "internal-key"), counters, PlatformClock(clock, clock.seconds)
    )
    assert settle(validator.validate(SOURCE, query, exp)).workspace_id == "ws-1"
    ((method, url, headers, body),) = seen
    assert (method, url) == (b"POST", URL)
    assert headers["x-relay-internal-key"] == [b"internal-key"]
    assert headers["content-type"] == [b"application/json"]
    assert body == {"relayToken": TOKEN, "role": "client", "workspaceId": "ws-1", "runtimeTargetId": "rt-1"}


def test_the_request(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle
) -> None:
    http.replies = [answer(200, OK)]
    settle(make(internal_key=None).validate(SOURCE, evolve(query, runtime_target_id=None), exp))
    call, body = http.asked[0]
    assert not call.headers.hasHeader("x-relay-internal-key")
    assert json.loads(body) == {"relayToken": TOKEN, "role": "client", "workspaceId": "ws-1"}


def test_an_accepted_answer_is_cached(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle, clock: Clock,
    counters: Counters,
) -> None:  # fmt: skip
    http.replies = [answer(200, OK)]
    validator = make()
    for _ in range(3):
        settle(validator.validate(SOURCE, query, exp))
    assert len(http.asked) == 1 and counters.validations == {"ok": 1, "cached": 2}
    clock.advance(10)
    settle(validator.validate(SOURCE, query, exp))
    assert len(http.asked) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"role": Role.WORKER},
        {"workspace_id": "ws-2"},
        {"runtime_target_id": "x"},
        {"runtime_target_id": None},
    ],
)
def test_another_query_is_another_cache_entry(
    make: Any,
    http: Any,
    answer: MakeAnswer,
    query: UpgradeQuery,
    exp: float,
    settle: Settle,
    change: dict[str, Any],
) -> None:
    http.replies = [answer(200, OK)]
    validator = make()
    settle(validator.validate(SOURCE, query, exp))
    settle(validator.validate(SOURCE, evolve(query, **change), exp))
    settle(validator.validate(TokenSource(TOKEN + "x", "header"), query, exp))
    assert len(http.asked) == 3


def test_a_ttl_of_zero_disables_the_cache(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle
) -> None:
    http.replies = [answer(200, OK), answer(200, DENIED)]
    validator = make(cache_ttl=0)
    settle(validator.validate(SOURCE, query, exp))
    for _ in range(2):
        with pytest.raises(Refusal):
            settle(validator.validate(SOURCE, query, exp))
    assert len(http.asked) == 3


@pytest.mark.parametrize("claimed", [False, True], ids=["exp of the token", "exp of the claims"])
def test_no_cache_entry_outlives_exp(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, settle: Settle, clock: Clock, now: float,
    claimed: bool,
) -> None:  # fmt: skip
    body = json.dumps({"ok": True, "claims": {"exp": int(now) + 4}}) if claimed else OK
    http.replies = [answer(200, body)]
    validator = make()
    exp = now + (300 if claimed else 4)
    settle(validator.validate(SOURCE, query, exp))
    clock.advance(3.9)
    settle(validator.validate(SOURCE, query, exp))
    assert len(http.asked) == 1
    clock.advance(0.1)
    settle(validator.validate(SOURCE, query, exp))
    settle(validator.validate(SOURCE, query, exp))  # accepted within the clock skew, but no longer cached
    assert len(http.asked) == 3


def test_a_denial_is_cached_for_two_seconds(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle, clock: Clock
) -> None:
    http.replies = [answer(200, DENIED), answer(200, OK)]
    validator = make()
    seen = []
    for _ in range(3):
        with pytest.raises(Refusal) as refused:
            settle(validator.validate(SOURCE, query, exp))
        assert refused.value.reason is Reason.VALIDATION_DENIED
        seen.append(refused.value)
    assert len(http.asked) == 1 and validator.fault is None
    assert (
        len({id(refusal) for refusal in seen}) == 3
    )  # one exception object would collect the tracebacks of all callers
    clock.advance(2)
    settle(validator.validate(SOURCE, query, exp))


FAULTS = [
    (TimedOut("time out"), Reason.PLATFORM_UNREACHABLE),
    (Unreachable("connection refused"), Reason.PLATFORM_UNREACHABLE),
    (TooLarge("big", 200), Reason.ADMISSION_RESPONSE_TOO_LARGE),
    ((503, ""), Reason.PLATFORM_UNREACHABLE),
    ((200, "<html>"), Reason.VALIDATION_RESPONSE_INVALID),
    ((401, ""), Reason.INTERNAL_KEY_MISMATCH),
]


@pytest.mark.parametrize("fault,reason", FAULTS, ids=[str(fault) for fault, _ in FAULTS])
def test_failures_are_not_cached(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle, fault: Any,
    reason: Reason, counters: Counters,
) -> None:  # fmt: skip
    http.replies = [fault if isinstance(fault, Exception) else answer(*fault), answer(200, OK)]
    validator = make()
    with pytest.raises(Refusal) as refused:
        settle(validator.validate(SOURCE, query, exp))
    assert refused.value.reason is reason
    assert validator.fault is reason
    assert settle(validator.validate(SOURCE, query, exp)).workspace_id == "ws-1"
    assert validator.fault is None
    assert counters.validations == {"failed": 1, "ok": 1}
    outcome = "timeout" if fault is FAULTS[0][0] else "failed"
    samples = [sample for metric in counters.latencies() for sample in metric.samples if sample.value]
    timed = {s.labels["outcome"]: s.value for s in samples if s.name.endswith("duration_seconds_count")}
    assert timed == {outcome: 1, "ok": 1}


def test_equal_requests_are_shared_and_cancelled_one_by_one(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle
) -> None:
    gone: list[Any] = []
    pending: Deferred[Answer] = Deferred(gone.append)
    http.replies = [pending]
    validator = make()
    first, second, third = (Deferred.fromCoroutine(validator.validate(SOURCE, query, exp)) for _ in range(3))
    assert len(http.asked) == 1
    first.cancel()
    with pytest.raises(CancelledError):
        settle(first)
    assert not gone
    pending.callback(answer(200, OK))
    assert settle(second) == settle(third)


def test_the_request_is_cancelled_with_its_last_waiter(
    make: Any, http: Any, query: UpgradeQuery, exp: float, settle: Settle, answer: MakeAnswer
) -> None:
    gone: list[Any] = []
    http.replies = [Deferred(gone.append), answer(200, OK)]
    validator = make()
    waiting = Deferred.fromCoroutine(validator.validate(SOURCE, query, exp))
    waiting.cancel()
    with pytest.raises(CancelledError):
        settle(waiting)
    assert gone
    assert settle(validator.validate(SOURCE, query, exp)).workspace_id == "ws-1"


def test_flush(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle
) -> None:
    http.replies = [answer(200, OK)]
    validator = make()
    settle(validator.validate(SOURCE, query, exp))
    validator.flush()
    settle(validator.validate(SOURCE, query, exp))
    assert len(http.asked) == 2


def test_a_wrong_internal_key_is_an_error(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle
) -> None:
    http.replies = [answer(401, json.dumps({"ok": False, "reason": "RELAY_INTERNAL_KEY_INVALID"}))]
    with pytest.raises(Refusal) as refused:
        settle(make().validate(SOURCE, query, exp))
    assert refused.value.level is None and Reason.INTERNAL_KEY_MISMATCH.entry.level == "error"
    assert refused.value.details == {
        "why": "the answer is HTTP 401", "url": URL, "httpStatus": 401, "platformWord": "RELAY_INTERNAL_KEY_INVALID",
    }  # fmt: skip


def test_nothing_secret_is_logged_or_shown(
    make: Any, http: Any, answer: MakeAnswer, query: UpgradeQuery, exp: float, settle: Settle, log: Any
) -> None:
    http.replies = [answer(403, json.dumps({"error": f"internal key internal-key of {TOKEN}"}))]
    with pytest.raises(Refusal) as refused:
        settle(make().validate(SOURCE, query, exp))
    shown = f"{refused.value} {refused.value.details} {log.events} {http.asked[0][0]!r}"
    assert TOKEN not in shown and "internal-key" not in shown
    assert "internal-key" not in repr(ValidationSettings(URL, "internal-key"))
