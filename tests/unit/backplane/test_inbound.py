"""Inbound side of the bus: delivery, refused frames, failed pulls."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock

from tests.memorywire import Log
from tests.unit.backplane.parts import StubCarrier
from viewport_relay.backplane.batch import BatchVerifier
from viewport_relay.backplane.inbound import Inbound
from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, Arrival, CarrierFailed, Parcel
from viewport_relay.backplane.replay import Freshness
from viewport_relay.backplane.signing import FrameSigner, FrameVerifier
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

KEY = "a-bus-key-of-some-length"


class Incoming:
    def __init__(self) -> None:
        self.clock = Clock()
        self.carrier = StubCarrier()
        self.log = Log()
        self.counters = Counters()
        self.arrived: list[Arrival] = []
        now: Any = lambda: 1_800_000_000.0 + self.clock.seconds()  # noqa: E731
        self.signer = FrameSigner(KEY, "a", now)
        freshness = Freshness(self.clock, now, 15.0)
        self.inbound = Inbound(
            self.clock,
            self.carrier,
            FrameVerifier(KEY, "b", freshness, 1000),
            BatchVerifier(KEY, "b", "process of b", freshness, 1000),
            self.log,
            self.counters,
        )
        self.inbound.start(self.arrived.extend)

    def frame(self, text: str) -> bytes:
        payload = text.encode()
        return self.signer.sign(Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (payload,), len(payload)))


def test_frames_are_delivered_in_order_and_in_slices() -> None:
    parts = Incoming()
    parts.carrier.pulls[0].callback([parts.frame(str(number)) for number in range(600)])
    assert len(parts.arrived) == 256  # one slice; the reactor runs other events before the next
    parts.clock.pump([0, 0, 0])
    assert [a.payloads[0] for a in parts.arrived] == [str(n).encode() for n in range(600)]
    assert len(parts.carrier.pulls) == 2
    assert parts.counters.bus_pull_frames == 600


def test_invalid_frames_are_counted_and_the_others_delivered() -> None:
    parts = Incoming()
    good = parts.frame("1")
    forged = good.replace(b'"payload":"1"', b'"payload":"2"')
    parts.carrier.pulls[0].callback([forged, good, good, b"[]", 7, None])
    assert [a.payloads[0] for a in parts.arrived] == [b"1"]
    assert parts.counters.bus_pull_invalid_signature == 1
    assert parts.counters.bus_pull_replayed_signature == 1
    assert parts.counters.drops[Reason.BUS_FRAME_REFUSED] == 3
    assert parts.log.names() == ["bus_drop"] * 5


def test_own_and_misdirected_frames_are_dropped_without_a_log_entry() -> None:
    parts = Incoming()
    own = json.loads(parts.frame("1")) | {"sourceRelayId": "b"}
    others = json.loads(parts.frame("1")) | {"targetRelayId": "c"}
    parts.carrier.pulls[0].callback([own, others])
    assert parts.log.names() == []
    assert parts.counters.drops[Reason.BUS_FRAME_REFUSED] == 2


def test_after_a_long_outage_the_queue_is_read_within_a_quarter_of_a_second() -> None:
    parts = Incoming()
    for tried in range(1, 40):
        assert len(parts.carrier.pulls) == tried
        parts.carrier.pulls[-1].errback(CarrierFailed("gone"))
        parts.clock.advance(0.24)
        assert len(parts.carrier.pulls) == tried
        parts.clock.advance(0.02)
    parts.inbound.stop()
    parts.clock.advance(10)
    assert len(parts.carrier.pulls) == 40 and not parts.clock.getDelayedCalls()
