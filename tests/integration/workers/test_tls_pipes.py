"""TLS with several workers: the process that ends TLS, the client's address, the loss of a worker, a stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.certificates import Identity
from tests.drill.peer import Closed, Peer, Refused, dial, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until
from viewport_relay.workers.passing import slot

WORKSPACES = {index: next(f"w{n}" for n in range(100) if slot(f"w{n}", 2) == index) for index in (0, 1)}


@pytest.fixture
def relay(tmp_path: Path, platform: FaultyPlatform) -> Iterator[Relay]:
    ca = Identity.self_signed("test CA")
    files = ca.issue("relay", "localhost").write(tmp_path, "relay")
    settings = {
        "RELAY_TLS_CERT_PATH": files.cert,
        "RELAY_TLS_KEY_PATH": files.key,
        "RELAY_WORKERS": "2",
        "RELAY_TRUSTED_PROXIES": "127.0.0.9",
    }
    with running(platform.environment() | settings, tls=ca.context()) as made:
        yield made


def pair(relay: Relay, platform: FaultyPlatform, workspace: str) -> tuple[Peer, Peer]:
    daemon = Peer.daemon(relay, platform, workspace, "t")
    client = Peer.client(relay, platform, workspace, "t")
    client.converse(daemon)
    return daemon, client


def accepted_by(relay: Relay) -> list[int]:
    """Number of TCP connections to the relay's port in each worker."""
    inodes = {
        f"socket:[{line.split()[9]}]"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[1].rpartition(":")[2], 16) == relay.port
    }
    held = []
    for pid in relay.workers():
        names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        held.append(sum(name in inodes for name in names))
    return held


def test_the_workers_end_tls_in_turn(relay: Relay, platform: FaultyPlatform) -> None:
    peers = [peer for index in (0, 1) for peer in pair(relay, platform, WORKSPACES[index])]
    assert accepted_by(relay) == [2, 2]
    for daemon, client in zip(peers[::2], peers[1::2], strict=True):
        text = e2ee(client.session, 1, "x" * 900_000)
        client.send(text)
        assert daemon.text() == text
    for peer in peers:
        peer.close()
    until(lambda: relay.accepted() == 0, 15, "the end of all connections")
    assert relay.errors() == []


def test_the_clients_address(relay: Relay, platform: FaultyPlatform) -> None:
    """The parent reads the request from a socket pair, but counts the address of the TCP connection."""
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    peers = [
        Peer.daemon(relay, platform, "w0", "t", headers=forwarded, source="127.0.0.9"),
        Peer.client(relay, platform, "w0", "t", headers=forwarded, source="127.0.0.5"),
    ]

    def joins() -> list[str]:
        return [entry["details"]["ip"] for entry in relay.entries() if entry["event"] == "join"]

    assert until(lambda: len(joins()) == 2 and joins(), 10) == ["203.0.113.7", "127.0.0.5"]
    for peer in peers:
        peer.close()


def test_a_lost_worker_ends_the_connections_whose_tls_it_carries(
    relay: Relay, platform: FaultyPlatform
) -> None:
    pairs = [pair(relay, platform, WORKSPACES[index]) for index in (0, 1)]
    lost, kept = relay.workers()
    os.kill(lost, signal.SIGKILL)
    ended = 0
    for peer in (peer for both in pairs for peer in both):
        peer.sock.settimeout(2)
        try:
            peer.frame()
        except (Closed, OSError) as error:
            ended += not isinstance(error, TimeoutError)
    assert ended >= 2  # half of them by TLS, and those of the worker's workspace
    for peer in (peer for both in pairs for peer in both):
        peer.close()  # a daemon that is left would keep its seat for a pong time-out: its peer answers no ping
    until(lambda: kept in relay.workers() and len(relay.workers()) == 2, 20, "another worker")

    def again() -> bool:
        try:
            for index in (0, 1):
                for peer in pair(relay, platform, WORKSPACES[index]):
                    peer.close()
        except (Closed, Refused, OSError):
            time.sleep(0.2)
            return False
        return True

    until(again, 20, "peers of both workspaces")
    for peer in (peer for both in pairs for peer in both):
        peer.close()
    until(lambda: relay.accepted() == 0, 15, "the end of all connections")


def test_a_stop_closes_every_peer_1001(relay: Relay, platform: FaultyPlatform) -> None:
    peers = [peer for index in (0, 1) for peer in pair(relay, platform, WORKSPACES[index])]
    silent = dial(relay.port)  # never starts TLS
    relay.signal(signal.SIGTERM)
    for peer in peers:
        assert peer.how_it_ends().code == 1001
    assert relay.process.wait(20) == 0
    assert relay.errors() == []
    silent.close()
