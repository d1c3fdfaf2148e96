"""Back-pressure on a link: records are numbered, so a record out of order ends the link."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.task import deferLater

from tests.integration.noise.conftest import CLIENT, DAEMON, Relay, World, eventually
from tests.integration.noise.linkpeers import reactor
from tests.memorywire import BINARY, masked_frame
from tests.unit.noise.peers import SECRET, b64
from tests.wireframes import encoded
from viewport_relay.noise.policy import Pattern
from viewport_relay.peer.upgrade import Closed
from viewport_relay.wire.intake import PATIENCE

PLAIN = None
IK, IKPSK2 = Pattern.IK, Pattern.IKPSK2


def numbered(sender: str, seq: int, size: int) -> bytes:
    return encoded("e2ee", sessionId=sender, seq=seq, ciphertext="x" * size)


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds, lambda: None)


@pytest.mark.parametrize("pattern", Pattern, ids=lambda pattern: pattern.label)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_many_clients_feed_a_daemon_that_reads_slowly(
    world: World, relay: Relay, pattern: Pattern
) -> None:
    """Lanes are served in turn, with pings between, and all records decrypt in the order of arrival."""
    workspace = world.workspace(pairing_secret=b64(SECRET))
    daemon = await world.join(relay, DAEMON, workspace, pattern)
    clients = [await world.join(relay, CLIENT, workspace, way) for way in (PLAIN, IK, IKPSK2, PLAIN, IK)]
    each, sizes = 64, (60_000, 100, 70_000, 64_000)
    reading: Any = daemon.raw.transport
    reading.pauseProducing()
    for seq in range(1, each + 1):
        for number, client in enumerate(clients):
            client.send(numbered(f"s-{number}", seq, sizes[seq % len(sizes)]))

    async def held_back() -> bool:
        return await relay.count("relay_peers_paused") >= len(clients)

    await eventually(held_back)
    untyped: Any = daemon.raw
    for number in range(5):
        untyped.sendPing(b"%d" % number)
        have = len(daemon.raw.messages)
        reading.resumeProducing()
        await daemon.raw.until(lambda have=have: len(daemon.raw.messages) >= have + 10)
        reading.pauseProducing()
        await pause(0.01)
    reading.resumeProducing()
    frames = [json.loads(frame) for frame in await daemon.hears(each * len(clients))]
    for number in range(len(clients)):
        assert [f["seq"] for f in frames if f["sessionId"] == f"s-{number}"] == list(range(1, each + 1))
    await daemon.raw.until(lambda: daemon.raw.pongs != [])
    daemon.send(encoded("e2ee"))  # the other direction still works
    for client in clients:
        assert (client if isinstance(client, type(daemon.raw)) else client.raw).closed is None
    assert daemon.raw.closed is None


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_client_leaves_while_its_frames_wait(world: World, relay: Relay) -> None:
    """Frames of a client that left may be sent or not, but leave no gap in the numbers of the daemon's records."""
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, IK)
    clients = [await world.join(relay, CLIENT, workspace, way) for way in (IK, PLAIN, IK)]
    reading: Any = daemon.raw.transport
    reading.pauseProducing()
    for seq in range(1, 121):
        for number, client in enumerate(clients):
            client.send(numbered(f"s-{number}", seq, 60_000))

    async def held_back() -> bool:
        return await relay.count("relay_peers_paused") >= len(clients)

    await eventually(held_back)
    clients[0].raw.vanish()
    clients[1].vanish()
    await pause(0.05)
    reading.resumeProducing()
    last = numbered("s-2", 120, 60_000)
    await daemon.raw.until(lambda: last in daemon.frames[-3:])
    frames = [json.loads(frame) for frame in daemon.frames]
    assert [f["seq"] for f in frames if f["sessionId"] == "s-2"] == list(range(1, 121))
    for gone in ("s-0", "s-1"):
        seen = [f["seq"] for f in frames if f["sessionId"] == gone]
        assert seen == list(range(1, len(seen) + 1)) and len(seen) < 120
    assert daemon.raw.closed is None


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_slow_client_on_a_link_gets_what_was_queued_and_then_the_close(
    world: World, relay: Relay
) -> None:
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, IK)
    client = await world.join(relay, CLIENT, workspace, IK)
    client.send(encoded("init v3"))
    await daemon.hears(1)
    daemon.send(encoded("response v3"))
    await client.hears(1)
    reading: Any = client.raw.transport
    reading.pauseProducing()
    most = 60  # MiB; far more than kernel buffers and RELAY_MAX_PENDING_BYTES together
    slow = "relay_ws_slow_client_terminated_total"
    before = await relay.count(slow)
    for seq in range(1, most + 1):
        daemon.send(numbered("session-1", seq, 1_000_000))

    async def given_up() -> bool:
        return await relay.count(slow) > before

    await eventually(given_up)
    reading.resumeProducing()
    assert await client.raw.ended() == Closed(4008, "buffer overflow")
    got = [json.loads(frame)["seq"] for frame in client.frames[1:]]
    assert got == list(range(1, len(got) + 1)) and 4 <= len(got) < most
    await relay.wait_for(workspace, "close", "BUFFER_OVERFLOW")
    assert daemon.raw.closed is None


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_relay_stops_while_a_link_is_full(world: World) -> None:
    """Drain: queued records are sent encrypted and in order, then the Close."""
    relay = await world.relay(RELAY_DRAIN_SECONDS="10")
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, IK)
    client = await world.join(relay, CLIENT, workspace, PLAIN)
    reading: Any = daemon.raw.transport
    reading.pauseProducing()
    for seq in range(1, 241):
        client.send(numbered("s", seq, 60_000))

    async def held_back() -> bool:
        return await relay.count("relay_peers_paused") >= 1

    await eventually(held_back)
    relay.process.process.terminate()
    await pause(0.1)
    reading.resumeProducing()
    assert await daemon.raw.ended() == Closed(1001, "relay shutting down")
    got = [json.loads(frame)["seq"] for frame in daemon.frames]
    assert got == list(range(1, len(got) + 1)) and got


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_long_messages_of_one_client_are_received_a_few_at_a_time(world: World, relay: Relay) -> None:
    """The third message waits until one of the two that are being received is complete."""
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, IK)
    claims = {"clientId": "client-1"}
    clients = [await world.join(relay, CLIENT, workspace, IK, claims=claims) for _ in range(3)]
    frames = [numbered(f"s-{number}", 1, 1_000_000) for number in range(3)]
    wires = [
        masked_frame(BINARY, client.initiator.seal(frame))
        for client, frame in zip(clients, frames, strict=True)
    ]
    for client, wire in zip(clients[:2], wires, strict=False):
        client.raw.transport.write(wire[:-10])
    await pause(0.2)
    clients[2].raw.transport.write(wires[2])
    await pause(0.4)
    assert daemon.frames == []
    clients[0].raw.transport.write(wires[0][-10:])
    began = reactor.seconds()
    assert sorted(await daemon.hears(2)) == sorted([frames[0], frames[2]])
    assert reactor.seconds() - began < PATIENCE - 0.6
    clients[1].raw.transport.write(wires[1][-10:])
    assert (await daemon.hears(3))[-1] == frames[1]
