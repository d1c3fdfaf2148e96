"""End-to-end link tests: the demo, the link inside TLS, and a search of all outputs for secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from attrs import evolve

from tests.drill.certificates import Identity
from tests.integration.noise.conftest import CLIENT, DAEMON, TARGET, Relay, World, eventually
from tests.integration.noise.linkpeers import reactor
from tests.unit.noise.peers import OTHER_SECRET, PEER_STATIC, SECRET, b64, psk_of
from tests.unit.peer.loopback import Inbox
from tests.wireframes import encoded
from viewport_relay.admission.tls import ClientTls
from viewport_relay.cli.scenes import LINKED, PAIRED, PLAIN, Where, exchange, refused_link
from viewport_relay.noise.policy import Pattern
from viewport_relay.peer.connection import connect
from viewport_relay.peer.link import LinkSettings, generate_static
from viewport_relay.peer.platform_api import JsonHttp, fetch_link_key
from viewport_relay.peer.upgrade import Closed, ClosedEarly, Destination


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_demonstration(world: World, relay: Relay) -> None:
    """Reference peers, with and without link and pairing; the log has the refusal."""
    lines: list[str] = []
    where = Where(
        relay.ws, world.platform.url, world.platform.credential, turns=24, large_frame_bytes=400_000
    )
    for scene in (PLAIN, LINKED, PAIRED):
        result = await exchange(reactor, where, lines.append, scene)
        assert result.messages == 48 and result.rekeys >= 1 and result.epoch >= 2
    refused = await refused_link(reactor, where, lines.append)
    assert refused == Closed(4008, "Noise handshake failed: invalid psk")
    assert sum(line.startswith("EXCHANGE OK 48 messages") for line in lines) == 3
    for workspace, noise in (("dev-workspace", "none"), ("dev-link", "IK"), ("dev-paired", "IKpsk2")):
        joins = [e["details"] for e in await relay.entries(workspace) if e["event"] == "join"]
        assert [(join["role"], join["noise"]) for join in joins] == [(DAEMON, noise), (CLIENT, noise)]
    entry = await relay.wait_for("dev-paired", "close", "NOISE_INVALID_PSK")
    assert entry["message"] == "Noise handshake failed: invalid psk"
    assert "the peer used plain IK" in entry["details"]["detail"]


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_link_inside_tls(world: World, tmp_path: Path) -> None:
    ca = Identity.self_signed("test CA")
    files = ca.issue("relay", "localhost").write(tmp_path, "relay")
    relay = await world.relay(RELAY_TLS_CERT_PATH=files.cert, RELAY_TLS_KEY_PATH=files.key)
    relay_key = await fetch_link_key(JsonHttp(reactor, ClientTls(ca.trust_root)), relay.ws)
    assert relay_key is not None
    large = encoded("e2ee", ciphertext="x" * 900_000)
    for secret in (None, SECRET):
        workspace = world.workspace(pairing_secret=b64(SECRET))
        ends: dict[str, Any] = {}
        inboxes = {role: Inbox() for role in (DAEMON, CLIENT)}
        for role, inbox in inboxes.items():
            link = LinkSettings(relay_key, generate_static(), role, workspace, TARGET, secret)
            destination = Destination(
                relay.ws, role, workspace, TARGET, link=link, tls=ClientTls(ca.trust_root)
            )
            ends[role] = await connect(reactor, destination, world.token(role, workspace), inbox)
        ends[CLIENT].send(encoded("init v3").decode())
        ends[CLIENT].send(large.decode())
        assert await inboxes[DAEMON].has(2) == [encoded("init v3").decode(), large.decode()]
        for frame in (encoded("response v3"), large, encoded("e2ee")):
            ends[DAEMON].send(frame.decode())
        assert (await inboxes[CLIENT].has(3))[1:] == [large.decode(), encoded("e2ee").decode()]
        for end in ends.values():
            end.close()
            assert (await end.closed).code == 1000
    workspace = world.paired(SECRET)
    wrong = LinkSettings(relay_key, generate_static(), CLIENT, workspace, TARGET)
    destination = Destination(relay.ws, CLIENT, workspace, TARGET, link=wrong, tls=ClientTls(ca.trust_root))
    with pytest.raises(ClosedEarly) as refused:
        await connect(reactor, destination, world.token(CLIENT, workspace), lambda _: None)
    assert refused.value.closed == Closed(4008, "Noise handshake failed: invalid psk")
    with pytest.raises(ClosedEarly, match="TLS failed"):  # the system's CAs do not include the test's CA
        await connect(reactor, evolve(destination, tls=None), world.token(CLIENT, workspace), lambda _: None)
    # standard output instead of `/logs`: `relay.entries` has no TLS
    said = [line for line in relay.process.output().splitlines() if workspace in line]
    assert any("NOISE_INVALID_PSK" in line for line in said)


# -- no secret is shown ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_no_secret_in_any_output(world: World, relay: Relay) -> None:
    """Successful and failed links of every kind, then a search of all that the relay shows."""
    marker = "PAYLOAD-zq7-marker-of-these-tests"
    workspace = world.workspace(pairing_secret=b64(SECRET))
    daemon = await world.join(relay, DAEMON, workspace, Pattern.IKPSK2)
    client = await world.join(relay, CLIENT, workspace, Pattern.IKPSK2)
    client.send(encoded("e2ee", ciphertext=marker))
    await daemon.hears(1)
    daemon.send(encoded("e2ee", ciphertext=marker))  # no owner: dropped
    client.send(f'{{"type":"{marker}"}}'.encode())  # no valid frame: answered
    await client.hears(1)
    for spoil in (marker.encode(), b"\0\x10" + bytes(16)):
        peer = await world.join(relay, CLIENT, workspace, Pattern.IK)
        peer.raw.say(spoil)
        await peer.raw.ended()
    peer = await world.link(relay, CLIENT, workspace, Pattern.IKPSK2, secret=OTHER_SECRET)
    peer.raw.say(peer.initiator.message_1())
    await peer.raw.has(1)
    peer.raw.say(marker.encode())
    await peer.raw.ended()
    bad = world.workspace(policy_mode="crypto_pairing", pairing_secret=b64(SECRET) + "-and-more-of-it")
    peer = await world.link(relay, CLIENT, bad, Pattern.IKPSK2)
    peer.raw.say(peer.initiator.message_1())
    await peer.raw.ended()
    await relay.wait_for(bad, "close", "NOISE_PSK_UNAVAILABLE")
    secrets = {
        *world.secrets,
        marker,
        relay.private_text,
        *(b64(raw) for raw in (SECRET, OTHER_SECRET, PEER_STATIC, psk_of(SECRET))),
        *(raw.hex() for raw in (SECRET, OTHER_SECRET, PEER_STATIC, psk_of(SECRET))),
    }
    shown = {"standard output and error": relay.process.output()}
    for path in ("/logs?limit=1000", "/logs?summary=1", "/state", "/metrics"):
        answer = await relay.admin(path)
        shown[path] = answer if isinstance(answer, str) else json.dumps(answer)
    for path in ("/health", "/ready", "/.well-known/viewport-relay.json"):
        shown[path] = relay.process.ask("GET", path).text
    assert len(secrets) > 15 and all(len(secret) > 20 for secret in secrets)
    parts = {part for secret in secrets for part in _parts(secret)}
    for where, text in shown.items():
        assert text
        found = parts & set(_parts(text))
        assert not found, f"{len(found)} parts of secrets in {where}"
    # no internal error
    lines = [json.loads(line) for line in shown["standard output and error"].splitlines()]
    assert [
        line for line in lines if line["level"] == "error" or "traceback" in json.dumps(line).lower()
    ] == []


def _parts(text: str) -> Iterator[str]:
    """All runs of 16 characters of a secret: none may be shown."""
    return (text[at : at + 16] for at in range(len(text) - 15))


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_state_says_how_each_peer_is_linked(world: World, relay: Relay) -> None:
    workspace = world.workspace(pairing_secret=b64(SECRET))
    for role, pattern in ((DAEMON, Pattern.IKPSK2), (CLIENT, Pattern.IK), (CLIENT, None)):
        await world.join(relay, role, workspace, pattern)

    async def shown() -> bool:
        target = await relay.target(workspace)
        assert target is not None and target["daemon"]["noise"] == "IKpsk2"
        return sorted(client["noise"] for client in target["clients"]) == ["IK", "none"]

    await eventually(shown)
