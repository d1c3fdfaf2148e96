"""Two and three relays on one Redis: peers of one session on different relays."""

from __future__ import annotations

import json

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.busframes import bus_frame
from tests.integration.backplane.fleet import Fleet, e2ee, init, response, session, until
from tests.wireframes import CHANNEL, example

pytestmark = pytest.mark.redis

NO_REDIRECT = {"RELAY_CLIENT_REDIRECT_ENABLED": "0"}


@pytest_twisted.ensureDeferred
async def test_the_presence_entry_has_the_form_of_the_wire_protocol(fleet: Fleet, redis: RedisServer) -> None:
    relay = await fleet.relay("a", RELAY_PUBLIC_WS_BASE_URL="ws://relay-a.example")
    daemon = await fleet.join(relay, "workspace-daemon", machineId="machine-1")
    await fleet.announced("a")
    entry = fleet.presence()
    updated = entry.pop("updatedAtMs")
    assert entry == {
        "relayId": "a",
        "relayWsBaseUrl": "ws://relay-a.example",
        "daemonConnected": True,
        "runtimeTargetId": fleet.target,
        "machineId": "machine-1",
    }
    assert isinstance(updated, int)
    assert 40_000 < redis.ask("PTTL", fleet.presence_key()) <= 45_000
    daemon.connection.close()
    await fleet.announced(None)


@pytest_twisted.ensureDeferred
async def test_client_on_b_and_daemon_on_a_talk_both_ways(fleet: Fleet, redis: RedisServer) -> None:
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    client, other = await fleet.join(b, "client"), await fleet.join(b, "client")
    await session(client, daemon, "s-1")
    await session(other, daemon, "s-2")
    for peer, name in ((client, "s-1"), (other, "s-2")):
        said = peer.say(e2ee(name, 1, ciphertext="äöü 🙂 \\u2028"))
        assert await daemon.hear() == said
        answered = daemon.say(e2ee(name, 1))
        assert await peer.hear() == answered
    daemon.say(example("key update", sessionId="s-2"))
    assert (await other.hear_json())["type"] == "relay_key_update_required"
    await client.quiet()


@pytest_twisted.ensureDeferred
async def test_pairing_goes_over_the_bus(fleet: Fleet, redis: RedisServer) -> None:
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    client = await fleet.join(b, "client", scope="pairing")
    said = client.say(example("offer request"))
    assert await daemon.hear() == said
    answered = daemon.say(example("offer response"))
    assert await client.hear() == answered
    daemon.say(example("offer response"))  # spent: the second one is dropped
    await client.quiet()


@pytest_twisted.ensureDeferred
async def test_order_is_kept_over_ten_thousand_frames_each_way(fleet: Fleet, redis: RedisServer) -> None:
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    client = await fleet.join(b, "client")
    await session(client, daemon)
    for number in range(1, 10_001):
        client.say(e2ee(seq=number))
        daemon.say(e2ee(seq=number))
    for peer in (daemon, client):
        heard = [(await peer.hear_json(30))["seq"] for _ in range(10_000)]
        assert heard == list(range(1, 10_001))


@pytest_twisted.ensureDeferred
async def test_order_is_kept_from_the_first_frame_on(fleet: Fleet, redis: RedisServer) -> None:
    """The client's first frames cause a look-up; frames during the look-up wait behind them."""
    _, b, daemon = await fleet.split()
    client = await fleet.join(b, "client")
    said = [client.say(init("first"))] + [client.say(e2ee("s", n)) for n in range(1, 50)]
    assert [await daemon.hear() for _ in said] == said


@pytest_twisted.ensureDeferred
async def test_a_client_is_redirected_and_its_early_frames_arrive(fleet: Fleet, redis: RedisServer) -> None:
    a = await fleet.relay("a", RELAY_PUBLIC_WS_BASE_URL="wss://relay-a.example")
    b = await fleet.relay("b")
    daemon = await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    client = await fleet.join(b, "client")
    said = client.say(init("early"))
    redirect = {
        "type": "relay_status",
        "code": "RELAY_REDIRECT",
        "message": "Workspace is assigned to a different relay instance",
        "workspaceId": fleet.workspace,
        "relayWsBaseUrl": "wss://relay-a.example",
    }
    assert await client.hear_json() == redirect
    assert await client.hear_json() == redirect | {"runtimeTargetId": fleet.target}
    assert await daemon.hear() == said
    daemon.say(response("early"))
    assert (await client.hear_json())["type"] == "relay_key_exchange_response"
    assert await fleet.metric(b, "relay_client_redirect_total") == 2
    # A client that leaves right after its frame.
    hasty = await fleet.join(b, "client")
    said = hasty.say(init("hasty"))
    hasty.connection.close()
    assert await daemon.hear() == said
    daemon.say(response("hasty", "s-h"))
    await client.quiet()


@pytest_twisted.ensureDeferred
async def test_redirect_without_a_bus(fleet: Fleet, redis: RedisServer) -> None:
    a, b = await fleet.relays("a", "b", RELAY_BUS_ENABLED="0")
    await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    client = await fleet.join(b, "client")
    client.say(init())
    codes = [(await client.hear_json())["code"] for _ in range(3)]
    assert codes == ["RELAY_REDIRECT", "RELAY_REDIRECT", "DAEMON_UNAVAILABLE"]


@pytest.mark.parametrize("url", ["http://evil.example", "ws://u:p@evil.example", "ws://evil.example/?a=1"])
@pytest_twisted.ensureDeferred
async def test_an_entry_with_a_bad_url_counts_as_no_daemon(
    fleet: Fleet, redis: RedisServer, url: str
) -> None:
    b = await fleet.relay("b")
    entry = {"relayId": "a", "relayWsBaseUrl": url, "daemonConnected": True}
    redis.ask("SET", fleet.presence_key(), json.dumps(entry))
    client = await fleet.join(b, "client", machineId="m-1")
    client.say(init())
    assert await client.hear_json() == {
        "type": "relay_status",
        "code": "DAEMON_UNAVAILABLE",
        "message": "No machine runtime is connected for this runtime target",
        "workspaceId": fleet.workspace,
        "retryable": True,
        "runtimeTargetId": fleet.target,
        "machineId": "m-1",
    }
    await client.quiet()


@pytest_twisted.ensureDeferred
async def test_session_events_off_the_bus_reach_subscribers(fleet: Fleet, redis: RedisServer) -> None:
    b = await fleet.relay("b")
    viewer = await fleet.join(b, "client", scope="session-events", sessionChannels=[CHANNEL])
    viewer.say(example("subscribe"))
    assert (await viewer.hear_json())["type"] == "viewport.session_events.subscribed/v1"
    text = json.dumps(example("session event"))
    frame = bus_frame(fleet, "daemon_to_clients", text, target_relay=None)
    redis.ask("RPUSH", "viewport:relay:queue:b", json.dumps(frame))
    assert await viewer.hear() == text


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_moves_is_closed_by_the_older_relay(fleet: Fleet, redis: RedisServer) -> None:
    a, b, c = await fleet.relays("a", "b", "c", RELAY_PRESENCE_SYNC_INTERVAL_MS="500", **NO_REDIRECT)
    first = await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    client = await fleet.join(c, "client")
    await session(client, first)
    second = await fleet.join(b, "workspace-daemon")
    await fleet.announced("b")
    closed = await first.ended()
    assert (closed.code, closed.reason) == (4008, "replaced by newer daemon")
    entry = fleet.presence()
    assert entry["relayId"] == "b"  # leaving a has not withdrawn the entry
    await until(fleet.reactor, lambda: second.closed is None, 0.1)
    await fleet.reaches(client, second, 5)  # cached presence expires within two seconds
    assert second.closed is None


@pytest_twisted.ensureDeferred
async def test_presence_of_a_killed_relay_expires(fleet: Fleet, redis: RedisServer) -> None:
    a, b = await fleet.relays(
        "a", "b", RELAY_REDIS_PRESENCE_TTL_MS="1500", RELAY_PRESENCE_SYNC_INTERVAL_MS="500", **NO_REDIRECT
    )
    daemon = await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    client = await fleet.join(b, "client")
    await session(client, daemon)
    a.process.kill()
    await daemon.ended()
    await fleet.announced(None)
    again = await fleet.join(b, "workspace-daemon")
    await fleet.announced("b")
    await session(client, again, "session-2")


@pytest_twisted.ensureDeferred
async def test_requests_and_sessions_of_other_relays_are_kept_apart(fleet: Fleet, redis: RedisServer) -> None:
    a, b, daemon = await fleet.split(**NO_REDIRECT)
    here, there_ = await fleet.join(a, "client"), await fleet.join(b, "client")
    await session(here, daemon, "s-here")
    there_.say(e2ee("s-here", 7))  # a session of the other client
    here.say(init("same"))
    await daemon.hear()
    there_.say(init("same"))  # a request id of the other client
    await daemon.quiet()
    dropped = await fleet.metric(a, 'relay_frames_dropped_total{reason="SESSION_NOT_OWNED"}')
    conflicts = await fleet.metric(a, 'relay_frames_dropped_total{reason="REQUEST_ID_CONFLICT"}')
    assert (dropped, conflicts) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_rates_and_profiles_hold_for_bus_frames(fleet: Fleet, redis: RedisServer) -> None:
    a = await fleet.relay("a", RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE="2", **NO_REDIRECT)
    b = await fleet.relay("b", RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE="3", **NO_REDIRECT)
    daemon = await fleet.join(a, "workspace-daemon", e2eeProfile="noise-ik")
    await fleet.announced("a")
    client = await fleet.join(b, "client", e2eeProfile=..., answer={"e2eeProfile": ...})
    client.say(
        e2ee("s", 1, profile="noise-ikpsk2")
    )  # not the profile of the daemon's grant: dropped, and not counted
    await session(client, daemon)  # the first
    client.say(e2ee(seq=1))
    await daemon.hear()
    client.say(e2ee(seq=2))
    await daemon.quiet()
    for number in range(1, 4):
        daemon.say(e2ee(seq=number))
    assert [(await client.hear_json())["seq"] for _ in range(2)] == [1, 2]
    await client.quiet()
    assert await fleet.metric(a, 'relay_frames_dropped_total{reason="CLIENT_FRAME_PROFILE_MISMATCH"}') == 1
    assert await fleet.metric(a, 'relay_frames_dropped_total{reason="RUNTIME_RATE_LIMIT_EXCEEDED"}') == 1
    assert await fleet.metric(b, 'relay_frames_dropped_total{reason="DAEMON_RATE_LIMIT_EXCEEDED"}') == 1


@pytest_twisted.ensureDeferred
async def test_a_relay_that_stops_withdraws_its_daemons(fleet: Fleet, redis: RedisServer) -> None:
    a = await fleet.relay("a")
    await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    assert await deferToThread(a.stop) == 0
    assert fleet.presence() is None


@pytest_twisted.ensureDeferred
async def test_each_frame_for_a_killed_relay_is_counted_and_answered(
    fleet: Fleet, redis: RedisServer
) -> None:
    """Its presence entry stands meanwhile."""
    a, b, daemon = await fleet.split(**NO_REDIRECT)
    client = await fleet.join(b, "client")
    await session(client, daemon)
    a.process.kill()
    await daemon.ended()
    # A process that dies may close the daemon's connection before those to Redis, which then hands it one frame more.
    await deferToThread(a.process.wait, 10)
    for number in range(1, 41):
        client.say(e2ee(seq=number))
        await deferLater(fleet.reactor, 0.1)
    for _ in range(40):
        assert (await client.hear_json(3.0))["code"] == "DAEMON_UNAVAILABLE"
    await client.quiet()
    assert fleet.presence() is not None
    refused, unread = [
        await fleet.metric(b, f"relay_bus_{name}_total") for name in ("publish_failed", "queue_unread")
    ]
    assert refused + unread == 40 and unread >= 20
    assert redis.ask("LLEN", "viewport:relay:queue:a") == 0
    messages = [entry["message"] for entry in await fleet.logs(b) if entry["event"] == "bus_queue_unread"]
    assert messages == ["the relay a does not read its queue"]
    await fleet.join(b, "workspace-daemon")  # the daemon reconnects to another relay: nothing prevents it
    await fleet.announced("b")
