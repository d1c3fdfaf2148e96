"""A relay behind a proxy on a Unix-domain socket: each client's address is the one that the proxy forwards."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.drill.peer import Peer, Refused
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, until


class At:
    """Address of the relay, for peers."""

    tls = None

    def __init__(self, path: Path) -> None:
        self.port = path


def client(at: At, platform: FaultyPlatform, address: str) -> Peer:
    query = {"role": "client", "workspaceId": "w", "runtimeTargetId": "t"}
    token = platform.token("client", "w", "t")
    where: Any = at.port
    return Peer(where, query, {"Authorization": f"Bearer {token}", "X-Forwarded-For": address})


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "not trusted"])
def test_caps_are_by_client_where_the_proxy_is_trusted(
    platform: FaultyPlatform, tmp_path: Path, workers: str, trusted: bool
) -> None:
    at = At(tmp_path / "relay.sock")
    settings = {
        "RELAY_LISTEN_ENDPOINT": f"unix:{at.port}",
        "RELAY_MAX_CONNECTIONS_PER_IP": "2",
        "RELAY_WORKERS": workers,
        "RELAY_TRUSTED_PROXIES": "unix:" if trusted else "",
    }
    with Relay(platform.environment() | settings) as relay:
        relay.logged("relay_started", 30)
        until(lambda: platform.asked_for_keys, 10, "the key set")
        daemon = Peer.daemon(at, platform, "w", "t")
        peers = [client(at, platform, f"198.51.100.{n}:4711") for n in range(1, 2 if not trusted else 4)]
        peers[-1].converse(daemon)
        last = "198.51.100.1"
        if trusted:
            peers.append(client(at, platform, last))
        with pytest.raises(Refused) as refused:
            client(at, platform, last)
        assert refused.value.status == 429 and "TOO_MANY_CONNECTIONS_PER_IP" in refused.value.head
        [entry] = [e for e in relay.entries() if e.get("reason") == "TOO_MANY_CONNECTIONS_PER_IP"]
        warnings = [e["message"] for e in relay.entries() if e["event"] == "config_warning"]
        if trusted:
            assert entry["details"]["ip"] == last and "hint" not in entry["details"]
        else:
            assert (
                entry["details"]["ip"] == "unix" and "RELAY_TRUSTED_PROXIES=unix:" in entry["details"]["hint"]
            )
        assert any("RELAY_TRUSTED_PROXIES=unix:" in text for text in warnings) is not trusted
        for peer in (*peers, daemon):
            peer.close()
        assert relay.stop() == 0
        assert relay.errors() == []


def test_plain_http_on_a_unix_socket(platform: FaultyPlatform, tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with Relay(platform.environment() | {"RELAY_LISTEN_ENDPOINT": f"unix:{path}"}) as relay:
        relay.logged("relay_started", 30)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            sock.sendall(
                b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            answer = b""
            while piece := sock.recv(65_536):
                answer += piece
        assert answer.count(b"HTTP/1.1 200 ") == 2 and answer.endswith(b"}")
        assert relay.stop() == 0
