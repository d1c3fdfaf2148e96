"""Bus frames of an attacker with access to Redis have no effect and are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.busframes import bus_frame, signed
from tests.integration.backplane.fleet import Fleet, e2ee, init

pytestmark = pytest.mark.redis

Frame = dict[str, Any]


def without(frame: Frame, *names: str) -> Frame:
    return {name: value for name, value in frame.items() if name not in names}


def good(fleet: Fleet) -> Frame:
    return bus_frame(fleet, "client_to_daemon", json.dumps(init("over-the-bus")))


INVALID = "relay_bus_pull_invalid_signature_total"
STALE = "relay_bus_pull_stale_signature_total"
REFUSED = 'relay_frames_dropped_total{reason="BUS_FRAME_REFUSED"}'

CASES: dict[str, tuple[str, Callable[[Fleet], Frame | str]]] = {
    "another key": (INVALID, lambda f: signed(good(f), "another-key-0123456789abcdef")),
    "altered payload": (INVALID, lambda f: {**good(f), "payload": json.dumps(init("altered"))}),
    "altered direction": (INVALID, lambda f: {**good(f), "direction": "daemon_to_clients"}),
    "altered target": (INVALID, lambda f: {**good(f), "targetRelayId": None}),
    "altered time": (INVALID, lambda f: {**good(f), "issuedAtMs": good(f)["issuedAtMs"] + 1}),
    "no signature": (INVALID, lambda f: without(good(f), "signature")),
    "a number as signature": (INVALID, lambda f: {**good(f), "signature": 5}),
    "a signature that is not ASCII": (INVALID, lambda f: {**good(f), "signature": "ä" * 43}),
    "no time": (INVALID, lambda f: without(good(f), "issuedAtMs")),
    "a time that is text": (INVALID, lambda f: {**good(f), "issuedAtMs": str(good(f)["issuedAtMs"])}),
    "a time that is no integer": (INVALID, lambda f: {**good(f), "issuedAtMs": 1.5}),
    "too old": (STALE, lambda f: bus_frame(f, "client_to_daemon", json.dumps(init()), age=16)),
    "from the future": (STALE, lambda f: bus_frame(f, "client_to_daemon", json.dumps(init()), age=-16)),
    "our own": (REFUSED, lambda f: bus_frame(f, "client_to_daemon", json.dumps(init()), source="b")),
    "for another relay": (
        REFUSED,
        lambda f: bus_frame(f, "client_to_daemon", json.dumps(init()), target_relay="c"),
    ),
    "no target": (REFUSED, lambda f: signed({**good(f), "runtimeTargetId": ""})),
    "no such direction": (REFUSED, lambda f: signed({**good(f), "direction": "sideways"})),
    "a direction that is a list": (REFUSED, lambda f: {**good(f), "direction": []}),
    "payload too large": (
        REFUSED,
        lambda f: bus_frame(f, "client_to_daemon", json.dumps(e2ee(ciphertext="x" * 1_048_576))),
    ),
    "not JSON": (REFUSED, lambda f: "{not json"),
    "not an object": (REFUSED, lambda f: "[1,2]"),
    "deep": (REFUSED, lambda f: "[" * 100_000),
    "not UTF-8": (REFUSED, lambda f: b"\xff\xfe".decode("latin-1")),
    "no frame of a client's": (
        'relay_frames_dropped_total{reason="INVALID_FRAME"}',
        lambda f: bus_frame(f, "client_to_daemon", "{}"),
    ),
    "a response without a request": (
        'relay_frames_dropped_total{reason="NO_OWNER"}',
        lambda f: bus_frame(f, "daemon_to_clients", json.dumps(e2ee())),
    ),
}


@pytest_twisted.ensureDeferred
async def test_bad_frames_are_refused_and_counted(fleet: Fleet, redis: RedisServer) -> None:
    b = await fleet.relay("b")
    daemon = await fleet.join(b, "workspace-daemon")
    for name, (metric, make) in CASES.items():
        before = await fleet.metric(b, metric)
        frame = make(fleet)
        redis.ask("RPUSH", "viewport:relay:queue:b", frame if isinstance(frame, str) else json.dumps(frame))
        # A valid frame follows: when it arrives, the bad frame has been processed.
        marker = bus_frame(fleet, "client_to_daemon", json.dumps(init(f"behind {name}")))
        redis.ask("RPUSH", "viewport:relay:queue:b", json.dumps(marker))
        assert (await daemon.hear_json())["requestId"] == f"behind {name}", name
        assert await fleet.metric(b, metric) == before + 1, name
    reasons = {entry.get("reason") for entry in await fleet.logs(b) if entry["event"] == "bus_drop"}
    assert {"BUS_SIGNATURE_INVALID", "BUS_SIGNATURE_STALE", "BUS_FRAME_REFUSED", "INVALID_FRAME"} <= reasons
    assert "over-the-bus" not in b.output()  # no payload in the log
    await daemon.quiet()


@pytest_twisted.ensureDeferred
async def test_a_replayed_frame_is_refused(fleet: Fleet, redis: RedisServer) -> None:
    b = await fleet.relay("b")
    daemon = await fleet.join(b, "workspace-daemon")
    frames = [bus_frame(fleet, "client_to_daemon", json.dumps(e2ee("s", n)), age=n) for n in range(1, 6)]
    for frame in [*frames, *frames]:  # the older frames follow: reordering is not a replay
        redis.ask("RPUSH", "viewport:relay:queue:b", json.dumps(frame))
    assert [(await daemon.hear_json())["seq"] for _ in range(5)] == [1, 2, 3, 4, 5]
    await daemon.quiet()
    assert await fleet.metric(b, "relay_bus_pull_replayed_signature_total") == 5


@pytest_twisted.ensureDeferred
async def test_a_full_daemon_queue_drops_bus_frames(fleet: Fleet, redis: RedisServer) -> None:
    b = await fleet.relay("b", RELAY_MAX_PENDING_BYTES="65536")
    daemon = await fleet.join(b, "workspace-daemon")
    transport = daemon.connection._protocol.transport
    transport.pauseProducing()  # stop reading
    for number in range(1, 401):
        text = json.dumps(e2ee("s", number, ciphertext="x" * 60_000))
        frame = bus_frame(fleet, "client_to_daemon", text)
        redis.ask("RPUSH", "viewport:relay:queue:b", json.dumps(frame))
    pulled = "relay_bus_pull_frames_total"
    for _ in range(200):
        if await fleet.metric(b, pulled) >= 400:
            break
    dropped = await fleet.metric(b, 'relay_frames_dropped_total{reason="BUFFER_OVERFLOW"}')
    assert dropped > 0
    transport.resumeProducing()
    heard = [(await daemon.hear_json())["seq"] for _ in range(400 - int(dropped))]
    assert heard == sorted(heard)
    assert daemon.closed is None
