"""Batches of bus frames: signed frames are read in order; any other input is refused."""

from __future__ import annotations

import hmac

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from viewport_relay.backplane.batch import MAGIC, BatchSigner, BatchVerifier
from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, DAEMON_TO_CLIENTS, Arrival, Direction, Parcel
from viewport_relay.backplane.replay import BadFrame, Freshness
from viewport_relay.protocol.frames import E2ee
from viewport_relay.reasons import Reason

KEY, INSTANCE, NOW = "a-bus-key-of-some-length", "instance-of-b", 1_800_000_000.0


def verifier(relay_id: str = "b", key: str = KEY, instance: str = INSTANCE) -> BatchVerifier:
    freshness = Freshness(Clock(), lambda: NOW, 15.0)
    freshness.restarted = False
    return BatchVerifier(key, relay_id, instance, freshness, 1000)


def signer(now: float = NOW) -> BatchSigner:
    return BatchSigner(KEY, "a", lambda: now)


def signed(parcels: list[Parcel], instance: str = INSTANCE, now: float = NOW) -> bytes:
    return bytes(signer(now).sign(parcels, instance))


def parcel(payload: bytes, direction: Direction = CLIENT_TO_DAEMON, machine: str | None = None) -> Parcel:
    return Parcel(("w", "t"), direction, "b", machine, (payload,), len(payload))


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
def test_signed_frames_are_read_in_order(parcels: list[Parcel]) -> None:
    found = verifier().verify(signed(parcels))
    assert found == [Arrival.of(p.target, p.direction, "a", bytes(p.payloads[0])) for p in parcels]


@given(st.data())
def test_no_changed_byte_is_accepted(data: st.DataObject) -> None:
    raw = bytearray(signed([parcel(b"{}")]))
    at = data.draw(st.integers(len(MAGIC), len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    assert reasons(verifier().verify(bytes(raw))) == [Reason.BUS_SIGNATURE_INVALID]


@given(st.binary(max_size=200))
def test_random_bytes_after_the_magic_are_refused(rest: bytes) -> None:
    assert reasons(verifier().verify(MAGIC + rest)) == [Reason.BUS_SIGNATURE_INVALID]


def authentic(head: bytes, payloads: bytes = b"", frames: int = 1) -> bytes:
    """A correctly signed batch around an arbitrary head, by the format in the module's docstring."""
    process, number = b"p" * 12, (7).to_bytes(8, "big")
    key = hmac.digest(KEY.encode(), b"viewport-relay-bus-batch-v4\n" + process, "sha256")
    covered = process + number + frames.to_bytes(4, "big") + len(head).to_bytes(4, "big") + head + payloads
    return MAGIC + AESGCM(key).encrypt(bytes(4) + number, b"", covered) + covered


@given(st.binary(max_size=200))
def test_an_authentic_head_of_an_unknown_form(head: bytes) -> None:
    assert reasons(verifier().verify(authentic(head))) == [Reason.BUS_FRAME_REFUSED]


@pytest.mark.parametrize(
    "sizes",
    [[3], [1], [], [-1, 3], [1 << 63]],
    ids=["too long", "too short", "none", "a negative length", "a huge length"],
)
def test_inconsistent_batches_are_refused(sizes: list[int]) -> None:
    runs = [["w", "t", True, None, None, sizes]]
    head = msgspec.msgpack.encode(["a", "b", INSTANCE, int(NOW * 1000), runs])
    assert reasons(verifier().verify(authentic(head, b"\x81\x02{}"))) == [Reason.BUS_FRAME_REFUSED]


def test_a_run_without_messages_brings_nothing() -> None:
    runs = [["w", "t", True, "noise-ik", "session-1", []]]
    head = msgspec.msgpack.encode(["a", "b", INSTANCE, int(NOW * 1000), runs])
    assert verifier().verify(authentic(head)) == []


@pytest.mark.parametrize(
    ("relay_id", "key", "now", "reason"),
    [
        ("b", "another-key", NOW, Reason.BUS_SIGNATURE_INVALID),
        ("c", KEY, NOW, Reason.BUS_FRAME_REFUSED),
        ("b", KEY, NOW - 15.1, Reason.BUS_SIGNATURE_STALE),
        ("b", KEY, NOW + 15.1, Reason.BUS_SIGNATURE_STALE),
    ],
)
def test_batches_that_are_refused_as_a_whole(relay_id: str, key: str, now: float, reason: Reason) -> None:
    raw = signed([parcel(b"1"), parcel(b"2")], now=now)
    assert reasons(verifier(relay_id, key).verify(raw)) == [reason]


def test_a_repeated_batch_is_a_replay_and_repeated_frames_are_not() -> None:
    to, by = verifier(), signer()
    first, second = (bytes(by.sign([parcel(b"{}")], INSTANCE)) for _ in range(2))
    assert reasons(to.verify(first)) == reasons(to.verify(second)) == []
    assert reasons(to.verify(first)) == [Reason.BUS_SIGNATURE_REPLAYED]


def test_a_batch_is_a_replay_whatever_is_done_to_the_clock() -> None:
    clock, wall = Clock(), [NOW]
    freshness = Freshness(clock, lambda: wall[0], 15.0)
    freshness.restarted = False
    to, by = BatchVerifier(KEY, "b", INSTANCE, freshness, 1000), BatchSigner(KEY, "a", lambda: wall[0])
    first = bytes(by.sign([parcel(b"{}")], INSTANCE))
    assert reasons(to.verify(first)) == []
    for _ in range(5):
        clock.advance(3600.0)
        wall[0] += 3600.0
        assert reasons(to.verify(bytes(by.sign([parcel(b"{}")], INSTANCE)))) == []
    assert reasons(to.verify(first)) == [Reason.BUS_SIGNATURE_STALE]
    wall[0] = NOW + 1.0
    assert reasons(to.verify(first)) == [Reason.BUS_SIGNATURE_REPLAYED]
    assert reasons(to.verify(bytes(by.sign([parcel(b"{}")], INSTANCE)))) == []


def test_a_batch_for_the_previous_process_is_stale() -> None:
    raw = signed([parcel(b"{}")], "instance-of-the-process-before", NOW - 3)
    assert reasons(verifier().verify(raw)) == [Reason.BUS_SIGNATURE_STALE]


def test_invalid_frames_do_not_affect_the_others() -> None:
    bad = [parcel(b"x" * 1001), parcel(b"\xff"), Parcel(("w", ""), CLIENT_TO_DAEMON, "b", None, (b"{}",), 2)]
    found = verifier().verify(signed([parcel(b"1"), *bad, parcel(b"2")]))
    assert [one.payloads for one in found if isinstance(one, Arrival)] == [[b"1"], [b"2"]]
    assert reasons(found) == [Reason.BUS_FRAME_REFUSED] * 3


def test_a_decoded_e2ee_frame_carries_its_profile_and_session() -> None:
    frame = E2ee("noise-ik", "session-1")
    [found] = verifier().verify(
        signed([Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (b"{}", b"[]"), 4, frame)])
    )
    assert found == Arrival(("w", "t"), CLIENT_TO_DAEMON, "a", b"\x81\x02{}\x81\x02[]", [2, 2], frame)
    odd = E2ee("noise-ik", "\ud800")  # has no UTF-8 encoding: the receiver decodes the message again
    [found] = verifier().verify(signed([Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (b"{}",), 2, odd)]))
    assert isinstance(found, Arrival) and found.frame is None


@given(
    st.lists(
        st.integers(0, 1000) | st.sampled_from([125, 126, 65_535, 65_536, 70_000]), min_size=1, max_size=8
    )
)
def test_the_messages_of_a_run_are_found_by_their_sizes(sizes: list[int]) -> None:
    """A message that is too long for the receiver is refused alone, and the others of its run keep their order."""
    frame, payloads = E2ee("noise-ik", "session-1"), [bytes([n]) * size for n, size in enumerate(sizes)]
    run = Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, payloads, sum(sizes), frame)
    found = verifier().verify(signed([run]))
    arrivals = [one for one in found if isinstance(one, Arrival)]
    short = [payload for payload in payloads if len(payload) <= 1000]
    assert [payload for one in arrivals for payload in one.payloads] == short
    assert {one.frame for one in arrivals} <= {frame} and len(reasons(found)) == len(payloads) - len(short)
    for one in arrivals:
        assert one.first(1).payloads == one.payloads[:1] and one.first(len(one.sizes)) == one


def test_an_unknown_profile_is_refused() -> None:
    runs = [["w", "t", True, "noise-xx", "session-1", [2]]]
    head = msgspec.msgpack.encode(["a", "b", INSTANCE, int(NOW * 1000), runs])
    assert reasons(verifier().verify(authentic(head, b"\x81\x02{}"))) == [Reason.BUS_FRAME_REFUSED]


def test_the_wire_format() -> None:
    """The format in the module's docstring."""
    raw = signed([parcel(b"{}", DAEMON_TO_CLIENTS, "m"), parcel(b"[]", DAEMON_TO_CLIENTS, "m")])
    assert raw[:4] == b"VRB4"
    assert raw[32:44] == (1).to_bytes(8, "big") + (2).to_bytes(4, "big")
    head = 48 + int.from_bytes(raw[44:48], "big")
    runs = [["w", "t", False, None, None, [2]]] * 2
    assert msgspec.msgpack.decode(raw[48:head]) == ["a", "b", INSTANCE, int(NOW * 1000), runs]
    assert raw[head:] == b"\x81\x02{}\x81\x02[]"
    key = hmac.digest(KEY.encode(), b"viewport-relay-bus-batch-v4\n" + raw[20:32], "sha256")
    assert AESGCM(key).encrypt(bytes(4) + raw[32:40], b"", raw[20:]) == raw[4:20]


def test_no_two_batches_share_a_nonce() -> None:
    by = signer()
    numbers = {bytes(by.sign([parcel(b"{}")], INSTANCE)[20:40]) for _ in range(50)}
    numbers |= {bytes(signer().sign([parcel(b"{}")], INSTANCE)[20:40]) for _ in range(50)}
    assert len(numbers) == 100
