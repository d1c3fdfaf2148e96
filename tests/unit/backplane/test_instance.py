"""Instance records: the running process, an earlier process, other relays that read batches."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.memorywire import Log
from viewport_relay.backplane.batch import VERSION
from viewport_relay.backplane.instance import (
    FORGOTTEN,
    MOST_DESCRIBED,
    RECORD_TTL,
    REFRESH,
    Instances,
)
from viewport_relay.backplane.interface import CarrierFailed


class Kept:
    """Records in memory; calls fail while `broken`."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.broken = False
        self.asked = 0

    def _check(self) -> None:
        if self.broken:
            raise CarrierFailed("gone")

    async def mark(self, record: bytes) -> bytes | None:
        self._check()
        there, self.records["a"] = self.records.get("a"), record
        return there

    async def retire(self, record: bytes, last: bytes) -> None:
        self._check()
        if self.records.get("a") == record:
            self.records["a"] = last

    async def relays(self) -> list[str]:
        self._check()
        return [name for name in self.records if name != "a"]

    async def record_of(self, relay_id: str) -> bytes | None:
        self.asked += 1
        self._check()
        return self.records.get(relay_id)


class Parts:
    def __init__(self) -> None:
        self.clock, self.kept, self.log = Clock(), Kept(), Log()

    def watch(self, instance: str) -> Instances:
        return Instances(self.clock, self.kept, "a", instance, 10.0, self.log, {"version": "9.9"})

    def begin(self, watch: Instances) -> list[bool]:
        found: list[bool] = []
        Deferred.fromCoroutine(watch.begin()).addCallback(found.append)
        return found


def test_begin_tells_whether_an_earlier_process_existed() -> None:
    parts = Parts()
    first = parts.watch("one")
    assert parts.begin(first) == [False]
    assert parts.begin(parts.watch("two")) == [True]  # a crash leaves the record
    third = parts.watch("three")
    parts.begin(third)
    Deferred.fromCoroutine(third.retire())
    assert json.loads(parts.kept.records["a"]) == {"instance": "three", "stopped": True}
    assert parts.begin(parts.watch("four")) == [True]  # a stop leaves a record, too


def test_a_record_of_an_older_version_is_an_earlier_process() -> None:
    parts = Parts()
    parts.kept.records["a"] = b"4f1d0c6a9be2735d08aa11bb"
    assert parts.begin(parts.watch("one")) == [True]


def test_the_first_record_is_retried_until_it_is_written() -> None:
    parts = Parts()
    parts.kept.broken = True
    found = parts.begin(parts.watch("one"))
    parts.clock.advance(0.3)
    assert found == []
    parts.kept.broken = False
    parts.clock.advance(0.3)
    assert found == [False]


def test_two_processes_with_one_relay_id_are_logged() -> None:
    parts = Parts()
    one, two = parts.watch("one"), parts.watch("two")
    parts.begin(one)
    one.startService()
    parts.begin(two)
    two.startService()
    parts.clock.pump([10.0, 10.0])
    assert "relay_id_shared" in parts.log.names()
    one.stopService()
    two.stopService()


def test_records_of_other_relays_are_fetched_in_the_background_and_cached() -> None:
    parts = Parts()
    others = parts.watch("others")
    parts.kept.records["b"] = json.dumps({"instance": "of-b", "batches": VERSION}).encode()
    parts.kept.records["c"] = b"4f1d0c6a9be2735d08aa11bb"
    for relay_id, instance in (("b", "of-b"), ("c", None), ("nobody", None)):
        others.reads_batches(relay_id)
        assert others.reads_batches(relay_id) == instance
    assert parts.kept.asked == 3
    parts.kept.broken = True
    parts.clock.advance(RECORD_TTL)
    assert others.reads_batches("b") == "of-b"  # the last record is used while Redis is unavailable
    assert others.reads_batches("b") == "of-b"
    parts.kept.broken = False
    parts.kept.records["b"] = json.dumps({"instance": "of-b"}).encode()
    parts.clock.advance(RECORD_TTL)
    others.reads_batches("b")
    assert others.reads_batches("b") is None


def test_other_relays_are_described_for_the_operator() -> None:
    parts = Parts()
    others = parts.watch("others")
    assert others.described() == []
    parts.begin(parts.watch("one"))
    parts.kept.records["b"] = parts.kept.records["a"]  # as the watch writes a record
    parts.kept.records["c"] = json.dumps({"instance": "of-c", "version": 7, "url": "u" * 9999}).encode()
    for relay_id in ("c", "b", "node"):
        others.reads_batches(relay_id)
    parts.clock.advance(3)
    assert others.described() == [
        {"relayId": "b", "bus": "batches", "seconds": 3, "version": "9.9"},
        {"relayId": "c", "bus": "frames", "seconds": 3, "url": "u" * 256},
        {"relayId": "node", "bus": "unknown", "seconds": 3},
    ]
    parts.kept.broken = True
    parts.clock.advance(FORGOTTEN)
    assert others.described() == []


def test_relays_without_frames_are_described() -> None:
    parts = Parts()
    watch = parts.watch("one")
    parts.begin(watch)
    parts.kept.records["b"] = parts.kept.records["a"]
    parts.kept.records["stopped"] = json.dumps({"instance": "x", "stopped": True}).encode()
    watch.startService()
    assert watch.relays == ["b", "stopped"]
    watch.relays = [*watch.relays, "died"]  # without a record
    watch.described()
    assert watch.described() == [{"relayId": "b", "bus": "batches", "seconds": None, "version": "9.9"}]
    watch.stopService()


def test_the_dashboard_reads_a_bounded_number_of_records() -> None:
    parts = Parts()
    others = parts.watch("others")
    others.relays = [f"relay-{n:03}" for n in range(2000)]
    for _ in range(10):
        others.described()
    assert parts.kept.asked == MOST_DESCRIBED
    parts.clock.advance(REFRESH - 0.1)
    others.described()
    assert parts.kept.asked == MOST_DESCRIBED
    parts.clock.advance(0.1)
    others.described()
    assert parts.kept.asked == 2 * MOST_DESCRIBED
