"""Relays that find each other through the platform's HTTP endpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.integration.backplane.busframes import bus_frame
from tests.integration.backplane.fleet import Fleet, e2ee, init, response, session, until
from viewport_relay.devplatform.rules import Rule

NO_REDIRECT = {"RELAY_CLIENT_REDIRECT_ENABLED": "0"}
PREFIX = "/api/runtime/internal/relay/"


def last(record: Any) -> Any:
    return json.loads(record[-1].raw)


@pytest_twisted.ensureDeferred
async def test_requests_to_the_platform(http_fleet: Fleet) -> None:
    fleet = http_fleet
    settings = {"RELAY_PUBLIC_WS_BASE_URL": "ws://a.example", "RELAY_PRESENCE_SYNC_INTERVAL_MS": "400"}
    a = await fleet.relay("a", **settings, **NO_REDIRECT)
    records = fleet.platform.records
    await deferLater(fleet.reactor, 0.6)
    assert records.pulls.total == 0  # no peer is connected here
    daemon = await fleet.join(a, "workspace-daemon", machineId="m-1")
    await fleet.announced("a")
    report = {
        "workspaceId": fleet.workspace,
        "runtimeTargetId": fleet.target,
        "machineId": "m-1",
        "relayId": "a",
        "relayWsBaseUrl": "ws://a.example",
        "daemonConnected": True,
    }
    assert last(records.presence_upserts) == report
    assert records.presence_upserts[-1].headers["x-relay-internal-key"] == fleet.platform.internal_key
    await until(fleet.reactor, lambda: records.presence_upserts.total >= 3)  # renewed repeatedly
    await until(fleet.reactor, lambda: records.pulls.total >= 2)
    assert last(records.pulls) == {"relayId": "a", "sinceId": 0, "limit": 200, "waitMs": 1000}
    daemon.connection.close()
    await fleet.announced(None)
    assert last(records.presence_upserts) == report | {"daemonConnected": False}
    await deferLater(fleet.reactor, 1.3)
    pulls = records.pulls.total
    await deferLater(fleet.reactor, 0.6)
    assert records.pulls.total == pulls


@pytest_twisted.ensureDeferred
async def test_client_on_b_and_daemon_on_a_talk_in_order(http_fleet: Fleet) -> None:
    fleet = http_fleet
    a, b = await fleet.relays("a", "b", **NO_REDIRECT)
    daemon = await fleet.join(a, "workspace-daemon", machineId="m-d")
    await fleet.announced("a")
    client = await fleet.join(b, "client", machineId="m-c")
    await session(client, daemon)
    published = last(fleet.platform.records.published)
    assert set(published) == {
        "workspaceId", "runtimeTargetId", "machineId", "sourceRelayId", "targetRelayId", "direction", "payload",
        "issuedAtMs", "signature",
    }  # fmt: skip
    assert (published["sourceRelayId"], published["targetRelayId"]) == ("a", "b")
    assert (published["direction"], published["machineId"]) == ("daemon_to_clients", "m-d")
    for number in range(1, 201):
        client.say(e2ee(seq=number))
        daemon.say(e2ee(seq=number))
    for peer in (daemon, client):
        assert [(await peer.hear_json(30))["seq"] for _ in range(200)] == list(range(1, 201))


@pytest_twisted.ensureDeferred
async def test_a_frame_for_any_relay_is_taken_by_the_one_with_the_daemon(http_fleet: Fleet) -> None:
    fleet = http_fleet
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    fleet.platform.bus.publish(bus_frame(fleet, "client_to_daemon", json.dumps(init("r")), target_relay=None))
    assert (await daemon.hear_json())["requestId"] == "r"
    daemon.say(response("r"))
    await until(fleet.reactor, lambda: fleet.platform.records.published.total > 0)
    assert last(fleet.platform.records.published)["targetRelayId"] == "elsewhere"
    assert b.process.poll() is None


@pytest_twisted.ensureDeferred
async def test_a_local_daemon_needs_no_request(http_fleet: Fleet) -> None:
    fleet = http_fleet
    a = await fleet.relay("a")
    daemon = await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    before = fleet.platform.records.presence_resolves.total
    client = await fleet.join(a, "client")
    await session(client, daemon)
    assert fleet.platform.records.presence_resolves.total == before


@pytest_twisted.ensureDeferred
async def test_a_look_up_is_cached_for_two_seconds(http_fleet: Fleet) -> None:
    fleet = http_fleet
    b = await fleet.relay("b")
    fleet.platform.presence.announce(fleet.workspace, fleet.target, "a", "ws://a.example")
    before = fleet.platform.records.presence_resolves.total
    client = await fleet.join(b, "client")
    for number in range(10):
        client.say(e2ee("s", number + 1))
        await deferLater(fleet.reactor, 0.05)
    assert fleet.platform.records.presence_resolves.total == before + 1
    codes = [json.loads(text)["code"] for text in client.heard_so_far()]
    assert codes == ["RELAY_REDIRECT"] * 11
    published = [json.loads(call.raw)["payload"] for call in fleet.platform.records.published]
    assert [json.loads(payload)["seq"] for payload in published] == list(range(1, 11))


@pytest_twisted.ensureDeferred
async def test_a_slow_look_up_keeps_the_order(http_fleet: Fleet) -> None:
    fleet = http_fleet
    b = await fleet.relay("b", **NO_REDIRECT)
    fleet.platform.rules[PREFIX + "presence/resolve"] = Rule(delay=0.5)
    fleet.platform.presence.announce(fleet.workspace, fleet.target, "a", "ws://a.example")
    client = await fleet.join(b, "client")
    for number in range(1, 301):
        client.say(e2ee("s", number))
    client.say("{not a frame")  # the relay answers this frame itself, but after the frames before
    assert (await client.hear_json())["code"] == "INVALID_FRAME"
    await until(fleet.reactor, lambda: fleet.platform.records.published.total == 300)
    published = [json.loads(call.raw)["payload"] for call in fleet.platform.records.published]
    assert [json.loads(payload)["seq"] for payload in published] == list(range(1, 301))


@pytest_twisted.ensureDeferred
async def test_a_failed_publish_is_reported_to_the_client(http_fleet: Fleet) -> None:
    fleet = http_fleet
    b = await fleet.relay("b")
    fleet.platform.rules[PREFIX + "bus/publish"] = Rule(status=400)
    fleet.platform.presence.announce(fleet.workspace, fleet.target, "a", "ws://a.example")
    client = await fleet.join(b, "client")
    client.say(init())
    codes = [(await client.hear_json())["code"] for _ in range(3)]
    assert codes == ["RELAY_REDIRECT", "RELAY_REDIRECT", "DAEMON_UNAVAILABLE"]
    assert await fleet.metric(b, "relay_bus_publish_failed_total") == 1
    assert await fleet.ready(b) == {"ok": True}  # one refused frame is not an outage


@pytest_twisted.ensureDeferred
async def test_an_outage_of_the_platform(http_fleet: Fleet) -> None:
    fleet = http_fleet
    a, b = await fleet.relays("a", "b", RELAY_PRESENCE_SYNC_INTERVAL_MS="400", **NO_REDIRECT)
    daemon, local = await fleet.join(a, "workspace-daemon"), await fleet.join(a, "client")
    await fleet.announced("a")
    remote = await fleet.join(b, "client")
    await session(local, daemon, "s-local")
    await session(remote, daemon, "s-remote")
    await fleet.platform.down()
    down = {"ok": True, "reason": "BACKPLANE_UNREACHABLE"}
    await fleet.until_ready(a, down)
    await fleet.until_ready(b, down)
    said = local.say(e2ee("s-local", 1))
    assert await daemon.hear() == said
    remote.say(e2ee("s-remote", 1))
    assert (await remote.hear_json(1))["code"] == "DAEMON_UNAVAILABLE"
    # The platform loses all records in between.
    fleet.platform.presence.withdraw(fleet.workspace, fleet.target, "a")
    fleet.platform.up()
    await fleet.until_ready(a, {"ok": True})
    await fleet.until_ready(b, {"ok": True})
    await fleet.announced("a")
    await deferLater(fleet.reactor, 0.4)
    said = remote.say(e2ee("s-remote", 2))
    assert await daemon.hear() == said
    events = [entry["event"] for entry in await fleet.logs(b)]
    assert (events.count("backplane_unreachable"), events.count("backplane_recovered")) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_moved_daemon_is_closed(http_fleet: Fleet) -> None:
    fleet = http_fleet
    a, b = await fleet.relays("a", "b", RELAY_PRESENCE_SYNC_INTERVAL_MS="400", **NO_REDIRECT)
    first = await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    await fleet.join(b, "workspace-daemon")
    closed = await first.ended()
    assert (closed.code, closed.reason) == (4008, "replaced by newer daemon")
    await deferLater(fleet.reactor, 1.0)
    await fleet.announced("b")


@pytest_twisted.ensureDeferred
async def test_frames_above_the_response_limit_arrive(http_fleet: Fleet) -> None:
    """Frames may have 1 MiB, responses 256 KiB: a pull returns fewer frames, and a single one may be larger."""
    fleet = http_fleet
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    client = await fleet.join(b, "client")
    said = [
        client.say(e2ee("s", n, ciphertext="x" * size)) for n, size in ((1, 900_000), (2, 1000), (3, 700_000))
    ]
    for text in said:
        assert await daemon.hear() == text


REFUSED = {"ok": True, "reason": "BACKPLANE_REFUSED"}
REFUSALS = {
    "too many requests": (Rule(status=429, body={"ok": False, "error": "slow down"}), "HTTP 429: slow down"),
    "ok false": (Rule(status=200, body={"ok": False, "reason": "RELAY_UNKNOWN"}), "HTTP 200: RELAY_UNKNOWN"),
    "bad request": (Rule(status=400, body={"ok": False}), "HTTP 400"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest_twisted.ensureDeferred
async def test_a_refused_pull_is_logged(http_fleet: Fleet, name: str) -> None:
    fleet = http_fleet
    rule, words = REFUSALS[name]
    a = await fleet.relay("a", **NO_REDIRECT)
    fleet.platform.rules[PREFIX + "bus/pull"] = rule
    assert await fleet.ready(a) == {"ok": True}
    await fleet.join(a, "workspace-daemon")
    await fleet.until_ready(a, REFUSED)
    asked = fleet.platform.records.pulls.total
    await deferLater(fleet.reactor, 2.0)
    assert fleet.platform.records.pulls.total - asked <= 4  # less and less often
    told = [e for e in await fleet.logs(a) if e["event"] == "backplane_refused"]
    assert len(told) == 1
    assert (
        told[0]["details"]["detail"]
        == f"the platform at 127.0.0.1:{fleet.platform.port} refuses bus/pull with {words}"
    )
    assert await fleet.metric(a, "relay_backplane_up") == 0
    assert await fleet.metric(a, "relay_backplane_refused_total") >= 1
    del fleet.platform.rules[PREFIX + "bus/pull"]
    await fleet.until_ready(a, {"ok": True})
    assert [e["event"] for e in await fleet.logs(a)].count("backplane_recovered") == 1


@pytest_twisted.ensureDeferred
async def test_frames_that_come_again_and_again_are_not_pulled_without_a_pause(http_fleet: Fleet) -> None:
    """A platform that ignores sinceId, or answers garbage, kept the relay busy: each answer was followed by the next question."""
    fleet = http_fleet
    a = await fleet.relay("a", RELAY_BUS_PULL_WAIT_MS="0", **NO_REDIRECT)
    fleet.platform.rules[PREFIX + "bus/pull"] = Rule(body={"ok": True, "frames": [{"id": 7}, {}, None, "x"]})
    await fleet.join(a, "workspace-daemon")
    await until(fleet.reactor, lambda: fleet.platform.records.pulls.total >= 3)
    asked = fleet.platform.records.pulls.total
    await deferLater(fleet.reactor, 1.0)
    assert fleet.platform.records.pulls.total - asked <= 20  # one each RELAY_BUS_POLL_INTERVAL_MS


@pytest_twisted.ensureDeferred
async def test_an_outage_ends_without_a_bus_or_a_probe(http_fleet: Fleet) -> None:
    fleet = http_fleet
    a = await fleet.relay("a", RELAY_BUS_ENABLED="0", RELAY_PRESENCE_SYNC_INTERVAL_MS="400", **NO_REDIRECT)
    await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    await fleet.platform.down()
    await fleet.until_ready(a, {"ok": True, "reason": "BACKPLANE_UNREACHABLE"})
    fleet.platform.up()
    await fleet.until_ready(a, {"ok": True})
    asked = {json.loads(call.raw)["workspaceId"] for call in fleet.platform.records.presence_resolves}
    assert asked == {fleet.workspace}
