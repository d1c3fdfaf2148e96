"""Section 11 of the wire protocol against a real relay, row by row: the peer's Close and the log entry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from attrs import Factory, frozen

from tests.integration.noise.conftest import CLIENT, DAEMON, TARGET, Relay, World, eventually
from tests.integration.noise.linkpeers import LINK, LinkPeer, raw_connect
from tests.unit.noise.peers import (
    CONFIRM,
    LOW_ORDER,
    OTHER_SECRET,
    PEER_STATIC,
    SECRET,
    b64,
)
from tests.wireframes import encoded
from viewport_relay.noise.keys import StaticKey
from viewport_relay.noise.policy import PLAIN_IK_DETAIL, Pattern
from viewport_relay.peer.upgrade import Closed, Destination
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason

IK, IKPSK2 = Pattern.IK, Pattern.IKPSK2
TEXTS = {
    "NOISE_INVALID_PSK": "Noise handshake failed: invalid psk",
    "NOISE_HANDSHAKE_MALFORMED": "Noise handshake failed: malformed message",
    "NOISE_STATIC_KEY_MISMATCH": "Noise handshake failed: static key mismatch",
    "NOISE_TIMEOUT": "Noise handshake failed: timeout",
    "NOISE_DECRYPT_FAILED": "Noise transport failed: decrypt",
    "NOISE_LINK_REQUIRED": "Noise link required",
    "NOISE_PSK_UNAVAILABLE": "Noise handshake failed: psk unavailable",
}

#: The policy members of each kind of workspace in the platform's response.
SECRET_TEXT = b64(SECRET)
POLICIES: dict[str, dict[str, Any]] = {
    "standard": {},
    "no profile": {"e2ee_profile": None},
    "paired": {
        "policy_mode": "crypto_pairing",
        "e2ee_profile": "noise-ikpsk2",
        "pairing_secret": SECRET_TEXT,
    },
    "paired by policy": {"policy_mode": "crypto_pairing", "pairing_secret": SECRET_TEXT},
    "paired by profile": {"e2ee_profile": "noise-ikpsk2", "pairing_secret": SECRET_TEXT},
    "welcome": {"pairing_secret": SECRET_TEXT},
    "no secret": {"policy_mode": "crypto_pairing", "e2ee_profile": "noise-ikpsk2"},
    "short secret": {"policy_mode": "crypto_pairing", "pairing_secret": b64(SECRET[:31])},
}

Act = Callable[[LinkPeer], Awaitable[None]]


# -- actions of peers -----------------------------------------------------------------------------------------------


async def message_1(peer: LinkPeer) -> None:
    peer.raw.say(peer.initiator.message_1())


def changed(change: Callable[[bytes], bytes]) -> Act:
    """Send message 1, altered by `change`."""

    async def act(peer: LinkPeer) -> None:
        peer.raw.say(change(peer.initiator.message_1()))

    return act


def instead(message: bytes, binary: bool = True) -> Act:
    async def act(peer: LinkPeer) -> None:
        peer.raw.say(message, binary)

    return act


def confirm_with(plaintext: bytes) -> Act:
    async def act(peer: LinkPeer) -> None:
        await peer.message_2()
        peer.raw.say(peer.initiator.seal(plaintext))

    return act


def after_message_1(message: bytes, binary: bool = True) -> Act:
    """Send a message instead of the confirm; message 2 may be unreadable."""

    async def act(peer: LinkPeer) -> None:
        peer.raw.say(peer.initiator.message_1())
        await peer.raw.has(1)
        peer.raw.say(message, binary)

    return act


def once_up(change: Callable[[LinkPeer], None]) -> Act:
    async def act(peer: LinkPeer) -> None:
        await peer.up()
        peer.send(encoded("e2ee"))
        assert len(await peer.hears(1)) == 1  # DAEMON_UNAVAILABLE: the peer takes part in routing
        change(peer)

    return act


def record(peer: LinkPeer, change: Callable[[bytes], bytes]) -> None:
    peer.raw.say(change(peer.initiator.seal(encoded("e2ee"))))


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[position] ^= 1
        return bytes(damaged)

    return change


def with_point(point: bytes) -> Callable[[bytes], bytes]:
    """Message 1 with another ephemeral key."""
    return lambda message: message[:2] + point + message[34:]


def twice(peer: LinkPeer) -> None:
    sealed = peer.initiator.seal(encoded("e2ee"))
    peer.raw.say(sealed)
    peer.raw.say(sealed)


def swapped(peer: LinkPeer) -> None:
    first, second = peer.initiator.seal(encoded("e2ee")), peer.initiator.seal(encoded("e2ee"))
    peer.raw.say(second)
    peer.raw.say(first)


# -- the table ---------------------------------------------------------------------------------------------------


@frozen
class Row:
    """A row of the section. `detail` is part of the log entry's detail; `how` goes to the initiator."""

    name: str
    policy: str
    pattern: Pattern
    act: Act
    reason: str
    detail: str
    how: dict[str, Any] = Factory(dict)
    role: str = CLIENT


ROWS = [
    # IK where IKpsk2 is required
    *[
        Row(f"IK, {policy}", policy, IK, message_1, "NOISE_INVALID_PSK", PLAIN_IK_DETAIL, role=role)
        for policy in ("paired", "paired by policy", "paired by profile")
        for role in (CLIENT, DAEMON)
    ],
    # under IKpsk2: a confirm that does not decrypt, or another message
    Row("another secret", "paired", IKPSK2, after_message_1(b"\0\x10" + bytes(16)), "NOISE_INVALID_PSK",
        "does not decrypt", {"secret": OTHER_SECRET}),
    Row("no record", "paired", IKPSK2, after_message_1(b"x"), "NOISE_INVALID_PSK", "holds no record"),
    Row("text for the confirm", "welcome", IKPSK2, after_message_1(CONFIRM, False), "NOISE_INVALID_PSK", "text"),
    Row("a frame for the confirm", "paired", IKPSK2, confirm_with(encoded("e2ee")), "NOISE_INVALID_PSK", "is not"),
    Row("no JSON for the confirm", "paired", IKPSK2, confirm_with(b"\xff"), "NOISE_INVALID_PSK", "is not"),
    # message 1
    Row("empty message 1", "standard", IK, instead(b""), "NOISE_HANDSHAKE_MALFORMED", "0 bytes instead of 98"),
    Row("one byte short", "standard", IK, changed(lambda m: m[:-1]), "NOISE_HANDSHAKE_MALFORMED", "97 bytes"),
    Row("one byte long", "paired", IKPSK2, changed(lambda m: m + b"x"), "NOISE_HANDSHAKE_MALFORMED", "99 bytes"),
    Row("1 MiB", "standard", IK, instead(bytes(1_048_576)), "NOISE_HANDSHAKE_MALFORMED", "1048576 bytes"),
    Row("version 2", "standard", IK, changed(lambda m: b"\2" + m[1:]), "NOISE_HANDSHAKE_MALFORMED", "version byte 0x02"),
    Row("pattern 0", "standard", IK, changed(lambda m: b"\1\0" + m[2:]), "NOISE_HANDSHAKE_MALFORMED", "byte 0x00"),
    Row("pattern 3", "paired", IKPSK2, changed(lambda m: b"\1\3" + m[2:]), "NOISE_HANDSHAKE_MALFORMED", "byte 0x03"),
    Row("the other pattern's byte", "welcome", IK, changed(lambda m: b"\1\2" + m[2:]), "NOISE_HANDSHAKE_MALFORMED",
        "does not decrypt"),
    Row("zeros", "standard", IK, instead(b"\1\1" + bytes(96)), "NOISE_HANDSHAKE_MALFORMED", "does not decrypt"),
    *[
        Row(f"low-order point {number}", "welcome", pattern, changed(with_point(point)),
            "NOISE_HANDSHAKE_MALFORMED", "does not decrypt")
        for number, (point, pattern) in enumerate(zip(LOW_ORDER, [IK, IKPSK2] * 4, strict=False))
    ],
    *[
        Row(f"bit flipped in byte {at}", "welcome", pattern, changed(flip(at)), "NOISE_HANDSHAKE_MALFORMED",
            "does not decrypt")
        for at, pattern in ((2, IK), (40, IKPSK2), (70, IK), (97, IKPSK2))
    ],
    Row("wrong relay key", "standard", IK, message_1, "NOISE_HANDSHAKE_MALFORMED", "another relay key",
        {"relay_key": StaticKey.generate()}),
    Row("wrong relay key, IKpsk2", "paired", IKPSK2, message_1, "NOISE_HANDSHAKE_MALFORMED", "another relay key",
        {"relay_key": StaticKey.generate()}),
    Row("another workspace", "standard", IK, message_1, "NOISE_HANDSHAKE_MALFORMED", "workspace",
        {"query": UpgradeQuery(Role.CLIENT, "elsewhere", TARGET)}),
    Row("text for message 1", "standard", IK, instead(encoded("e2ee"), False), "NOISE_HANDSHAKE_MALFORMED", "text"),
    # under IK: a confirm that does not decrypt, or another message
    Row("IK, damaged confirm", "standard", IK, after_message_1(b"\0\x10" + bytes(16)), "NOISE_HANDSHAKE_MALFORMED",
        "does not decrypt"),
    Row("IK, a frame for the confirm", "no profile", IK, confirm_with(encoded("e2ee")), "NOISE_HANDSHAKE_MALFORMED",
        "is not"),
    Row("IK, empty confirm", "standard", IK, after_message_1(b""), "NOISE_HANDSHAKE_MALFORMED", "holds no record"),
    Row("IK, text for the confirm", "standard", IK, after_message_1(CONFIRM, False), "NOISE_HANDSHAKE_MALFORMED",
        "text"),
    # on an established link
    *[
        Row(f"{name}, {pattern.label}", "welcome", pattern, once_up(change), "NOISE_DECRYPT_FAILED", detail)
        for pattern in Pattern
        for name, change, detail in (
            ("damaged record", lambda p: record(p, flip(20)), "does not decrypt"),
            ("damaged tag", lambda p: record(p, flip(-1)), "does not decrypt"),
            ("replayed record", twice, "does not decrypt"),
            ("swapped records", swapped, "does not decrypt"),
            ("length too great", lambda p: record(p, flip(0)), "bad length"),
            ("length too small", lambda p: p.raw.say(b"\0\x0f" + bytes(15)), "holds no record"),
            ("bytes left over", lambda p: record(p, lambda m: m + b"x"), "bad length"),
            ("cut record", lambda p: record(p, lambda m: m[:-1]), "bad length"),
            ("empty message", lambda p: p.raw.say(b""), "holds no record"),
            ("a text message", lambda p: p.raw.say(encoded("e2ee"), binary=False), "text message"),
        )
    ],
    # no usable pairing secret
    Row("no secret", "no secret", IKPSK2, message_1, "NOISE_PSK_UNAVAILABLE", "no pairingSecret"),
    Row("no secret, not required", "standard", IKPSK2, message_1, "NOISE_PSK_UNAVAILABLE", "no pairingSecret"),
    Row("31 bytes", "short secret", IKPSK2, message_1, "NOISE_PSK_UNAVAILABLE", "not 32 bytes", role=DAEMON),
]  # fmt: skip


async def provoke(world: World, relay: Relay, row: Row) -> tuple[Closed, dict[str, Any]]:
    """Returns the Close that the peer got, and the log entry."""
    workspace = world.workspace(**POLICIES[row.policy])
    peer = await world.link(relay, row.role, workspace, row.pattern, **row.how)
    await row.act(peer)
    closed = await peer.raw.ended()
    return closed, await relay.wait_for(workspace, "close", row.reason)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_failed_handshake_is_closed_4008_logged_and_counted(
    world: World, relay: Relay, row: Row
) -> None:
    failures = f'relay_handshake_failures_total{{reason="{row.reason}"}}'
    before = await relay.count(failures)
    closed, entry = await provoke(world, relay, row)
    assert closed == Closed(4008, TEXTS[row.reason])
    details = entry["details"]
    assert row.detail in details["detail"]
    assert (details["role"], details["runtimeTargetId"], details["ip"]) == (row.role, TARGET, "127.0.0.1")
    assert entry["level"] == "warn" and entry["message"] == TEXTS[row.reason] and entry["connectionId"]
    await relay.prints(details["workspaceId"])
    assert await relay.count(failures) == before + 1
    target = await relay.target(details["workspaceId"])
    if row.reason == "NOISE_DECRYPT_FAILED":
        assert details["relayKeyUsed"] == "current"
        assert target is not None and target["clientCount"] == 0
    else:  # a refused peer leaves no state and sends no presence
        assert target is None
        assert [e["event"] for e in await relay.entries(details["workspaceId"])] == ["close"]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_handshake_is_bound_to_role_workspace_and_target(world: World, relay: Relay) -> None:
    for role, other in ((CLIENT, Role.DAEMON), (DAEMON, Role.CLIENT)):
        for change in ({"role": other}, {"target": "other"}, {"target": None}, {"workspace": "other"}):
            workspace = world.workspace()
            said: dict[str, Any] = {"role": Role(role), "workspace": workspace, "target": TARGET, **change}
            wrong = UpgradeQuery(said["role"], said["workspace"], said["target"])
            peer = await world.link(relay, role, workspace, IK, query=wrong)
            await message_1(peer)
            assert await peer.raw.ended() == Closed(4008, TEXTS["NOISE_HANDSHAKE_MALFORMED"]), change
            await relay.wait_for(workspace, "close", "NOISE_HANDSHAKE_MALFORMED")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_handshake_recorded_elsewhere_does_not_open_a_link(world: World, relay: Relay) -> None:
    """Message 1 can be replayed in its workspace; without the ephemeral key the replay cannot confirm."""
    workspace = world.paired(SECRET)
    recorded = await world.link(relay, CLIENT, workspace, IKPSK2)
    message = recorded.initiator.message_1()
    recorded.raw.say(message)
    [(message_2, _)] = await recorded.raw.has(1)
    recorded.initiator.read_message_2(message_2)
    confirm = recorded.initiator.seal(CONFIRM)
    recorded.raw.say(confirm)
    thief = await world.raw(relay, CLIENT, workspace)
    thief.say(message)
    await thief.has(1)
    thief.say(confirm)
    assert await thief.ended() == Closed(4008, TEXTS["NOISE_INVALID_PSK"])
    assert recorded.raw.closed is None


@pytest.mark.parametrize("vanish", [False, True], ids=["close", "lost"])
@pytest.mark.parametrize("pattern", Pattern, ids=lambda pattern: pattern.label)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_peer_gone_after_message_2(
    world: World, relay: Relay, pattern: Pattern, vanish: bool
) -> None:
    """Under IKpsk2 a peer with another secret leaves after message 2: one log entry, counted as a failure."""
    failures = 'relay_handshake_failures_total{reason="NOISE_INVALID_PSK"}'
    closes = 'relay_closes_total{reason="NOISE_INVALID_PSK"}'
    before = await relay.count(failures), await relay.count(closes)
    workspace = world.workspace(pairing_secret=SECRET_TEXT)
    lost = await relay.count("relay_ws_connections_closed_total")
    peer = await world.link(relay, CLIENT, workspace, pattern, secret=OTHER_SECRET)
    await message_1(peer)
    await peer.raw.has(1)
    peer.raw.vanish() if vanish else peer.raw.leave()
    await peer.raw.ended()

    async def gone() -> bool:
        return await relay.count("relay_ws_connections_closed_total") > lost

    await eventually(gone)
    if pattern is IKPSK2:
        entry = await relay.wait_for(workspace, "handshake", "NOISE_INVALID_PSK")
        assert "left after message 2" in entry["details"]["detail"]
        assert (entry["details"]["role"], entry["details"]["ip"]) == (CLIENT, "127.0.0.1")
        await relay.prints(workspace)
        assert await relay.count(failures) == before[0] + 1
    else:
        assert await relay.count(failures) == before[0]
    assert len(await relay.entries(workspace)) == (1 if pattern is IKPSK2 else 0)
    assert await relay.count(closes) == before[1]  # the relay closed no connection
    assert await relay.target(workspace) is None


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_peer_gone_before_message_1_is_no_failure(world: World, relay: Relay) -> None:
    workspace = world.paired(SECRET)
    peer = await world.raw(relay, CLIENT, workspace)
    peer.leave()
    assert (await peer.ended()).code == 1000
    assert await relay.entries(workspace) == []


# -- the daemon's static key -------------------------------------------------------------------------------------

OWN = StaticKey(PEER_STATIC)
P256 = b64(b"\4" + bytes(64))
KEYS = [
    ("the peer's key", b64(OWN.public), DAEMON, True),
    ("the peer's key, padded", b64(OWN.public) + "=", DAEMON, True),
    ("another key", b64(StaticKey.generate().public), DAEMON, False),
    ("a P-256 key", P256, DAEMON, True),
    ("no key", None, DAEMON, True),
    ("another key, for a client", b64(StaticKey.generate().public), CLIENT, True),
]


@pytest.mark.parametrize("pattern", Pattern, ids=lambda pattern: pattern.label)
@pytest.mark.parametrize(("name", "key", "role", "fine"), KEYS, ids=[key[0] for key in KEYS])
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_static_key_of_a_daemon_is_that_of_its_claims(
    world: World, relay: Relay, pattern: Pattern, name: str, key: str | None, role: str, fine: bool
) -> None:
    workspace = world.workspace(daemon_public_key=key, pairing_secret=SECRET_TEXT)
    if fine:
        await world.join(relay, role, workspace, pattern)
        return
    peer = await world.link(relay, role, workspace, pattern)
    await message_1(peer)
    assert await peer.raw.ended() == Closed(4008, TEXTS["NOISE_STATIC_KEY_MISMATCH"])
    assert peer.raw.messages == []  # no message 2
    details = (await relay.wait_for(workspace, "close", "NOISE_STATIC_KEY_MISMATCH"))["details"]
    assert len(details["peerKeySha256"]) == len(details["grantKeySha256"]) == 16
    assert details["peerKeySha256"] != details["grantKeySha256"]
    assert details["relayKeyUsed"] == "current"


# -- relays with other settings -----------------------------------------------------------------------


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_not_confirmed_in_time(world: World) -> None:
    relay = await world.relay(RELAY_NOISE_TIMEOUT_MS="700", RELAY_PING_INTERVAL_MS="150")
    silent, waiting = world.workspace(), world.paired(SECRET)
    peers = [
        await world.link(relay, DAEMON, silent, IK),
        await (await world.link(relay, DAEMON, waiting, IKPSK2)).message_2(),
    ]
    up = await world.join(relay, CLIENT, world.workspace(), IK)
    for peer, workspace, detail in (
        (peers[0], silent, "no message 1 came in time"),
        (peers[1], waiting, "message 2 was sent and no confirm came in time"),
    ):
        assert await peer.raw.ended() == Closed(4008, TEXTS["NOISE_TIMEOUT"])
        entry = await relay.wait_for(workspace, "close", "NOISE_TIMEOUT")
        assert entry["details"]["detail"] == detail
        await relay.prints(workspace)
    assert await relay.count('relay_handshake_failures_total{reason="NOISE_TIMEOUT"}') == 2
    # The time limit covers only the handshake; pings and pongs are not records.
    await up.raw.until(lambda: len(up.raw.pings) >= 3)
    up.send(encoded("e2ee"))
    assert b"DAEMON_UNAVAILABLE" in (await up.hears(1))[0] and up.raw.closed is None


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_link_can_be_required(world: World) -> None:
    relay = await world.relay(RELAY_NOISE_LINK="required")
    assert relay.identity["subprotocols"] == [LINK]
    for role in (DAEMON, CLIENT, "worker"):
        for offered in ((), ("viewport.v2",)):
            workspace = world.workspace()
            peer = await world.raw(relay, role, workspace, offered)
            assert await peer.ended() == Closed(4008, TEXTS["NOISE_LINK_REQUIRED"])
            entry = await relay.wait_for(workspace, "close", "NOISE_LINK_REQUIRED")
            assert entry["details"]["role"] == role
            await relay.prints(workspace)
            assert await relay.target(workspace) is None  # no target: the peer did not reach routing
    assert await relay.count('relay_handshake_failures_total{reason="NOISE_LINK_REQUIRED"}') == 6
    workspace = world.workspace()
    daemon = await world.join(relay, DAEMON, workspace, IK)
    client = await world.join(relay, CLIENT, workspace, IK)
    client.send(encoded("e2ee"))
    assert await daemon.hears(1) == [encoded("e2ee")]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_link_can_be_off(world: World) -> None:
    relay = await world.relay(RELAY_NOISE_LINK="off")
    assert relay.identity["subprotocols"] == []
    workspace = world.workspace()
    for offered, chosen in (((LINK,), None), ((LINK, "viewport.v2"), "viewport.v2")):
        peer = await world.raw(relay, CLIENT, workspace, offered)
        assert peer.websocket_protocol_in_use == chosen
        peer.send(encoded("e2ee"))
        assert b"DAEMON_UNAVAILABLE" in (await peer.hears(1))[0]
    assert [e["details"]["noise"] for e in await relay.entries(workspace)] == ["none", "none"]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_claims_are_refused_before_the_handshake(world: World, relay: Relay) -> None:
    """The frame that precedes this close is plain text, which a link does not allow: it is omitted."""
    workspace = world.workspace()
    token = world.platform.issue(CLIENT, workspace, None, scope="runtime")
    peer = await raw_connect(Destination(relay.ws, CLIENT, workspace), token)
    assert await peer.ended() == Closed(4008, "missing runtime target claim")
    assert peer.messages == []
    plain = await raw_connect(Destination(relay.ws, CLIENT, workspace), token, ())
    assert await plain.ended() == Closed(4008, "missing runtime target claim")
    assert [b"RUNTIME_TARGET_REQUIRED" in frame for frame in plain.frames] == [True]


def test_the_texts_of_the_wire_protocol() -> None:
    """The peer sees the same text for a wrong pattern as for a wrong secret, and one text for all kinds of damage."""
    assert {
        reason.code: reason.entry.close_text
        for reason in Reason
        if reason.name.startswith("NOISE_") and reason is not Reason.NOISE_NONCE_EXHAUSTED
    } == TEXTS
    assert {Reason[code].entry.close for code in TEXTS} == {4008}
