"""From the parent to a worker: proxies' headers, early bytes, several requests, the link, the bus."""

from __future__ import annotations

import json
import socket
import time

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.threads import deferToThread

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.fleet import ADMIN_TOKEN, e2ee, init, session, until
from tests.integration.relayprocess import RelayProcess
from tests.integration.workers.crewed import Crewed
from tests.ports import free_port
from viewport_relay.peer.base64url import decode
from viewport_relay.peer.connection import connect
from viewport_relay.peer.link import LinkSettings, generate_static
from viewport_relay.peer.upgrade import Destination

MASK = b"\x00\x00\x00\x00"


def exchange(port: int, *pieces: bytes, until: bytes = b"\r\n\r\n") -> bytes:
    """Send bytes on one connection, and read until `until` arrives or the relay closes. Blocks."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        for piece in pieces:
            sock.sendall(piece)
        got = b""
        while until not in got:
            more = sock.recv(65_536)
            if not more:
                break
            got += more
        return got


def upgrade(crewed: Crewed, workspace: str, *headers: str, token: str | None = None) -> bytes:
    token = token or crewed.platform.issue("client", workspace, crewed.target, scope="runtime", clientId="c")
    lines = [
        f"GET /ws?role=client&workspaceId={workspace}&runtimeTargetId={crewed.target} HTTP/1.1",
        "Host: relay", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Authorization: Bearer {token}", *headers, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


async def joined_from(crewed: Crewed, relay: RelayProcess) -> list[str]:
    return [e["details"]["ip"] for e in await crewed.logs(relay) if e["event"] == "join"]


@pytest_twisted.ensureDeferred
async def test_a_frame_in_the_upgrades_tcp_segment_is_handled(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    for worker in (0, 1):
        workspace = crewed.workspace_of(worker)
        daemon = await crewed.enter(relay, "workspace-daemon", workspace)
        text = json.dumps(init()).encode()
        frame = b"\x81\xfe" + len(text).to_bytes(2, "big") + MASK + text
        got = await deferToThread(exchange, relay.port, upgrade(crewed, workspace) + frame)
        assert got.startswith(b"HTTP/1.1 101")
        assert await daemon.hear() == text.decode()


@pytest_twisted.ensureDeferred
async def test_an_upgrade_in_pieces_and_behind_another_request(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    asked = upgrade(crewed, crewed.workspace_of(1))
    pieces = [asked[at : at + 60] for at in range(0, len(asked), 60)]
    assert (await deferToThread(exchange, relay.port, *pieces)).startswith(b"HTTP/1.1 101")
    health = b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n"
    got = await deferToThread(exchange, relay.port, health + health + asked, until=b"101 Switching")
    assert got.count(b"200 OK") == 2 and got.index(b"200 OK") < got.index(b"101 Switching")


@pytest_twisted.ensureDeferred
async def test_the_address_is_that_of_the_forwarded_header(crewed: Crewed) -> None:
    relay = await crewed.relay("a", RELAY_TRUSTED_PROXIES="127.0.0.1", RELAY_MAX_CONNECTIONS_PER_IP="1")
    asked = upgrade(crewed, crewed.workspace_of(1), "X-Forwarded-For: 198.51.100.9, 192.0.2.7")
    with socket.create_connection(("127.0.0.1", relay.port), 10) as sock:
        sock.sendall(asked)
        assert (await deferToThread(sock.recv, 12)) == b"HTTP/1.1 101"
        got = await deferToThread(exchange, relay.port, asked)
        assert got.startswith(b"HTTP/1.1 429") and b"TOO_MANY_CONNECTIONS_PER_IP" in got
    assert await joined_from(crewed, relay) == ["192.0.2.7"]


@pytest_twisted.ensureDeferred
async def test_proxy_protocol_ends_in_the_parent(crewed: Crewed) -> None:
    relay = RelayProcess(
        {
            **crewed.platform.relay_environment(), **crewed.settings, "RELAY_PROXY_PROTOCOL": "1",
            "RELAY_ADMIN_TOKEN": ADMIN_TOKEN, "RELAY_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
        }
    )  # fmt: skip
    crewed.running.append(relay)
    line = b"PROXY TCP4 192.0.2.99 127.0.0.1 4444 7781\r\n"
    asked = upgrade(crewed, crewed.workspace_of(1))
    await deferToThread(_until_workers_are_up, relay)
    got = await deferToThread(exchange, relay.port, line + asked)
    assert got.startswith(b"HTTP/1.1 101"), got
    refused = await deferToThread(exchange, relay.port, line + upgrade(crewed, "other", token="x" * 20))
    assert b"JWT_MALFORMED" in refused
    # The worker can respond before the parent has read the worker's log line.
    await until(crewed.reactor, lambda: '"ip":"192.0.2.99"' in relay.output())
    assert (await deferToThread(exchange, relay.port, asked)) == b""


def _until_workers_are_up(relay: RelayProcess) -> None:
    # Before that the parent accepts no connection, and on a busy machine `exchange` would time out.
    deadline = time.monotonic() + 60
    while relay.output().count('"worker_started"') < 2:
        assert time.monotonic() < deadline and relay.process.poll() is None, relay.output()
        time.sleep(0.05)


@pytest_twisted.ensureDeferred
async def test_every_worker_has_the_published_key(crewed: Crewed) -> None:
    relay = await crewed.relay("a")
    shown = (await deferToThread(relay.ask, "GET", "/.well-known/viewport-relay.json")).json()
    key = decode(shown["noisePublicKey"], "the relay's key")
    for worker in (0, 1):
        workspace = crewed.workspace_of(worker)
        link = LinkSettings(key, generate_static(), "workspace-daemon", workspace, crewed.target)
        destination = Destination(relay.ws, "workspace-daemon", workspace, crewed.target, link=link)
        token = crewed.platform.issue("workspace-daemon", workspace, crewed.target)
        connection = await connect(crewed.reactor, destination, token, lambda text: None)  # or it raises
        connection.close()


@pytest.mark.redis
@pytest_twisted.ensureDeferred
async def test_each_worker_is_a_relay_on_the_bus(crewed: Crewed, redis: RedisServer) -> None:
    crewed.redis = redis
    bus = {
        "RELAY_BACKPLANE_MODE": "redis",
        "RELAY_REDIS_URL": redis.url,
        "RELAY_CLIENT_REDIRECT_ENABLED": "0",
    }
    a, b = await crewed.relay("a", **bus), await crewed.relay("b", **bus, RELAY_WORKERS="1")
    for worker in (0, 1):
        crewed.workspace = crewed.workspace_of(worker)
        daemon = await crewed.enter(a, "workspace-daemon", crewed.workspace)
        await crewed.announced(f"a-w{worker}")
        assert crewed.presence()["relayWsBaseUrl"] == a.ws
        client = await crewed.enter(b, "client", crewed.workspace)
        await session(client, daemon)
        said = client.say(e2ee())
        assert await daemon.hear() == said
