"""The verdict's first line when most attempts are refused, and when only unauthenticated ones are."""

from __future__ import annotations

import io

import pytest

from viewport_relay.observe.checks import Condition, Facts
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.verdict import verdict_of
from viewport_relay.reasons import Reason

NOW = 1_700_000_000.0


def verdict(admitted: int, **refused: int):
    log = EventLog(io.StringIO(), max_entries=9, now=lambda: NOW)
    for code, number in refused.items():
        for n in range(number):
            log.event("refuse", reason=Reason[code], ip=f"192.0.2.{n}", workspaceId=f"w-{n}")
    for _ in range(admitted):
        log.event("join", role="client")
    problems = log.problems.open(NOW)
    counted = dict(zip(("admitted", "refused"), log.problems.recent(NOW), strict=True))
    return verdict_of(
        Facts(
            now=NOW, condition=Condition(True, "", 60.0, {"mode": "single"}), jwks_ttl=3600,
            last_seen={("join", None): NOW - 5}, has_internal_key=True, problems=problems, **counted,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "event,reason,detail,backplane",
    [
        ("backplane_unreachable", "BACKPLANE_UNREACHABLE", "Redis r:6379 says: NOAUTH", {"mode": "redis", "up": False}),
        ("backplane_refused", "BACKPLANE_REFUSED", "Redis r:6379 refuses EVAL: OOM",
         {"mode": "redis", "up": False, "reason": "BACKPLANE_REFUSED"}),
        ("refuse", "INTERNAL_KEY_MISMATCH", "the answer is HTTP 403, text/html", {"mode": "single"}),
        ("refuse", "PLATFORM_UNREACHABLE", "connection refused", {"mode": "single"}),
    ],
)  # fmt: skip
def test_the_first_line_says_exactly_what_was_wrong(
    event: str, reason: str, detail: str, backplane: dict[str, object]
) -> None:
    log = EventLog(io.StringIO(), max_entries=9, now=lambda: NOW)
    log.event(event, reason=Reason[reason], detail=detail)
    found = verdict_of(
        Facts(
            now=NOW, condition=Condition(True, "", 60.0, backplane), jwks_ttl=3600, last_seen=log.last_seen,
            has_internal_key=True, problems=log.problems.open(NOW),
        )
    )  # fmt: skip
    assert f"({detail})" in found.headline


@pytest.mark.parametrize(
    "admitted,refused,state,words",
    [
        (0, {"ORIGIN_NOT_ALLOWED": 3}, "warn", "most attempts are refused: ORIGIN_NOT_ALLOWED"),
        (3, {"RATE_LIMIT_EXCEEDED": 6}, "warn", "most attempts are refused: RATE_LIMIT_EXCEEDED"),
        (2, {"RATE_LIMIT_EXCEEDED": 1, "ORIGIN_NOT_ALLOWED": 2}, "warn", "ORIGIN_NOT_ALLOWED"),
        (0, {"WORKSPACE_NOT_FOUND": 4}, "warn", "WORKSPACE_NOT_FOUND (Workspace not found)"),
        (0, {"WORKSPACE_NOT_FOUND": 5}, "bad", "No peer gets in: 5 were refused, mostly WORKSPACE_NOT_FOUND"),
        (6, {"ORIGIN_NOT_ALLOWED": 6}, "good", "Daemons can connect."),
        (0, {"ORIGIN_NOT_ALLOWED": 2}, "good", "Daemons can connect."),
        (0, {"NOT_FOUND": 90, "TOKEN_MISSING": 9, "QUERY_INVALID": 9}, "good", "Daemons can connect."),
        (0, {"TOO_MANY_CONNECTIONS": 9}, "warn", "TOO_MANY_CONNECTIONS: too many connections"),
    ],
)
def test_the_first_line(admitted, refused, state, words):
    found = verdict(admitted, **refused)
    assert found.state == state and words in found.headline


@pytest.mark.parametrize(
    ("reason", "offset", "words"),
    [
        ("JWT_EXPIRED", 3600.0, "mostly JWT_EXPIRED (this machine's clock is 60 min ahead of the platform's)."),
        ("JWT_NOT_YET_VALID", -3600.0, "JWT_NOT_YET_VALID (this machine's clock is 60 min behind the platform's)."),
        ("JWT_EXPIRED", 9.0, "JWT_EXPIRED (JWT validation failed: token expired)."),
        ("JWT_EXPIRED", None, "JWT_EXPIRED (JWT validation failed: token expired)."),
        ("JWT_ISSUER_MISMATCH", 3600.0, "JWT_ISSUER_MISMATCH (JWT validation failed: issuer mismatch)."),
    ],
)  # fmt: skip
def test_tokens_that_a_wrong_clock_refuses(reason: str, offset: float | None, words: str) -> None:
    log = EventLog(io.StringIO(), max_entries=9, now=lambda: NOW)
    for n in range(6):
        log.event("refuse", reason=Reason[reason], ip=f"192.0.2.{n}", workspaceId=f"w-{n}")
    found = verdict_of(
        Facts(
            now=NOW, condition=Condition(True, "", 60.0, {"mode": "single"}, offset), jwks_ttl=3600, last_seen=log.last_seen,
            has_internal_key=True, problems=log.problems.open(NOW), refused=6,
        )
    )  # fmt: skip
    assert found.state == "bad" and found.headline.endswith(words)
