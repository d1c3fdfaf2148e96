"""Outbound side of the bus: order, batches, limits, lost frames."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.memorywire import Log
from tests.unit.backplane.parts import StubCarrier
from viewport_relay.backplane.batch import ParcelSigner
from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, CarrierFailed, Parcel
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.outbound import PAUSE_AT, Outbound
from viewport_relay.observe.counters import Counters

KEY = "a-bus-key-of-some-length"


class Publisher:
    def __init__(self) -> None:
        self.causes: set[object] = set()

    def pause_reading(self, cause: object) -> None:
        self.causes.add(id(cause))

    def resume_reading(self, cause: object) -> None:
        self.causes.discard(id(cause))


class Parts:
    def __init__(self, **bounds: int) -> None:
        self.clock = Clock()
        self.carrier = StubCarrier(hold=True)
        self.log = Log()
        self.counters = Counters()
        self.outage = Outage(self.clock, self.log, self.counters, lambda: None)
        self.outage.expect("p")
        self.failed: list[str] = []
        self.bus = Outbound(
            self.clock,
            lambda call: self.clock.callLater(0, call),
            self.carrier,
            self.outage,
            ParcelSigner(KEY, "a", lambda: 1_800_000_000.0, lambda relay_id: None),
            self.log,
            self.counters,
            self._lost,
            most_bytes=bounds.get("most_bytes", 1 << 20),
            most_frames=bounds.get("most_frames", 1000),
        )

    def publish(
        self, text: str, to: str = "b", target: str = "t", publisher: Publisher | None = None
    ) -> None:
        payload = text.encode()
        self.bus.publish(
            Parcel(("w", target), CLIENT_TO_DAEMON, to, None, (payload,), len(payload)), publisher
        )

    def nothing_waits(self) -> bool:
        """Whether no relay has a message that is queued or in flight: then a flush is over at once."""
        return Deferred.fromCoroutine(self.bus.flush()).called

    def answer(self) -> None:
        """The oldest call succeeds, and the turn ends."""
        self.carrier.answer()
        self.clock.advance(0)

    def fail(self, error: CarrierFailed) -> None:
        self.carrier.fail(error)
        self.clock.advance(0)

    def _lost(self, parcels: Sequence[Parcel]) -> None:
        self.failed += [payload.decode() for parcel in parcels for payload in parcel.payloads]

    def payloads(self) -> list[str]:
        return [json.loads(frame)["payload"] for _, frame in self.carrier.frames]

    def batches(self) -> list[int]:
        return [call[1] for call in self.carrier.seen]


def test_one_call_carries_the_frames_of_a_turn_in_order() -> None:
    parts = Parts()
    for number in range(6):
        parts.publish(str(number))
    assert parts.batches() == []
    parts.clock.advance(0)
    assert parts.batches() == [4]  # the carrier's limit for one batch
    parts.publish("6")
    parts.answer()
    assert parts.batches() == [4, 3]
    parts.answer()
    assert parts.payloads() == list("0123456")
    assert (parts.counters.bus_publish_ok, parts.bus.queued, parts.nothing_waits()) == (7, 0, True)


def test_without_batches_each_message_of_a_parcel_is_a_frame() -> None:
    parts = Parts()
    parts.bus.publish(Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (b"1", b"2", b"3"), 3))
    parts.clock.advance(0)
    assert parts.batches() == [3]
    parts.answer()
    assert parts.payloads() == ["1", "2", "3"]


def test_where_a_call_carries_one_frame_each_message_of_a_parcel_fails_by_itself() -> None:
    parts = Parts()
    parts.carrier.batch = 1
    parts.bus.publish(Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (b"1", b"2", b"3"), 3))
    parts.clock.advance(0)
    parts.answer()
    parts.fail(CarrierFailed("refused", outage=False))
    parts.answer()
    assert (parts.payloads(), parts.failed) == (["1", "3"], ["2"])


def test_lanes_run_concurrently_up_to_the_carriers_limit() -> None:
    parts = Parts()
    parts.carrier.one_series = False
    for target in ("t1", "t2", "t3"):
        parts.publish(target, target=target)
    parts.clock.advance(0)
    assert parts.batches() == [1, 1]
    parts.answer()
    assert parts.batches() == [1, 1, 1]


def test_a_failed_call_loses_its_own_frames_only() -> None:
    parts = Parts()
    for number in range(6):
        parts.publish(str(number))
    parts.clock.advance(0)
    parts.fail(CarrierFailed("refused", outage=False))
    assert parts.failed == list("0123")
    assert parts.log.names() == ["bus_publish_failed"]
    parts.answer()
    assert parts.payloads() == ["4", "5"]
    assert (parts.counters.bus_publish_ok, parts.counters.bus_publish_failed) == (2, 4)


def test_in_an_outage_frames_are_lost_at_once() -> None:
    parts = Parts()
    for number in range(6):
        parts.publish(str(number))
    parts.clock.advance(0)
    parts.outage.down("p", CarrierFailed("gone"))
    parts.fail(CarrierFailed("gone"))
    assert parts.failed == list("012345")
    parts.publish("6")
    assert parts.failed[-1] == "6"
    assert parts.batches() == [4]
    assert parts.log.names() == ["backplane_unreachable"]  # one entry for the outage, none for each frame
    parts.outage.up("p")
    parts.publish("7")
    parts.clock.advance(0)
    parts.answer()
    assert parts.payloads() == ["7"]


@pytest.mark.parametrize("bounds", [{"most_frames": 3}, {"most_bytes": 30}])
def test_over_the_limit_of_a_relay_its_oldest_frames_are_dropped(bounds: dict[str, int]) -> None:
    parts = Parts(**bounds)
    for number in range(5):
        parts.publish(f"{number:010}")
    parts.publish("other", to="c")
    assert parts.failed == ["0000000000", "0000000001"]
    assert (parts.counters.bus_queue_dropped, parts.counters.bus_publish_failed) == (2, 2)
    parts.clock.advance(0)
    parts.answer()
    parts.answer()
    assert parts.payloads() == ["0000000002", "0000000003", "0000000004", "other"]
    assert parts.bus.queued == 0


@pytest.mark.parametrize("bounds", [{"most_frames": 3}, {"most_bytes": 3}], ids=["frames", "bytes"])
def test_a_parcel_over_the_limit_loses_its_oldest_messages(bounds: dict[str, int]) -> None:
    parts = Parts(**bounds)
    parts.publish("0")
    parts.bus.publish(Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (b"1", b"2", b"3", b"4"), 4))
    assert parts.failed == ["0", "1"]
    assert (parts.counters.bus_queue_dropped, parts.bus.queued) == (2, 3)
    parts.clock.advance(0)
    parts.answer()
    assert parts.payloads() == ["2", "3", "4"]
    assert (parts.counters.bus_publish_ok, parts.bus.queued, parts.nothing_waits()) == (3, 0, True)


def test_frames_in_flight_are_not_dropped_for_newer_ones() -> None:
    parts = Parts(most_frames=4)
    for number in range(4):
        parts.publish(str(number))
    parts.clock.advance(0)
    for number in range(4, 7):
        parts.publish(str(number))
    assert parts.failed == ["4", "5"]
    parts.answer()
    parts.answer()
    assert parts.payloads() == ["0", "1", "2", "3", "6"]


def test_a_single_frame_over_the_limit_is_sent() -> None:
    parts = Parts(most_bytes=10)
    parts.publish("x" * 50)
    assert parts.failed == []


def test_over_the_high_water_mark_the_publishers_reading_is_paused() -> None:
    parts = Parts(most_bytes=1 << 22)
    publisher = Publisher()
    half = "x" * (PAUSE_AT // 2)
    parts.publish(half, publisher=publisher)
    assert not publisher.causes
    parts.publish(half, publisher=publisher)
    assert publisher.causes
    for _ in range(2):
        assert publisher.causes
        parts.clock.advance(0)
        parts.answer()
    assert not publisher.causes


def test_publishers_are_paused_long_before_anything_is_dropped() -> None:
    parts = Parts(most_bytes=4000)
    publisher = Publisher()
    parts.publish("x" * 1000, publisher=publisher)
    assert publisher.causes and not parts.failed


def test_a_failure_resumes_the_publisher() -> None:
    parts = Parts(most_bytes=1 << 22)
    publisher = Publisher()
    parts.publish("x" * PAUSE_AT, publisher=publisher)
    assert publisher.causes
    parts.clock.advance(0)
    parts.fail(CarrierFailed("gone"))
    assert not publisher.causes


def test_flush_waits_for_all_lanes() -> None:
    parts = Parts()
    parts.carrier.one_series = False
    parts.publish("1", target="t1")
    parts.publish("2", target="t2")
    flushed = Deferred.fromCoroutine(parts.bus.flush())
    parts.clock.advance(0)
    parts.answer()
    assert not flushed.called
    parts.answer()
    assert flushed.called
