"""RELAY_WORKERS=2 with real processes: one relay as seen from the network."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.integration.backplane.fleet import ADMIN_TOKEN, BarePeer, e2ee, session, until
from tests.integration.relayprocess import RelayProcess
from tests.integration.workers.crewed import Crewed, kill
from viewport_relay.peer.connection import connect
from viewport_relay.peer.upgrade import Destination, UpgradeRefused

OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}


async def both(crewed: Crewed, relay: RelayProcess) -> dict[int, tuple[str, BarePeer, BarePeer]]:
    """On each worker a workspace with daemon, client and session."""
    made = {}
    for worker in (0, 1):
        workspace = crewed.workspace_of(worker)
        daemon = await crewed.enter(relay, "workspace-daemon", workspace)
        client = await crewed.enter(relay, "client", workspace)
        await session(client, daemon)
        made[worker] = workspace, daemon, client
    return made


async def post(relay: RelayProcess, path: str, body: dict[str, Any]) -> Any:
    reply = await deferToThread(relay.ask, "POST", path, OPERATOR, json.dumps(body).encode())
    return reply.json()


@pytest_twisted.ensureDeferred
async def test_a_targets_peers_are_on_one_worker_whether_query_or_claims_name_it(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    for worker in (0, 1):
        workspace = crewed.workspace_of(worker)
        daemon = await crewed.enter(relay, "workspace-daemon", workspace)
        named = await crewed.enter(relay, "client", workspace)
        claimed = await crewed.enter(relay, "client", workspace, in_query=False)
        for peer, name in ((named, "s-1"), (claimed, "s-2")):
            await session(peer, daemon, name)
            assert await _to_and_fro(peer, daemon, name)


async def _to_and_fro(client: BarePeer, daemon: BarePeer, name: str, seq: int = 1) -> bool:
    said = client.say(e2ee(name, seq))
    heard = await daemon.hear()
    answer = daemon.say(e2ee(name, seq))
    return (heard, await client.hear()) == (said, answer)


@pytest_twisted.ensureDeferred
async def test_workspaces_of_different_processes_appear_as_one_relay(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    there = await both(crewed, relay)
    for _, daemon, client in there.values():
        for seq in range(1, 6):
            assert await _to_and_fro(client, daemon, "session-1", seq)
    state = await crewed.state(relay)
    assert {w["workspaceId"] for w in state["workspaces"]} == {w for w, _, _ in there.values()}
    assert state["connections"] == {"workspace-daemon": 2, "client": 2, "worker": 0}
    # 5 frames and a key exchange in each of the two.
    assert await crewed.metric(relay, "relay_frames_client_to_daemon_total") == 12
    assert await crewed.metric(relay, "relay_frames_daemon_to_clients_total") == 12
    assert await crewed.metric(relay, "relay_admission_ok_total") == 4
    assert await crewed.metric(relay, 'relay_connections_total{role="client"}') == 2
    joined = [entry["details"] for entry in await crewed.logs(relay) if entry["event"] == "join"]
    assert sorted(entry["workspaceId"] for entry in joined) == sorted(2 * [w for w, _, _ in there.values()])
    assert len(set((await crewed.pids(relay)).values())) == 2
    for line in relay.output().splitlines():
        json.loads(line)  # whole lines, from every process


@pytest_twisted.ensureDeferred
async def test_refusals_of_all_processes_are_counted_and_logged(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    for worker in (0, 1):
        with pytest.raises(UpgradeRefused):  # refused by the worker: the token is for another workspace
            token_workspace, asked = crewed.workspace_of(worker), crewed.workspace_of(worker)
            token = crewed.platform.issue("client", token_workspace, crewed.target, scope="runtime")
            await _connect(crewed, relay, asked, token)
    with pytest.raises(UpgradeRefused):  # refused by the parent: not a token's form
        await _connect(crewed, relay, crewed.workspace_of(0), "short")
    assert await crewed.metric(relay, "relay_ws_connections_rejected_total") == 3
    assert await crewed.metric(relay, 'relay_refusals_total{reason="JWT_CLAIM_MISMATCH"}') == 2
    assert await crewed.metric(relay, 'relay_refusals_total{reason="TOKEN_MISSING"}') == 1
    summary = (await crewed.admin(relay, "/logs?summary=1&event=refuse")).json()
    assert summary["byReason"] == {"JWT_CLAIM_MISMATCH": 2, "TOKEN_MISSING": 1}


async def _connect(crewed: Crewed, relay: RelayProcess, workspace: str, token: str) -> None:
    await connect(crewed.reactor, Destination(relay.ws, "client", workspace, crewed.target), token, print)


@pytest_twisted.ensureDeferred
async def test_an_expectation_is_met_once(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    answer = await deferToThread(_answer_to_expect, relay.port)
    assert answer.count(b"HTTP/1.1 100 Continue") == 1 and answer.count(b"HTTP/1.1 401 ") == 1, answer


def _answer_to_expect(port: int) -> bytes:
    """All that a peer with a bad token gets that sends `Expect: 100-continue` with its upgrade."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(
            b"GET /ws?role=client&workspaceId=w&runtimeTargetId=t HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Authorization: Bearer not.a.token\r\nExpect: 100-continue\r\n\r\n"
        )
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest_twisted.ensureDeferred
async def test_entries_that_are_folded_in_a_worker_are_in_the_summary(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    _, daemon, client = (await both(crewed, relay))[1]
    for _ in range(20):
        daemon.say("no frame")
    assert await _to_and_fro(client, daemon, "session-1")
    summary = (await crewed.admin(relay, "/logs?summary=1")).json()
    assert summary["byReason"]["INVALID_FRAME"] == 20


@pytest_twisted.ensureDeferred
async def test_operators_reach_every_process(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    there = await both(crewed, relay)
    workspace, daemon, client = there[1]
    assert await post(relay, "/disconnect", {"workspaceId": workspace}) == {"ok": True, "disconnected": 2}
    for peer in (daemon, client):
        ended = await peer.ended()
        assert (ended.code, ended.reason) == (4008, "disconnected by operator")
    assert there[0][1].closed is None
    (connected,) = (w for w in (await crewed.state(relay))["workspaces"] if w["daemonConnected"])
    body = {"connectionId": connected["daemon"]["connectionId"]}
    assert await post(relay, "/disconnect", body) == {"ok": True, "disconnected": 1}
    await there[0][1].ended()


@pytest_twisted.ensureDeferred
async def test_an_operator_ends_the_connections_of_one_token_in_every_process(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    ended = [
        await crewed.enter(relay, "client", crewed.workspace_of(worker), jti="token 1") for worker in (0, 1)
    ]
    other = await crewed.enter(relay, "client", crewed.workspace_of(0), jti="token 2")
    assert await post(relay, "/disconnect", {"tokenId": "token 1"}) == {"ok": True, "disconnected": 2}
    for peer in ended:
        end = await peer.ended()
        assert (end.code, end.reason) == (4008, "disconnected by operator")
    assert await post(relay, "/disconnect", {"tokenId": "token 1"}) == {"ok": True, "disconnected": 0}
    assert other.closed is None


@pytest_twisted.ensureDeferred
async def test_flushing_the_cache_reaches_every_process(crewed: Crewed) -> None:
    relay = await crewed.relay("a", RELAY_VALIDATE_CACHE_TTL="600")
    kinds = {}
    for worker in (0, 1):
        workspace = crewed.workspace_of(worker)
        token = crewed.platform.issue("client", workspace, crewed.target, scope="runtime", clientId="c")
        kinds[workspace] = token

    async def asked() -> float:
        for workspace, token in kinds.items():
            await _connect(crewed, relay, workspace, token)
        return await crewed.metric(relay, 'relay_validations_total{outcome="ok"}')

    assert [await asked(), await asked()] == [2, 2]
    assert await post(relay, "/cache/flush", {}) == {"ok": True}
    assert await asked() == 4


@pytest_twisted.ensureDeferred
async def test_a_killed_worker_is_replaced_without_effect_on_the_other(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    there = await both(crewed, relay)
    pids = await crewed.pids(relay)
    frames = await crewed.metric(relay, "relay_frames_client_to_daemon_total")
    kill(pids[1])
    workspace, daemon, client = there[1]
    for peer in (daemon, client):
        await peer.ended()
    assert await _to_and_fro(there[0][2], there[0][1], "session-1")
    # The new process is still starting: the connection waits for it.
    again = await gatherResults(
        [
            Deferred.fromCoroutine(crewed.enter(relay, role, workspace))
            for role in ("workspace-daemon", "client")
        ]
    )
    daemon, client = again
    await session(client, daemon)
    assert (await crewed.pids(relay, more_than=2))[1] != pids[1]
    assert there[0][1].closed is None and there[0][2].closed is None
    lost = [e for e in await crewed.logs(relay) if e["event"] == "worker_lost"]
    assert [(e["level"], e["details"]["worker"]) for e in lost] == [("error", 1)]
    state = await crewed.state(relay)
    assert state["connections"] == {"workspace-daemon": 2, "client": 2, "worker": 0}
    # Counts of the lost worker's last report are kept.
    assert await crewed.metric(relay, "relay_frames_client_to_daemon_total") == frames + 2


@pytest_twisted.ensureDeferred
async def test_peers_that_come_before_the_end_of_a_worker_is_handled_wait_for_the_next(
    crewed: Crewed,
) -> None:
    relay = await crewed.relay("a")
    pids = await crewed.pids(relay)
    os.kill(relay.process.pid, signal.SIGSTOP)
    kill(pids[1])
    workspace = crewed.workspace_of(1)
    coming = [
        Deferred.fromCoroutine(crewed.enter(relay, role, workspace))
        for role in ("workspace-daemon", "client", "client", "client")
    ]
    await deferLater(crewed.reactor, 0.3)  # until their requests wait for the parent
    os.kill(relay.process.pid, signal.SIGCONT)
    daemon, *clients = await gatherResults(coming)
    for number, client in enumerate(clients):
        await session(client, daemon, f"session-{number}")


@pytest_twisted.ensureDeferred
async def test_a_killed_worker_frees_its_places(crewed: Crewed) -> None:
    relay = await crewed.relay("a", RELAY_MAX_TOTAL_CONNECTIONS="4")
    there = await both(crewed, relay)
    with pytest.raises(UpgradeRefused):
        await crewed.enter(relay, "client", there[0][0])
    kill((await crewed.pids(relay))[1])
    await there[1][1].ended()
    await until(crewed.reactor, lambda: "worker_lost" in relay.output())
    await crewed.enter(relay, "client", there[0][0])
    await crewed.enter(relay, "client", there[0][0])
    with pytest.raises(UpgradeRefused):
        await crewed.enter(relay, "client", there[0][0])


@pytest_twisted.ensureDeferred
async def test_sigterm_closes_every_peer_with_1001_and_ends_with_status_0(crewed: Crewed) -> None:
    relay = await crewed.relay("a", RELAY_DRAIN_SECONDS="5")
    there = await both(crewed, relay)
    pids = await crewed.pids(relay)
    relay.process.send_signal(signal.SIGTERM)
    for _, daemon, client in there.values():
        for peer in (daemon, client):
            ended = await peer.ended()
            assert (ended.code, ended.reason) == (1001, "relay shutting down")
    assert await deferToThread(relay.stop) == 0
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    events = [json.loads(line)["event"] for line in relay.output().splitlines()]
    assert events.count("leave") == 4 and "relay_stopped" in events and "worker_lost" not in events


@pytest_twisted.ensureDeferred
async def test_workers_end_when_their_parent_is_killed(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    there = await both(crewed, relay)
    pids = await crewed.pids(relay)
    relay.process.kill()
    for _, daemon, client in there.values():
        for peer in (daemon, client):
            assert (await peer.ended()).code == 1001
    await until(crewed.reactor, lambda: not any(_lives(pid) for pid in pids.values()))


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


CAPS = [
    pytest.param({"RELAY_MAX_TOTAL_CONNECTIONS": "3"}, 503, "TOO_MANY_CONNECTIONS", id="total"),
    pytest.param({"RELAY_MAX_CONNECTIONS_PER_IP": "3"}, 429, "TOO_MANY_CONNECTIONS_PER_IP", id="address"),
    pytest.param({"RELAY_RATE_LIMIT_PER_IP": "3"}, 429, "RATE_LIMIT_EXCEEDED", id="rate"),
]


@pytest.mark.parametrize("settings, status, reason", CAPS)
@pytest_twisted.ensureDeferred
async def test_caps_and_rates_hold_over_all_workers(
    crewed: Crewed, settings: dict[str, str], status: int, reason: str
) -> None:
    relay = await crewed.relay("a", **settings)
    peers = [await crewed.enter(relay, "client", crewed.workspace_of(worker)) for worker in (0, 1, 0)]
    for worker in (0, 1):
        with pytest.raises(UpgradeRefused) as refused:
            await crewed.enter(relay, "client", crewed.workspace_of(worker))
        assert (refused.value.status, refused.value.reason) == (status, reason)
    if "RELAY_RATE_LIMIT_PER_IP" in settings:
        return
    peers[0].connection.close()
    await peers[0].ended()
    deadline = crewed.reactor.seconds() + 5
    while True:
        try:
            await crewed.enter(relay, "client", crewed.workspace_of(1))
            return
        except UpgradeRefused:
            assert crewed.reactor.seconds() < deadline
            await deferLater(crewed.reactor, 0.05)


@pytest_twisted.ensureDeferred
async def test_clients_of_a_target_are_capped_by_its_worker(crewed: Crewed) -> None:
    relay = await crewed.relay("a", RELAY_MAX_CLIENTS_PER_WORKSPACE="2")
    for worker in (0, 1):
        workspace = crewed.workspace_of(worker)
        for in_query in (True, False):
            await crewed.enter(relay, "client", workspace, in_query=in_query)
        with pytest.raises(UpgradeRefused) as refused:
            await crewed.enter(relay, "client", workspace)
        assert (refused.value.status, refused.value.reason) == (429, "TOO_MANY_CLIENTS")
