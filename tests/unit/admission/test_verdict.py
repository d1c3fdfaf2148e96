"""The contract's table of answers, row by row, and the order of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from viewport_relay.admission.httpcall import Answer, Encoded, HttpFailure, TooLarge, Unreachable
from viewport_relay.admission.verdict import DENIALS, judge_answer, judge_failure
from viewport_relay.protocol.grant import Claims, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

MakeAnswer = Callable[..., Answer]
URL = "http://platform.example/validate"
OK = {"ok": True, "claims": {"workspaceId": "ws-1"}}

ROWS: dict[str, tuple[int, Any, Reason | None]] = {
    "admitted": (200, OK, None),
    "admitted with 201": (201, OK, None),
    "500": (500, {"ok": False}, Reason.PLATFORM_UNREACHABLE),
    "500 with ok": (500, OK, Reason.PLATFORM_UNREACHABLE),
    "503 that says workspace": (503, {"reason": "WORKSPACE_NOT_FOUND"}, Reason.PLATFORM_UNREACHABLE),
    "404 object": (404, {"ok": False, "reason": "NOPE"}, Reason.WORKSPACE_NOT_FOUND),
    "404 empty object": (404, {}, Reason.WORKSPACE_NOT_FOUND),
    "404 page": (404, b"<html>", Reason.VALIDATION_RESPONSE_INVALID),
    "404 list": (404, [], Reason.VALIDATION_RESPONSE_INVALID),
    "200 workspace": (200, {"ok": False, "reason": "WORKSPACE_NOT_FOUND"}, Reason.WORKSPACE_NOT_FOUND),
    "403 workspace": (403, {"ok": False, "error": "workspace-not-found"}, Reason.WORKSPACE_NOT_FOUND),
    "401 workspace in words": (401, {"error": "Workspace not found: ws-1"}, Reason.WORKSPACE_NOT_FOUND),
    "camel case": (400, {"ok": False, "reason": "workspaceNotFound"}, Reason.WORKSPACE_NOT_FOUND),
    "error says it, reason does not": (
        400, {"ok": False, "reason": "x", "error": "WORKSPACE NOT FOUND"}, Reason.WORKSPACE_NOT_FOUND
    ),
    "401 internal key": (401, {"ok": False, "reason": "RELAY_INTERNAL_KEY_INVALID"}, Reason.INTERNAL_KEY_MISMATCH),
    "403 internal key": (403, {"ok": False, "error": "invalid relay internal key"}, Reason.INTERNAL_KEY_MISMATCH),
    "401 internal key without ok": (401, {"error": "bad InternalKey"}, Reason.INTERNAL_KEY_MISMATCH),
    "401 without a word": (401, {"ok": False}, Reason.INTERNAL_KEY_MISMATCH),
    "403 with null": (403, {"ok": False, "reason": None, "error": ""}, Reason.INTERNAL_KEY_MISMATCH),
    "401 page": (401, b"Unauthorized", Reason.INTERNAL_KEY_MISMATCH),
    "403 nothing": (403, b"", Reason.INTERNAL_KEY_MISMATCH),
    "400 that names the key": (400, {"ok": False, "error": "internal key"}, Reason.VALIDATION_DENIED),
    "401 token": (401, {"ok": False, "reason": "INVALID_TOKEN"}, Reason.VALIDATION_DENIED),
    "401 token without ok": (401, {"error": "INVALID_TOKEN"}, Reason.VALIDATION_DENIED),
    "401 error object": (401, {"error": {"code": "EXPIRED"}}, Reason.VALIDATION_DENIED),
    "403 forbidden": (403, {"ok": False, "error": "forbidden"}, Reason.VALIDATION_DENIED),
    "200 denied": (200, {"ok": False, "reason": "NOPE"}, Reason.VALIDATION_DENIED),
    "200 denied with claims": (200, {"ok": False, "claims": {}}, Reason.VALIDATION_DENIED),
    "429 denied": (429, {"ok": False, "reason": "SLOW"}, Reason.VALIDATION_DENIED),
    "302": (302, b"", Reason.VALIDATION_RESPONSE_INVALID),
    "307 with ok": (307, OK, Reason.VALIDATION_RESPONSE_INVALID),
    "304": (304, b"", Reason.VALIDATION_RESPONSE_INVALID),
    "400 with ok": (400, OK, Reason.VALIDATION_RESPONSE_INVALID),
    "400 without ok": (400, {"error": "bad request"}, Reason.VALIDATION_RESPONSE_INVALID),
    "ok missing": (200, {"claims": {}}, Reason.VALIDATION_RESPONSE_INVALID),
    "ok a string": (200, {"ok": "true", "claims": {}}, Reason.VALIDATION_RESPONSE_INVALID),
    "ok 1": (200, {"ok": 1, "claims": {}}, Reason.VALIDATION_RESPONSE_INVALID),
    "ok 0": (200, {"ok": 0}, Reason.VALIDATION_RESPONSE_INVALID),
    "ok null": (200, {"ok": None}, Reason.VALIDATION_RESPONSE_INVALID),
    "no claims": (200, {"ok": True}, Reason.VALIDATION_RESPONSE_INVALID),
    "claims null": (200, {"ok": True, "claims": None}, Reason.VALIDATION_RESPONSE_INVALID),
    "claims a list": (200, {"ok": True, "claims": []}, Reason.VALIDATION_RESPONSE_INVALID),
    "bad claims": (200, {"ok": True, "claims": {"clientId": 7}}, Reason.VALIDATION_RESPONSE_INVALID),
    "empty": (200, b"", Reason.VALIDATION_RESPONSE_INVALID),
    "null": (200, None, Reason.VALIDATION_RESPONSE_INVALID),
    "truncated": (200, b'{"ok":true,"claims":{', Reason.VALIDATION_RESPONSE_INVALID),
    "trailing": (200, b'{"ok":true,"claims":{}}x', Reason.VALIDATION_RESPONSE_INVALID),
    "NaN": (200, b'{"ok":true,"claims":{"x":NaN}}', Reason.VALIDATION_RESPONSE_INVALID),
    "BOM": (200, b'\xef\xbb\xbf{"ok":true,"claims":{}}', Reason.VALIDATION_RESPONSE_INVALID),
    "not UTF-8": (200, b'{"ok":true,"claims":{"x":"\xff"}}', Reason.VALIDATION_RESPONSE_INVALID),
    "deep": (200, b'{"ok":true,"claims":{"x":' + b"[" * 100_000, Reason.VALIDATION_RESPONSE_INVALID),
    "last duplicate wins": (200, b'{"ok":true,"ok":false,"claims":{}}', Reason.VALIDATION_DENIED),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, answer: MakeAnswer, query: UpgradeQuery) -> None:
    status, body, reason = ROWS[name]
    verdict = judge_answer(answer(status, body if isinstance(body, bytes) else json.dumps(body)), query, URL)
    if reason is None:
        assert isinstance(verdict, Claims) and verdict.workspace_id == "ws-1"
    else:
        assert isinstance(verdict, Refusal) and verdict.reason is reason, verdict
        assert verdict.detail or reason is Reason.WORKSPACE_NOT_FOUND
        fault = reason not in DENIALS
        assert fault is verdict.detail.endswith(f" ({URL})") and fault is (verdict.details.get("url") == URL)


@pytest.mark.parametrize(
    "status,body",
    [
        (404, {"ok": False, "reason": "GONE"}),
        (401, {"ok": False, "reason": "bad internal key"}),
        (200, {"ok": False, "reason": "NO"}),
    ],
)
def test_the_platforms_own_word_is_kept(
    status: int, body: dict[str, Any], answer: MakeAnswer, query: UpgradeQuery
) -> None:
    verdict = judge_answer(answer(status, json.dumps(body)), query, URL)
    assert isinstance(verdict, Refusal) and verdict.details["platformWord"] == body["reason"]


@pytest.mark.parametrize(
    "status,body,hint",
    [
        (500, b"boom", "its own log has the cause"),
        (401, b"<html>", "firewall in front of the platform"),
        (403, b"Forbidden", "firewall in front of the platform"),
        (429, b"slow down", "limits the rate"),
        (429, b'{"error":"slow down"}', "limits the rate"),
    ],
)
def test_what_to_do_about_a_status_that_says_more_than_the_reason(
    status: int, body: bytes, hint: str, answer: MakeAnswer, query: UpgradeQuery
) -> None:
    """The fix of the reason alone would send the operator to the network, the key or the URL."""
    verdict = judge_answer(answer(status, body), query, URL)
    assert isinstance(verdict, Refusal) and hint in verdict.details["hint"]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ok":false,"error":"invalid relay internal key"}'])
def test_a_platform_that_refuses_the_key_itself_leaves_the_reasons_own_fix(
    body: bytes, answer: MakeAnswer, query: UpgradeQuery
) -> None:
    verdict = judge_answer(answer(401, body), query, URL)
    assert isinstance(verdict, Refusal) and verdict.reason is Reason.INTERNAL_KEY_MISMATCH
    assert "hint" not in verdict.details


@pytest.mark.parametrize("name", ["reason", "error"])
def test_a_word_as_deep_as_json_is_read(answer: MakeAnswer, query: UpgradeQuery, name: str) -> None:
    """Python reads JSON to a depth at which it cannot write it again."""
    for depth in range(800, 1050):
        deep = "[" * depth + "1" + "]" * depth
        verdict = judge_answer(answer(401, f'{{"ok":false,"{name}":{deep}}}'.encode()), query, URL)
        assert isinstance(verdict, Refusal)


def test_the_word_is_printable_short_and_without_secrets(answer: MakeAnswer, query: UpgradeQuery) -> None:
    body = json.dumps({"ok": False, "reason": "bad\n\x1b token abc.def.ghi key KEY", "error": "e" * 500})
    verdict = judge_answer(answer(200, body), query, URL, ("abc.def.ghi", "KEY"))
    assert isinstance(verdict, Refusal)
    word = verdict.details["platformWord"]
    assert word.startswith("bad?? token … key …: eee") and len(word) == 128 and word.isprintable()
    assert "abc.def" not in str(verdict) and "KEY" not in str(verdict)


@pytest.mark.parametrize(
    "failure,reason",
    [
        (Unreachable("connection refused"), Reason.PLATFORM_UNREACHABLE),
        (Unreachable("time out"), Reason.PLATFORM_UNREACHABLE),
        (TooLarge("big", 200), Reason.ADMISSION_RESPONSE_TOO_LARGE),
        (TooLarge("big", 404), Reason.ADMISSION_RESPONSE_TOO_LARGE),
        (TooLarge("big", 500), Reason.PLATFORM_UNREACHABLE),
        (Encoded("gzip", 200), Reason.VALIDATION_RESPONSE_INVALID),
        (Encoded("gzip", 502), Reason.PLATFORM_UNREACHABLE),
    ],
)
def test_failures(failure: HttpFailure, reason: Reason) -> None:
    refusal = judge_failure(failure, URL)
    assert refusal.reason is reason and refusal.details["url"] == URL and refusal.details["why"]


values = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.lists(st.integers(), max_size=2)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.integers(200, 599),
    body=st.binary(max_size=30)
    | st.dictionaries(st.sampled_from(["ok", "reason", "error", "claims"]), values, max_size=4),
)
def test_any_answer_has_a_verdict(
    answer: MakeAnswer, query: UpgradeQuery, status: int, body: bytes | dict[str, Any]
) -> None:
    verdict = judge_answer(answer(status, body if isinstance(body, bytes) else json.dumps(body)), query, URL)
    assert isinstance(verdict, Refusal)  # no claims object is ever generated
    assert (status >= 500) == (verdict.reason is Reason.PLATFORM_UNREACHABLE)
