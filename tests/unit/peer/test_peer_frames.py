"""JSON and base64url of frames: strict reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.peer import base64url, frames
from viewport_relay.peer.errors import Code, PeerError


@given(st.binary(max_size=200))
def test_base64url_round_trip(data: bytes) -> None:
    text = base64url.encode(data)
    assert "=" not in text
    assert base64url.decode(text, "x", len(data)) == data


@given(st.text(alphabet="ABCDEFghijkl0189-_=+/ \n", max_size=12))
def test_base64url_is_canonical(text: str) -> None:
    try:
        data = base64url.decode(text, "x")
    except PeerError as error:
        assert error.code is Code.MALFORMED
    else:
        assert base64url.encode(data) == text


@pytest.mark.parametrize("text", ["A", "AB==", "AB", "AAA+", "AAA/", "AA\n", "é", None, 4, b"AA"])
def test_invalid_base64url(text: object) -> None:
    with pytest.raises(PeerError, match="MALFORMED"):
        base64url.decode(text, "x", 1)


@pytest.mark.parametrize(
    "text", ["", "[]", "1", '"x"', "{", "{}x", "\ufeff{}", '{"a":NaN}', '{"a":-Infinity}', "[" * 100_000]
)
def test_invalid_frames(text: str) -> None:
    with pytest.raises(PeerError, match="MALFORMED"):
        frames.parse(text)


def test_the_last_duplicate_key_wins_and_large_numbers_are_read() -> None:
    assert frames.parse('{"a":1,"a":2}') == {"a": 2}
    assert frames.parse('{"a":%s}' % ("9" * 5_000))["a"] == float("inf")


@pytest.mark.parametrize(("value", "read"), [(1, 1), (1.0, 1), (2**53 - 1, 2**53 - 1)])
def test_positive_integers(value: object, read: int) -> None:
    assert frames.positive({"n": value}, "n") == read


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1", None, float("inf"), 2**53, [1]])
def test_values_that_are_no_positive_integers(value: object) -> None:
    with pytest.raises(PeerError):
        frames.positive({"n": value}, "n")


@pytest.mark.parametrize("value", ["", "  \t", None, 3, "\ud800", "a\udfffb"])
def test_values_that_are_no_text(value: object) -> None:
    with pytest.raises(PeerError):
        frames.string({"s": value}, "s")


def test_compact_keeps_order_and_letters() -> None:
    assert frames.compact({"b": "✓", "a": 1}) == '{"b":"✓","a":1}'
