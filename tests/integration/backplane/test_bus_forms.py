"""Single and batched bus frames between real relays, replays across a restart, and signed presence."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.busframes import bus_frame
from tests.integration.backplane.fleet import Fleet, e2ee, init, session, until
from viewport_relay.backplane.batch import MAGIC, VERSION, BatchSigner
from viewport_relay.backplane.interface import BEGINNING, CLIENT_TO_DAEMON, Parcel
from viewport_relay.backplane.rediscommands import Commands
from viewport_relay.backplane.unread import mark_of

pytestmark = pytest.mark.redis

NO_REDIRECT = {"RELAY_CLIENT_REDIRECT_ENABLED": "0", "RELAY_PRESENCE_SYNC_INTERVAL_MS": "500"}
QUEUE = "viewport:relay:queue:"


def names_elsewhere(fleet: Fleet, redis: RedisServer, name: str) -> None:
    """Write presence of the target `name` at a relay of that name, which does not run."""
    entry = {"relayId": name, "relayWsBaseUrl": "ws://elsewhere.example", "daemonConnected": True}
    redis.ask("SET", fleet.presence_key(name), json.dumps(entry))


def forms(redis: RedisServer, relay_id: str) -> list[bool]:
    """For each element of a relay's queue, oldest first: whether it is a batch."""
    return [element.startswith(MAGIC) for element in redis.ask("LRANGE", QUEUE + relay_id, 0, -1)]


@pytest_twisted.ensureDeferred
async def test_a_batch_is_sent_only_to_a_relay_that_announces_it(fleet: Fleet, redis: RedisServer) -> None:
    b = await fleet.relay("b", **NO_REDIRECT)
    for name, record, batches in (
        ("none", None, False),
        ("ours", json.dumps({"instance": "x", "batches": VERSION}), True),
        ("v0.1", "4f1d0c6a9be2735d08aa11bb", False),
    ):
        names_elsewhere(fleet, redis, name)
        if record is not None:
            redis.ask("SET", f"viewport:relay:instance:{name}", record)
        client = await fleet.join(b, "client", target=name)
        client.say(e2ee("s", 1))  # looks up presence and the record, and waits for the first only
        await until(fleet.reactor, lambda name=name: forms(redis, name) != [])  # type: ignore[misc]
        await deferLater(fleet.reactor, 0.2)
        client.say(e2ee("s", 2))
        await until(fleet.reactor, lambda name=name: len(forms(redis, name)) == 2)  # type: ignore[misc]
        assert forms(redis, name)[1] == batches, name
    frame = json.loads(redis.ask("LRANGE", QUEUE + "none", 0, -1)[0])
    assert set(frame) == {
        "workspaceId", "runtimeTargetId", "sourceRelayId", "targetRelayId", "direction", "payload", "issuedAtMs",
        "signature",
    }  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_order_and_bytes_hold_while_the_form_changes(fleet: Fleet, redis: RedisServer) -> None:
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    client = await fleet.join(b, "client")
    await session(client, daemon)
    said = [client.say(e2ee(seq=number, ciphertext="äöü 🙂 \\u2028")) for number in range(1, 2001)]
    assert [await daemon.hear() for _ in said] == said
    answered = [daemon.say(e2ee(seq=number)) for number in range(1, 2001)]
    assert [await client.hear() for _ in answered] == answered
    record = json.loads(redis.ask("GET", "viewport:relay:instance:a"))
    assert record["batches"] == VERSION and isinstance(record["instance"], str)


@pytest_twisted.ensureDeferred
async def test_batches_that_no_socket_takes_at_once_arrive_whole(fleet: Fleet) -> None:
    _, b, daemon = await fleet.split(**NO_REDIRECT)
    client = await fleet.join(b, "client")
    await session(client, daemon)
    # 3.6 MB at a time: what would meet a full queue of the daemon is dropped.
    for numbers in (range(1, 5), range(5, 9)):
        said = [client.say(e2ee(seq=number, ciphertext=str(number) * 900_000)) for number in numbers]
        assert [await daemon.hear() for _ in said] == said


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest_twisted.ensureDeferred
async def test_frames_read_before_a_restart_are_refused_after_it(
    fleet: Fleet, redis: RedisServer, how: str
) -> None:
    # Where the machine is busy a restart takes longer than the usual 15 s, for which a frame is fresh.
    settings = NO_REDIRECT | {"RELAY_BUS_SIGNATURE_MAX_SKEW_MS": "60000"}
    relay = await fleet.relay("a", **settings)
    daemon = await fleet.join(relay, "workspace-daemon")
    frame = json.dumps(bus_frame(fleet, "client_to_daemon", json.dumps(init("once")), target_relay="a"))
    queue = QUEUE + "a"
    redis.ask("RPUSH", queue, frame)
    assert (await daemon.hear_json())["requestId"] == "once"
    if how == "kill":
        await deferToThread(relay.process.kill)
    else:
        await deferToThread(relay.stop)
    await daemon.ended()
    again = await fleet.relay("a", **settings)
    daemon = await fleet.join(again, "workspace-daemon")
    redis.ask("RPUSH", queue, frame)
    new = bus_frame(fleet, "client_to_daemon", json.dumps(init("new")), target_relay="a")
    redis.ask("RPUSH", queue, json.dumps(new))
    assert (await daemon.hear_json())["requestId"] == "new"
    await daemon.quiet()
    assert await fleet.metric(again, "relay_bus_pull_stale_signature_total") == 1
    assert not [e for e in await fleet.logs(again) if e["event"] == "bus_drop"]  # usual after a restart


@pytest_twisted.ensureDeferred
async def test_the_state_folder_names_the_previous_process_when_redis_does_not(
    fleet: Fleet, redis: RedisServer, tmp_path: Any
) -> None:
    settings = NO_REDIRECT | {"RELAY_STATE_DIR": str(tmp_path)}
    relay = await fleet.relay("a", **settings)
    frame = json.dumps(bus_frame(fleet, "client_to_daemon", json.dumps(init("once")), target_relay="a"))
    await deferToThread(relay.process.kill)
    redis.ask("FLUSHALL")
    again = await fleet.relay("a", **settings)
    await fleet.join(again, "workspace-daemon")
    redis.ask("RPUSH", QUEUE + "a", frame)
    for _ in range(100):
        if await fleet.metric(again, "relay_bus_pull_stale_signature_total"):
            return
        await deferLater(fleet.reactor, 0.05)
    raise AssertionError("it was accepted")


async def code_of_a_frame(fleet: Fleet, relay: Any) -> str | None:
    """Code of the relay's immediate reply to a frame for a remote daemon, or None."""
    client = await fleet.join(relay, "client")
    client.say(init())
    await deferLater(fleet.reactor, 0.5)
    heard = client.heard_so_far()
    return json.loads(heard[0])["code"] if heard else None


@pytest_twisted.ensureDeferred
async def test_presence_is_signed_beside_the_entry(fleet: Fleet, redis: RedisServer) -> None:
    a = await fleet.relay("a", **NO_REDIRECT)
    open_minded = await fleet.relay("b", **NO_REDIRECT)
    strict = await fleet.relay("c", RELAY_PRESENCE_SIGNATURES="require", **NO_REDIRECT)
    daemon = await fleet.join(a, "workspace-daemon")
    await fleet.announced("a")
    signature = f"viewport:relay:signature:{fleet.workspace}:{fleet.target}"
    assert 40_000 < redis.ask("PTTL", signature) <= 45_000
    assert [await code_of_a_frame(fleet, relay) for relay in (open_minded, strict)] == [None, None]
    assert await fleet.metric(strict, "relay_presence_unsigned_total") == 0
    daemon.connection.close()
    await until(fleet.reactor, lambda: redis.ask("EXISTS", signature, fleet.presence_key()) == 0)

    names_elsewhere(fleet, redis, fleet.target)  # an unsigned entry, as older relays write it
    await deferLater(fleet.reactor, 2.2)  # looked up entries expire
    assert await code_of_a_frame(fleet, open_minded) is None
    assert await fleet.metric(open_minded, "relay_presence_unsigned_total") >= 1
    assert await code_of_a_frame(fleet, strict) == "DAEMON_UNAVAILABLE"
    redis.ask("SET", signature, "forged")
    await deferLater(fleet.reactor, 0.5)
    assert await code_of_a_frame(fleet, strict) == "DAEMON_UNAVAILABLE"


def test_each_frame_of_a_trimmed_batch_is_counted(redis: RedisServer) -> None:
    parcels = [Parcel(("w", "t"), CLIENT_TO_DAEMON, "elsewhere", None, (b"{}",), 2)] * 7
    batch = bytes(BatchSigner("a-bus-key-of-some-length", "b", time.time).sign(parcels, "x"))
    commands = Commands("viewport:relay", "b", 45_000, queue_max=2)
    for element, answer in (
        (batch, [1, 0]), (b'{"one":"frame"}', [2, 0]), (batch, [2, 7]), (batch, [2, 1]), (batch, [2, 7]),
    ):  # fmt: skip
        assert redis.ask(*commands.push_and_trim("elsewhere", [element])) == answer
    assert forms(redis, "elsewhere") == [True, True]
    assert 0 < redis.ask("PTTL", QUEUE + "elsewhere") <= 120_000


def test_elements_are_taken_back_from_among_others(redis: RedisServer) -> None:
    """In a queue with elements of other relays, which keep their order."""
    parcels = [Parcel(("w", "t"), CLIENT_TO_DAEMON, "elsewhere", None, (b"{}",), 2)]
    signer = BatchSigner("a-bus-key-of-some-length", "b", time.time)
    batches = [bytes(signer.sign(parcels, "x")) for _ in range(3)]
    elements = [b"{1}", batches[0], b"{2}", batches[1], batches[2], b"{3}"]
    commands = Commands("viewport:relay", "b", 45_000, queue_max=100)
    for command in commands.push("elsewhere", elements):
        redis.ask(*command)
    ours = [mark_of(element) for element in (batches[0], b"{2}", batches[2], b"read already")]
    assert redis.ask(*commands.take_back("elsewhere", ours, BEGINNING))[:2] == [ours[:3], -1]
    assert redis.ask(*commands.pull(0.1, 9)[1]) is None  # relay b's own queue
    queue = QUEUE + "elsewhere"
    assert redis.ask("LRANGE", queue, 0, -1) == [b"{1}", batches[1], b"{3}"]
    assert 0 < redis.ask("PTTL", queue) <= 120_000
    assert redis.ask(*commands.take_back("nowhere", ours, BEGINNING))[:2] == [[], -1]
    assert redis.ask("EXISTS", QUEUE + "nowhere") == 0


@pytest.mark.parametrize(
    ("meanwhile", "taken"),
    [
        ((), 2500),
        (("LPOP", 700), 2500),
        (("RPUSH", "{10000}"), 2500),
        (("LREM", 1, "{1}"), 2500),
        (("LTRIM", 1, 0), 375),
    ],
    ids=["nothing", "read", "pushed", "another relay takes back", "gone"],
)
def test_a_full_queue_is_looked_through_in_parts(
    redis: RedisServer, meanwhile: tuple[str | int, ...], taken: int
) -> None:
    """Nothing is missed where the queue changes between two parts."""
    commands, queue = Commands("viewport:relay", "b", 45_000, queue_max=10_000), QUEUE + "elsewhere"
    elements = [b"{%d}" % number for number in range(10_000)]
    redis.ask("RPUSH", queue, *elements)
    ours = [element for number, element in enumerate(elements) if number % 4 == 3]
    marks = [mark_of(element) for element in ours]
    found, place, parts = list[bytes](), BEGINNING, 0
    while place[0] >= 0:
        some, at, before = redis.ask(*commands.take_back("elsewhere", marks, place))
        assert len(some) <= 125 and at <= place[0] + 500
        found, place, parts = found + some, (at, before), parts + 1
        if parts == 3 and meanwhile:
            command, *words = meanwhile
            redis.ask(command, queue, *words)
    assert len(found) == taken and not set(found) - set(marks)
    left = [int(element[1:-1]) for element in redis.ask("LRANGE", queue, 0, -1)]
    assert left == sorted(left) and not {number % 4 for number in left} & {3}
