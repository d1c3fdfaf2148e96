"""JSON bodies, fault rules and the record of requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.devplatform.bodies import Pull
from viewport_relay.devplatform.jsonhttp import Answer, Ask, Refused, parse_object
from viewport_relay.devplatform.rules import RECORD_MAX_BYTES, RECORD_MAX_CALLS, Record, Rule


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} x", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":NaN}', "number that is out of range"),
        (b'{"a":-Infinity}', "number that is out of range"),
        (b'{"a":1e999}', "number that is out of range"),
        (b'{"a":' + b"9" * 5000 + b"}", "number that is out of range"),
        (b'{"a":' + b"[" * 200_000, "nested too deeply"),
        (b'{"a":"\x01"}', "not JSON"),
    ],
)
def test_invalid_bodies_name_their_error(raw: bytes, why: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_object(raw)
    assert (caught.value.status, caught.value.reason) == (400, "INVALID_JSON")
    assert why in str(caught.value.error)


@given(
    raw=st.one_of(
        st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_any_bytes_give_an_object_or_a_refusal(raw: bytes) -> None:
    try:
        json.dumps(parse_object(raw)).encode("ascii")
    except Refused as refused:
        assert refused.status == 400


def pull(body: str) -> Pull:
    return Ask("POST", "/", "/", {}, body.encode()).body(Pull)


@pytest.mark.parametrize(("value", "wanted"), [(1, 1), (1.0, 1), (1e0, 1), (2**53 - 1, 2**53 - 1)])
def test_integers_follow_javascript(value: object, wanted: int) -> None:
    assert pull(json.dumps({"relayId": "r", "sinceId": value})).since_id == wanted


@pytest.mark.parametrize("value", [True, "1", None, 1.5, -1, 2**53, 1e300, [1]])
def test_other_values_are_no_integers(value: object) -> None:
    with pytest.raises(Refused):
        pull(json.dumps({"relayId": "r", "sinceId": value}))


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(Refused, match="INVALID_BODY"):
        pull(json.dumps({"relayId": "\ud800"}))


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("Bearer abc", "abc"),
        ("bEARER   abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
    ],
)
def test_bearer(header: str, wanted: str | None) -> None:
    assert Ask("GET", "/", "/", {"authorization": header}, b"").bearer() == wanted


def test_a_rule_changes_only_what_it_names() -> None:
    answer = Answer(200, {"ok": True}, headers={"etag": '"1"'})
    assert Rule().over(answer) == answer
    slow = Rule(delay=1.5).over(answer)
    assert (slow.delay, slow.status, slow.body, slow.headers) == (1.5, 200, {"ok": True}, {"etag": '"1"'})
    failed = Rule(status=503, headers={"retry-after": "1"}).over(answer)
    assert (failed.status, failed.body, failed.headers) == (503, {"ok": False}, {"retry-after": "1"})
    assert Rule(raw=b"<html>").over(answer).payload() == b"<html>"
    assert json.loads(Rule(body=[]).over(answer).payload()) == []
    raw = Answer(raw=b"old")
    assert json.loads(Rule(body={"ok": 1}).over(raw).payload()) == {"ok": 1}


def asked(path: str, raw: bytes) -> Ask:
    return Ask("POST", path, path, {"authorization": "hidden"}, raw)


def test_the_record_keeps_the_newest_requests_within_its_bounds() -> None:
    record = Record()
    last = RECORD_MAX_CALLS + 1
    for number in range(last + 1):
        record.add(asked(f"/{number}", b"x" * 10))
    assert [ask.path for ask in record] == [f"/{number}" for number in range(2, last + 1)]
    assert record.total == last + 1
    assert record[-1].path == f"/{last}"
    record.add(asked("/large", bytes(RECORD_MAX_BYTES - 1)))
    assert [ask.path for ask in record] == ["/large"]
    assert "hidden" not in repr(record[0])
    record.clear()
    assert (len(record), record.total) == (0, 0)
