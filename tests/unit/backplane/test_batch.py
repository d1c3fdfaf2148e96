"""The batched form of bus frames: what is signed comes out, in order, and nothing else does."""

from __future__ import annotations

import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from viewport_relay.backplane.batch import MAGIC, BatchSigner, BatchVerifier
from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, DAEMON_TO_CLIENTS, Arrival, Direction, Parcel
from viewport_relay.backplane.replay import BadFrame, Freshness
from viewport_relay.reasons import Reason

KEY, INSTANCE, NOW = "a-bus-key-of-some-length", "instance-of-b", 1_800_000_000.0


def verifier(relay_id: str = "b", key: str = KEY, instance: str = INSTANCE) -> BatchVerifier:
    freshness = Freshness(Clock(), lambda: NOW, 15.0)
    freshness.restarted = False
    return BatchVerifier(key, relay_id, instance, freshness, 1000)


def signer(now: float = NOW) -> BatchSigner:
    return BatchSigner(KEY, "a", lambda: now)


def parcel(payload: bytes, direction: Direction = CLIENT_TO_DAEMON, machine: str | None = None) -> Parcel:
    return Parcel(("w", "t"), direction, "b", machine, payload)


def reasons(found: list[Arrival | BadFrame]) -> list[Reason]:
    return [one.reason for one in found if isinstance(one, BadFrame)]


PARCELS = st.lists(
    st.builds(
        parcel,
        st.text(max_size=50).map(lambda text: text.encode("utf-8", "ignore")),
        st.sampled_from([CLIENT_TO_DAEMON, DAEMON_TO_CLIENTS]),
        st.none() | st.just("m"),
    ),
    min_size=1,
    max_size=20,
)


@given(PARCELS)
def test_what_is_signed_comes_out_in_order(parcels: list[Parcel]) -> None:
    found = verifier().verify(signer().sign(parcels, INSTANCE))
    assert found == [Arrival(p.target, p.direction, "a", p.payload) for p in parcels]


@given(st.data())
def test_no_changed_byte_is_accepted(data: st.DataObject) -> None:
    raw = bytearray(signer().sign([parcel(b"{}")], INSTANCE))
    at = data.draw(st.integers(len(MAGIC), len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    assert reasons(verifier().verify(bytes(raw))) == [Reason.BUS_SIGNATURE_INVALID]


@given(st.binary(max_size=200))
def test_whatever_follows_the_magic_is_refused(rest: bytes) -> None:
    assert reasons(verifier().verify(MAGIC + rest)) == [Reason.BUS_SIGNATURE_INVALID]


@given(st.binary(max_size=200))
def test_a_signed_body_of_an_unknown_form(body: bytes) -> None:
    mac = hmac.digest(KEY.encode(), b"viewport-relay-bus-batch-v1\n" + body, "sha256")
    assert reasons(verifier().verify(MAGIC + mac + body)) == [Reason.BUS_FRAME_REFUSED]


@pytest.mark.parametrize(
    ("relay_id", "key", "now", "reason"),
    [
        ("b", "another-key", NOW, Reason.BUS_SIGNATURE_INVALID),
        ("c", KEY, NOW, Reason.BUS_FRAME_REFUSED),
        ("b", KEY, NOW - 15.1, Reason.BUS_SIGNATURE_STALE),
        ("b", KEY, NOW + 15.1, Reason.BUS_SIGNATURE_STALE),
    ],
)
def test_refused_as_a_whole(relay_id: str, key: str, now: float, reason: Reason) -> None:
    raw = signer(now).sign([parcel(b"1"), parcel(b"2")], INSTANCE)
    assert reasons(verifier(relay_id, key).verify(raw)) == [reason]


def test_the_same_frames_twice_are_two_batches_and_one_batch_twice_is_a_replay() -> None:
    to, by = verifier(), signer()
    first, second = (by.sign([parcel(b"{}")], INSTANCE) for _ in range(2))
    assert reasons(to.verify(first)) == reasons(to.verify(second)) == []
    assert reasons(to.verify(first)) == [Reason.BUS_SIGNATURE_REPLAYED]


def test_a_batch_for_the_process_before_is_stale_after_a_restart() -> None:
    raw = signer(NOW - 3).sign([parcel(b"{}")], "instance-of-the-process-before")
    assert reasons(verifier().verify(raw)) == [Reason.BUS_SIGNATURE_STALE]


def test_one_bad_frame_harms_no_other() -> None:
    bad = [parcel(b"x" * 1001), parcel(b"\xff"), Parcel(("w", ""), CLIENT_TO_DAEMON, "b", None, b"{}")]
    found = verifier().verify(signer().sign([parcel(b"1"), *bad, parcel(b"2")], INSTANCE))
    assert [one.payload for one in found if isinstance(one, Arrival)] == [b"1", b"2"]
    assert reasons(found) == [Reason.BUS_FRAME_REFUSED] * 3


def test_the_form_on_the_wire() -> None:
    """As the module's docstring gives it."""
    raw = signer().sign([parcel(b"{}", DAEMON_TO_CLIENTS, "m")], INSTANCE)
    assert raw[:4] == b"VRB1"
    body = raw[36:]
    assert raw[4:36] == hmac.digest(KEY.encode(), b"viewport-relay-bus-batch-v1\n" + body, "sha256")
    frame = ["w", "t", "m", False, b"{}"]
    assert msgspec.msgpack.decode(body) == ["a", "b", INSTANCE, int(NOW * 1000), 1, [frame]]
