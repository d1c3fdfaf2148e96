"""Bus frames: signature, refusals, detection of replays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, Arrival, Parcel
from viewport_relay.backplane.replay import BadFrame, Freshness, ReplayGuard
from viewport_relay.backplane.signing import FrameSigner, FrameVerifier, signature_of
from viewport_relay.reasons import Reason

KEY = "a-bus-key-of-some-length"


class Time:
    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def verifier(time: Time, relay_id: str = "b") -> FrameVerifier:
    return FrameVerifier(KEY, relay_id, fresh(time), 1000)


def fresh(time: Time) -> Freshness:
    """The freshness check of a relay without an earlier process."""
    freshness = Freshness(Clock(), time, 15.0)
    freshness.restarted = False
    return freshness


def signed(time: Time, one: Parcel) -> bytes:
    """The only message of a parcel as relay a sends it."""
    return FrameSigner(KEY, "a", time).sign(one)


def parcel(payload: bytes = b'{"x":1}', **rest: Any) -> Parcel:
    return Parcel(**{
        "target": ("w", "t"), "direction": CLIENT_TO_DAEMON, "to_relay": "b", "machine_id": None, "payloads": (payload,),
        "size": len(payload), **rest,
    })  # fmt: skip


def test_the_signature_of_a_known_frame() -> None:
    """HMAC-SHA256 over the lines, equal to the output of openssl:

    printf 'w\\nt\\nm\\na\\nb\\nclient_to_daemon\\n1700000000000\\n{}' | openssl dgst -sha256 -hmac key
    """
    made = signature_of(b"key", ("w", "t", "m", "a", "b", "client_to_daemon", "1700000000000"), b"{}")
    assert made.hex() == "92a21a61b736aa253fed0262dfaf337922e02cf24d63c6c2c48f55fb004eb4ec"


def test_the_members_of_a_signed_frame(time: Time) -> None:
    frame = json.loads(signed(time, parcel(machine_id="m")))
    assert {name: frame[name] for name in frame if name != "signature"} == {
        "workspaceId": "w",
        "runtimeTargetId": "t",
        "machineId": "m",
        "sourceRelayId": "a",
        "targetRelayId": "b",
        "direction": "client_to_daemon",
        "payload": '{"x":1}',
        "issuedAtMs": 1_800_000_000_250,
    }
    assert len(frame["signature"]) == 43
    assert "machineId" not in json.loads(signed(time, parcel()))


def test_a_signed_frame_is_verified(time: Time) -> None:
    payload = 'äöü 🙂 \u2028 "'.encode()
    raw = signed(time, parcel(payload, machine_id="m"))
    assert verifier(time).verify(raw) == Arrival.of(("w", "t"), CLIENT_TO_DAEMON, "a", payload)
    assert verifier(time).verify(json.loads(raw)) == Arrival.of(("w", "t"), CLIENT_TO_DAEMON, "a", payload)


def test_equal_messages_are_no_replays(time: Time) -> None:
    signer, there = FrameSigner(KEY, "a", time), verifier(time)
    for step in (0, 0, 0, 0.001, 0, 0.002, -0.001, 0):
        time.now += step
        assert isinstance(there.verify(signer.sign(parcel())), Arrival)


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.none() | st.text("ab\u00e4", min_size=1, max_size=5),
)
def test_any_text_is_signed_and_verified(text: str, machine_id: str | None) -> None:
    time = Time()
    raw = signed(time, parcel(text.encode(), machine_id=machine_id))
    read = FrameVerifier(KEY, "b", fresh(time), 100_000).verify(raw)
    assert isinstance(read, Arrival)
    assert read.payloads[0].decode() == text


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a", "b", "w", "t"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
).flatmap(lambda value: st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("workspaceId", "runtimeTargetId", "machineId", "sourceRelayId", "targetRelayId", "direction", "payload",
     "issuedAtMs", "signature"), st.just(value) | st.text(max_size=3),
))))  # fmt: skip
def test_unsigned_frames_are_refused(frame: dict[str, Any]) -> None:
    assert isinstance(verifier(Time()).verify(frame), BadFrame)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(raw: bytes) -> None:
    assert isinstance(verifier(Time()).verify(raw), BadFrame)


@pytest.mark.parametrize("age", [14.9, -14.9])
def test_within_the_skew(time: Time, age: float) -> None:
    raw = signed(time, parcel())
    time.now += age
    assert isinstance(verifier(time).verify(raw), Arrival)


@pytest.mark.parametrize("age", [15.1, -15.1, 1e6])
def test_beyond_the_skew(time: Time, age: float) -> None:
    raw = signed(time, parcel())
    time.now += age
    read = verifier(time).verify(raw)
    assert isinstance(read, BadFrame)
    assert read.reason is Reason.BUS_SIGNATURE_STALE


def test_a_replay_is_detected_while_the_frame_is_fresh(time: Time) -> None:
    there = verifier(time)
    time.now += 14.9  # the source's clock is ahead
    raw = signed(time, parcel())
    time.now -= 14.9
    assert isinstance(there.verify(raw), Arrival)
    for _ in range(290):
        time.now += 0.1
        there.verify(signed(time, parcel()))
        read = there.verify(raw)
        assert isinstance(read, BadFrame)
        assert read.reason is Reason.BUS_SIGNATURE_REPLAYED


def test_newlines_in_ids_cannot_shift_the_fields(time: Time) -> None:
    frame = json.loads(signed(time, parcel(target=("w\nx", "t"))))
    assert isinstance(verifier(time).verify(frame), BadFrame)


def test_the_guard_is_bounded_and_accepts_nothing_that_it_has_forgotten_early() -> None:
    clock = Clock()
    guard = ReplayGuard(clock, 30.0, most=10)
    signatures = [bytes([n]) * 32 for n in range(100)]
    for number, signature in enumerate(signatures):
        assert guard.is_new(signature, 1000.0 + number / 10)
        assert len(guard) <= 20
    assert not any(guard.is_new(signature, 1000.0 + n / 10) for n, signature in enumerate(signatures))
    assert guard.is_new(b"x" * 32, 1010.0)
    # Once what was forgotten is stale, nothing is refused for its time of issue: all clocks may have been set back.
    clock.advance(30.0)
    assert guard.is_new(b"y" * 32, 500.0)


def test_the_guard_drops_signatures_that_are_stale() -> None:
    clock = Clock()
    guard = ReplayGuard(clock, 30.0)
    assert guard.is_new(b"a" * 32, 0.0)
    clock.advance(29.0)
    assert not guard.is_new(b"a" * 32, 0.0)
    clock.advance(2.0)
    assert guard.is_new(b"b" * 32, 31.0)
    assert not guard.is_new(b"a" * 32, 0.0)
    clock.advance(31.0)
    assert guard.is_new(b"c" * 32, 62.0) and len(guard) == 2


@pytest.mark.parametrize("back", [20.0, 3600.0])
def test_a_frame_is_accepted_once_when_the_clock_goes_forward_and_back(back: float, time: Time) -> None:
    """The wall clock runs ahead for a moment; by its time all earlier frames were stale, and could be forgotten."""
    clock = Clock()
    freshness = Freshness(clock, time, 15.0)
    freshness.restarted = False
    there = FrameVerifier(KEY, "b", freshness, 1000)
    raw = signed(time, parcel())
    assert isinstance(there.verify(raw), Arrival)
    time.now += back
    for number in range(3):  # frames of relays whose clocks run ahead too
        time.now += 31.0
        assert isinstance(there.verify(signed(time, parcel(b'{"n":%d}' % number))), Arrival)
    clock.advance(5.0)
    time.now += 5.0 - back - 3 * 31.0
    read = there.verify(raw)
    assert isinstance(read, BadFrame) and read.reason is Reason.BUS_SIGNATURE_REPLAYED


def test_a_clock_that_is_set_back_refuses_new_frames_for_two_windows_at_most(time: Time) -> None:
    """And only where so many frames come that signatures are forgotten early."""
    clock = Clock()
    freshness = Freshness(clock, time, 15.0)
    freshness.restarted = False
    freshness.guard = ReplayGuard(clock, 30.0, most=2)
    there = FrameVerifier(KEY, "b", freshness, 1000)

    def accepts(number: int) -> bool:
        time.now += 0.01
        return isinstance(there.verify(signed(time, parcel(b'{"n":%d}' % number))), Arrival)

    assert all(accepts(number) for number in range(10))
    time.now -= 3600.0
    for number in (10, 11):
        clock.advance(31.0)
        assert accepts(number)
    assert all(accepts(number) for number in range(12, 20))
