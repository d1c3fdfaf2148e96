"""Envelopes: each one opens once, unchanged, at the other side only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewport_relay.peer import envelope
from viewport_relay.peer.e2e import SessionKeys
from viewport_relay.peer.envelope import REPLAY_WINDOW, ReplayWindow, Session
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.symmetric import Profile

KEY = bytes(range(32))


def _pair(epoch: int = 1) -> tuple[Session, Session]:
    keys = SessionKeys(Profile.IK, "rs_1", epoch, KEY, b"client")
    return Session(keys), Session(keys)


def _sealed(session: Session, text: str) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(session.seal(text))
    return frame


@given(st.text(min_size=1))
def test_round_trip_both_ways(text: str) -> None:
    a, b = _pair()
    assert b.open(_sealed(a, text)) == text
    assert a.open(_sealed(b, text)) == text


def test_members_of_the_wire_and_counters() -> None:
    a, _ = _pair(epoch=4)
    first, second = _sealed(a, "x"), _sealed(a, "x")
    assert list(first) == [
        "type",
        "version",
        "profile",
        "sessionId",
        "epoch",
        "seq",
        "iv",
        "tag",
        "ciphertext",
    ]
    assert (first["type"], first["version"], first["epoch"], first["seq"], second["seq"]) == (
        "e2ee",
        2,
        4,
        1,
        2,
    )
    assert len(first["iv"]) == 16
    assert first["iv"] != second["iv"]


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        _pair()[0].seal("")


_MEMBERS = ["profile", "sessionId", "epoch", "seq", "iv", "tag", "ciphertext"]


@settings(max_examples=300)
@given(st.sampled_from(_MEMBERS), st.text(min_size=1, max_size=30), st.data())
def test_a_tampered_envelope_never_opens(member: str, text: str, data: st.DataObject) -> None:
    a, b = _pair()
    frame = _sealed(a, text)
    value = frame[member]
    if isinstance(value, int):
        frame[member] = data.draw(st.integers(-3, 2**60).filter(lambda number: number != value))
    else:
        at = data.draw(st.integers(0, len(value)))
        cut = data.draw(st.integers(0, 2))
        put = data.draw(st.text(alphabet="ABCabc019-_=|", max_size=2))
        frame[member] = value[:at] + put + value[at + cut :]
    if frame[member] == value:
        assert b.open(frame) == text
        return
    with pytest.raises(PeerError):
        b.open(frame)
    assert b.opened == 0


def test_a_refused_envelope_changes_nothing() -> None:
    a, b = _pair()
    good = _sealed(a, "x")
    with pytest.raises(PeerError, match="DECRYPT_FAILED"):
        b.open(good | {"seq": 2**40})
    assert b.open(good) == "x"


def test_a_replay_is_refused() -> None:
    a, b = _pair()
    frames = [_sealed(a, str(number)) for number in range(300)]
    for frame in frames:
        b.open(frame)
    for frame in frames:
        with pytest.raises(PeerError) as caught:
            b.open(frame)
        assert caught.value.code is Code.REPLAYED


def test_late_envelopes_open_within_the_window_and_not_below_it() -> None:
    a, b = _pair()
    frames = [_sealed(a, str(number)) for number in range(REPLAY_WINDOW + 1)]
    b.open(frames[-1])
    with pytest.raises(PeerError, match="REPLAYED"):
        b.open(frames[0])
    for number in reversed(range(1, REPLAY_WINDOW)):
        assert b.open(frames[number]) == str(number)


def test_an_envelope_reflected_to_its_sender_is_refused() -> None:
    a, b = _pair()
    frame = _sealed(a, "x")
    with pytest.raises(PeerError) as caught:
        a.open(frame)
    assert caught.value.code is Code.REFLECTED
    assert b.open(frame) == "x"


def test_the_number_of_envelopes_per_session_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "MESSAGE_LIMIT", 2)
    a, _ = _pair()
    a.seal("x")
    a.seal("x")
    with pytest.raises(PeerError, match="SESSION_EXHAUSTED"):
        a.seal("x")


@pytest.mark.parametrize(
    "change",
    [
        {"type": "x"},
        {"version": 3},
        {"version": "2"},
        {"iv": None},
        {"iv": "AAAA"},
        {"tag": 5},
        {"ciphertext": []},
        {"seq": True},
        {"epoch": 1.5},
        {"sessionId": " "},
        {"profile": {}},
    ],
    ids=str,
)
def test_other_types_are_clean_errors(change: dict[str, Any]) -> None:
    a, b = _pair()
    with pytest.raises(PeerError):
        b.open(_sealed(a, "x") | change)


@given(st.lists(st.integers(1, 700), max_size=200))
def test_the_replay_window_accepts_each_number_once(numbers: list[int]) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    for number in numbers:
        expected = number not in seen and number > max(seen, default=0) - REPLAY_WINDOW
        assert window.fresh(number) is expected
        if expected:
            window.accept(number)
            seen.add(number)
