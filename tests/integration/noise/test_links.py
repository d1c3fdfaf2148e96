"""Established links: both patterns, both directions, mixed with plain peers, messages of every form."""

from __future__ import annotations

import hashlib
import json
from itertools import product
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]

from tests.integration.noise.conftest import CLIENT, DAEMON, TARGET, PublicKey, Relay, World, eventually
from tests.integration.noise.linkpeers import LINK, LinkPeer, raw_connect
from tests.unit.noise.peers import SECRET, Initiator, b64
from tests.wireframes import encoded
from viewport_relay.noise.policy import Pattern
from viewport_relay.peer.upgrade import Closed, Destination
from viewport_relay.protocol.grant import Role, UpgradeQuery

FRAME_MAX = 1_048_576
WAYS = (None, Pattern.IK, Pattern.IKPSK2)


def _name(way: Pattern | None) -> str:
    return "plain" if way is None else way.label


def sized(size: int, **members: Any) -> bytes:
    """An e2ee frame of exactly `size` bytes."""
    empty = len(encoded("e2ee", ciphertext="", **members))
    return encoded("e2ee", ciphertext="x" * (size - empty), **members)


@pytest.mark.parametrize(("daemon_way", "client_way"), list(product(WAYS, WAYS)), ids=_name)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_frames_go_both_ways_byte_for_byte(
    world: World, relay: Relay, daemon_way: Pattern | None, client_way: Pattern | None
) -> None:
    # IKpsk2 is also allowed where it is not required, if the grant has a secret.
    workspace = world.workspace(pairing_secret=b64(SECRET))
    daemon = await world.join(relay, DAEMON, workspace, daemon_way)
    client = await world.join(relay, CLIENT, workspace, client_way)
    sent = [encoded("init v3"), b' {"seq": 1e0,' + encoded("e2ee", seq=...)[1:], sized(70_000), sized(200)]
    for frame in sent:
        client.send(frame)
    assert await daemon.hears(len(sent)) == sent
    answers = [encoded("response v3"), sized(70_000), encoded("e2ee", note="é ✓"), sized(200)]
    for frame in answers:
        daemon.send(frame)
    assert await client.hears(len(answers)) == answers


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_hello_state_metrics_and_log_of_a_link(world: World, relay: Relay) -> None:
    workspace = world.workspace(pairing_secret=b64(SECRET))
    before = {label: await relay.count(f'relay_handshakes_total{{noise="{label}"}}') for label in _LABELS}
    daemon = await world.join(relay, DAEMON, workspace, Pattern.IKPSK2)
    client = await world.join(relay, CLIENT, workspace, Pattern.IK)
    assert daemon.hello == client.hello == {"relayId": "relay-noise", "frameMaxBytes": FRAME_MAX}
    await world.join(relay, CLIENT, workspace, None)

    async def all_in() -> bool:
        target = await relay.target(workspace)
        return target is not None and target["clientCount"] == 2

    await eventually(all_in)
    after = {label: await relay.count(f'relay_handshakes_total{{noise="{label}"}}') for label in _LABELS}
    assert {label: after[label] - before[label] for label in _LABELS} == dict.fromkeys(_LABELS, 1)
    joins = [entry["details"] for entry in await relay.entries(workspace) if entry["event"] == "join"]
    assert [(d["role"], d["noise"], d.get("relayKeyUsed")) for d in joins] == [
        (DAEMON, "IKpsk2", "current"),
        (CLIENT, "IK", "current"),
        (CLIENT, "none", None),
    ]
    await relay.prints(workspace)


_LABELS = ("none", "IK", "IKpsk2")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_no_peer_takes_part_before_the_confirm(world: World, relay: Relay) -> None:
    """A daemon that has only the token, or has sent only message 1, has no seat: its clients do not see it."""
    workspace = world.paired(SECRET)
    client = await world.join(relay, CLIENT, workspace, Pattern.IKPSK2)
    daemon = await (await world.link(relay, DAEMON, workspace, Pattern.IKPSK2)).message_2()
    frame = encoded("e2ee", profile="noise-ikpsk2")
    client.send(frame)
    assert json.loads((await client.hears(1))[0])["code"] == "DAEMON_UNAVAILABLE"
    target = await relay.target(workspace)
    assert target is not None and target["daemonConnected"] is False
    other = await (await world.link(relay, CLIENT, workspace, Pattern.IKPSK2)).message_2()
    target = await relay.target(workspace)
    assert target is not None and target["clientCount"] == 1
    assert [entry["event"] for entry in await relay.entries(workspace)] == ["join"]
    daemon.confirm()
    other.confirm()

    async def both_in() -> bool:
        target = await relay.target(workspace)
        return target is not None and target["daemonConnected"] is True and target["clientCount"] == 2

    await eventually(both_in)
    other.send(frame)
    assert await daemon.hears(1) == [frame]
    assert daemon.raw.closed is None and len(client.frames) == 1


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_relays_own_frames_come_over_the_link(world: World, relay: Relay) -> None:
    client = await world.join(relay, CLIENT, world.workspace(), Pattern.IK)
    client.send(encoded("e2ee"))
    client.send(b"[]")
    client.send(b"no json")
    codes = [json.loads(frame)["code"] for frame in await client.hears(3)]
    assert codes == ["DAEMON_UNAVAILABLE", "INVALID_FRAME", "INVALID_FRAME"]


@pytest.mark.parametrize("way", WAYS, ids=_name)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_frame_limit_counts_plaintext(world: World, relay: Relay, way: Pattern | None) -> None:
    workspace = world.workspace(pairing_secret=b64(SECRET))
    daemon = await world.join(relay, DAEMON, workspace, way)
    client = await world.join(relay, CLIENT, workspace, way)
    largest = sized(FRAME_MAX)
    client.send(largest)
    if way is not None:  # many small records, so that their overhead does not count
        client.raw.say(client.initiator.seal(largest, record=1024))
    count = 1 if way is None else 2
    assert [hashlib.sha256(frame).digest() for frame in await daemon.hears(count)] == [
        hashlib.sha256(largest).digest()
    ] * count
    client.send(encoded("init v3"))
    await daemon.hears(count + 1)
    daemon.send(encoded("response v3"))
    daemon.send(largest)
    assert (await client.hears(2))[1] == largest
    counted = await relay.count("relay_ws_frame_too_large_total")
    raw = client if way is None else client.raw
    client.send(sized(FRAME_MAX + 1))
    assert await raw.ended() == Closed(1009, "frame too large")
    assert await relay.count("relay_ws_frame_too_large_total") == counted + 1
    entry = await relay.wait_for(workspace, "close", "FRAME_TOO_LARGE")
    assert entry["details"]["role"] == CLIENT
    assert len(daemon.frames) == count + 1


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_fragmented_messages_with_pings_between(world: World, relay: Relay) -> None:
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, Pattern.IK)
    client = await world.link(relay, CLIENT, workspace, Pattern.IK)
    client.raw.say(client.initiator.message_1(), fragment=10)
    [(message_2, _)] = await client.raw.has(1)
    client.initiator.read_message_2(message_2)
    client.raw.say(client.initiator.seal(b'{"type":"link_confirm"}'), fragment=1)
    frame = sized(150_000)
    client.raw.say(client.initiator.seal(frame), fragment=7_000)
    untyped: Any = client.raw
    message = client.initiator.seal(encoded("e2ee"))
    untyped.beginMessage(isBinary=True)
    untyped.sendMessageFrame(message[:50])
    untyped.sendPing(b"between")
    untyped.sendMessageFrame(message[50:])
    untyped.sendMessageFrame(b"")
    untyped.endMessage()
    assert await daemon.hears(2) == [frame, encoded("e2ee")]
    await client.raw.until(lambda: client.raw.pongs == [b"between"])


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_pings_are_answered_during_the_handshake_and_on_the_link(world: World, relay: Relay) -> None:
    peer = await world.link(relay, CLIENT, world.workspace(), Pattern.IK)
    untyped: Any = peer.raw
    untyped.sendPing(b"before message 1")
    await peer.message_2()
    untyped.sendPing(b"before the confirm")
    peer.confirm()
    untyped.sendPing(b"up")
    await peer.raw.until(lambda: len(peer.raw.pongs) == 3)
    assert peer.raw.pongs == [b"before message 1", b"before the confirm", b"up"]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_target_that_only_the_claims_name(world: World, relay: Relay) -> None:
    """The handshake is bound to the query, which names no target; the peer joins the target of its claims."""
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, Pattern.IK)
    raw = await raw_connect(Destination(relay.ws, CLIENT, workspace), world.token(CLIENT, workspace))
    query = UpgradeQuery(Role.CLIENT, workspace, None)
    client = await LinkPeer(raw, Initiator(Pattern.IK, relay=PublicKey(relay.public), query=query)).up()
    client.send(encoded("e2ee"))
    assert await daemon.hears(1) == [encoded("e2ee")]
    raw.say(b"no record")
    await raw.ended()
    entry = await relay.wait_for(workspace, "close", "NOISE_DECRYPT_FAILED")
    assert entry["details"]["runtimeTargetId"] == TARGET


OFFERS = [
    ((LINK,), LINK),
    (("viewport.v2", LINK), LINK),
    (("auth.{token}", LINK, "viewport.v2"), LINK),
    (("viewport.v2", "auth.{token}"), "viewport.v2"),
    (("auth.{token}",), "auth.{token}"),
    (("viewport.noise-link.v2",), "viewport.noise-link.v2"),
    ((), None),
]


@pytest.mark.parametrize(
    ("offered", "chosen"), OFFERS, ids=["+".join(names) or "none" for names, _ in OFFERS]
)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_link_is_chosen_whenever_it_is_offered(
    world: World, relay: Relay, offered: tuple[str, ...], chosen: str | None
) -> None:
    workspace = world.workspace()
    token = world.token(CLIENT, workspace)
    names = tuple(name.replace("{token}", token) for name in offered)
    peer = await world.raw(relay, CLIENT, workspace, names)
    expected = None if chosen is None else chosen.replace("{token}", token)
    assert peer.websocket_protocol_in_use == expected
    if chosen != LINK:
        peer.send(encoded("e2ee"))
        assert json.loads((await peer.hears(1))[0])["code"] == "DAEMON_UNAVAILABLE"
