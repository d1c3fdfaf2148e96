"""The examples of docs/how-to/behind-a-proxy.md: real proxies with TLS in front of real relays (see proxies.py).

Peers use loopback addresses other than the proxy's 127.0.0.1.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.drill.certificates import Identity
from tests.drill.peer import PING, PONG, Closed, Peer, Refused, dial, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ADMIN, Relay, until
from tests.integration.proxies import PROXIES, Proxy, block, knows_close_delay, put_in, settings
from tests.ports import free_port
from tests.programs import installed

PER_IP = 3
IDLE = 7.0  # seconds without a message, longer than the proxies' lowered times

#: Operators' paths, in spellings that a proxy or the relay might normalize.
OPERATORS = (
    "/admin/", "/admin/app.js", "/admin/api/overview", "/logs", "/logs?follow=1", "/state", "/metrics", "/ready",
    "/disconnect", "/cache/flush", "//state", "/ws/../state", "/ws/%2e%2e/state", "/STATE", "/%73tate", "/ws/state",
)  # fmt: skip


def proxies(*names: str) -> pytest.MarkDecorator:
    """Parametrize `name` by these proxies, each marked with the program that it needs."""
    marked = [pytest.param(name, marks=getattr(pytest.mark, PROXIES[name].marker)) for name in names]
    return pytest.mark.parametrize("name", marked)


EACH = proxies(*PROXIES)


def peers_of(name: str, case: int, number: int = 1) -> str:
    """A loopback address for one case at one proxy, because the relay counts by address."""
    return f"127.{case}.{list(PROXIES).index(name)}.{number}"


class Idle:
    """A peer in a thread that sends no message for a while, but answers pings."""

    def __init__(self, peer: Peer, seconds: float) -> None:
        self.peer = peer
        self.pings = 0
        self.end: Exception | None = None
        self._deadline = time.monotonic() + seconds
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while (left := self._deadline - time.monotonic()) > 0:
                self.peer.sock.settimeout(left)
                opcode, payload = self.peer.frame()
                assert opcode == PING
                self.pings += 1
                self.peer.send(payload, PONG)
        except TimeoutError:
            pass
        except (Closed, OSError, AssertionError) as end:
            self.end = end
        self.peer.sock.settimeout(20)


# -- relays and proxies -----------------------------------------------------------------------------------------------


class World:
    """Two relays (plain HTTP; TLS and the PROXY protocol), each installed proxy, and a second one of each with
    lowered times, which has idle peers since the start."""

    def __init__(self, folder: Path, platform: FaultyPlatform, exits: ExitStack) -> None:
        self.folder, self.platform = folder, platform
        self.ca = Identity.self_signed("test CA")
        self.tls = self.ca.context()
        self.files = self.ca.issue("proxy", "localhost").write(folder, "relay")
        self.ports = {False: free_port(), True: free_port()}
        self.admin = free_port()
        self.exits = exits
        self.relays = {tcp: self.start(tcp) for tcp in (False, True)}
        for tcp in (False, True):
            self.wait(tcp)
        self.proxies = {name: self._proxy(name) for name in PROXIES if installed(PROXIES[name].marker)}
        haproxy = {"timeout client 60s": "timeout client 2s", "timeout server 60s": "timeout server 2s",
                   "timeout tunnel 10m": "timeout tunnel 5s"}  # fmt: skip
        faster = {
            "nginx": {"timeout 120s": "timeout 5s"},
            "haproxy": haproxy,
            "haproxy-tcp": haproxy,
        }
        self.hasty = {name: self._proxy(name, faster.get(name, {})) for name in self.proxies}
        self.idle: dict[str, tuple[Idle, Idle]] = {}
        for proxy in self.hasty.values():
            try:
                daemon, client = self.pair(proxy, peers_of(proxy.name, 7))
            except (OSError, Refused, Closed) as error:
                raise AssertionError(
                    f"{proxy.name}: {proxy.output()}\n{self.relay(proxy.name).entries()}"
                ) from error
            self.idle[proxy.name] = Idle(daemon, IDLE), Idle(client, IDLE)

    def start(self, tcp: bool) -> Relay:
        given = self.platform.environment() | {
            "RELAY_MAX_CONNECTIONS_PER_IP": str(PER_IP),
            "RELAY_PING_INTERVAL_MS": "2500",
        }
        if tcp:
            given |= settings(PROXIES["haproxy-tcp"].heading) | {
                "RELAY_ADMIN_LISTEN": f"127.0.0.1:{self.admin}"
            }
            given |= {"RELAY_TLS_CERT_PATH": self.files.cert, "RELAY_TLS_KEY_PATH": self.files.key}
        else:
            given |= settings("") | {"RELAY_ADMIN_LISTEN": ""}  # so that only the proxy protects those paths
        return self.exits.enter_context(Relay(given, port=self.ports[tcp]))

    def wait(self, tcp: bool) -> None:
        relay = self.relays[tcp]
        relay.logged("relay_started", 30)
        until(lambda: relay.http("/ready", port=self.admin if tcp else None)[0] == 200, 30, "/ready")

    def _proxy(self, name: str, faster: dict[str, str] | None = None) -> Proxy:
        folder = self.folder / (name if faster is None else f"{name}-hasty")
        proxy = Proxy(name, folder, self.files, self.ports[name == "haproxy-tcp"], faster or {})
        self.exits.callback(proxy.stop)
        return proxy

    def relay(self, name: str) -> Relay:
        return self.relays[name == "haproxy-tcp"]

    def join(self, proxy: Proxy, role: str, workspace: str, source: str, **more: object) -> Peer:
        entry = SimpleNamespace(port=proxy.port, tls=self.tls)
        return Peer.join(entry, self.platform, role, workspace, "t", source=source, **more)

    def status(self, name: str, path: str) -> int:
        """Status of an operator's request through a proxy, with the path unchanged."""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN}\r\nConnection: close\r\n\r\n"
        with dial(self.proxies[name].port, self.tls, source=peers_of(name, 8)) as sock:
            sock.sendall(request.encode())
            return int(sock.recv(4096).split()[1])

    def pair(self, proxy: Proxy, source: str) -> tuple[Peer, Peer]:
        """A daemon and a client in their own workspace."""
        daemon = self.join(proxy, "workspace-daemon", source, source)
        client = self.join(proxy, "client", source, source)
        client.converse(daemon)
        return daemon, client

    def joined(self, name: str, workspace: str) -> list[str]:
        """Addresses that the relay logged for the peers of a workspace."""
        return [
            entry["details"]["ip"]
            for entry in self.relay(name).entries()
            if entry["event"] == "join" and entry["details"]["workspaceId"] == workspace
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, platform: FaultyPlatform) -> Iterator[World]:
    with ExitStack() as exits:
        yield World(tmp_path_factory.mktemp("proxies"), platform, exits)


@EACH
def test_the_proxy_accepts_its_configuration_without_warnings(world: World, name: str) -> None:
    doubts = r"\[(warn|alert|emerg)|\"level\":\"error| (WRN|ERR|FTL) "
    assert not re.search(doubts, world.proxies[name].output(), re.IGNORECASE)


@EACH
def test_frames_of_every_size_in_both_directions(world: World, name: str) -> None:
    daemon, client = world.pair(world.proxies[name], peers_of(name, 1))
    for size in (1, 125, 126, 65_536, 900_000):
        text = e2ee(client.session, size, "x" * size)
        for sender, receiver in ((client, daemon), (daemon, client)):
            sender.send(text)
            assert receiver.text() == text
    for peer in (client, daemon):
        peer.close()


@EACH
def test_the_relay_sees_the_peers_own_address(world: World, name: str) -> None:
    proxy, claimed = world.proxies[name], {"X-Forwarded-For": "203.0.113.9"}
    workspace, mine, another = f"own-{name}", peers_of(name, 2), peers_of(name, 2, 2)
    peers = [world.join(proxy, "workspace-daemon", workspace, mine, headers=claimed)]
    peers += [
        world.join(proxy, "client", workspace, source, headers=claimed) for source in (mine, mine, another)
    ]
    until(lambda: len(world.joined(name, workspace)) == len(peers), 10, "the log")
    assert world.joined(name, workspace) == [mine] * PER_IP + [another]
    with pytest.raises(Refused) as caught:
        world.join(proxy, "client", workspace, mine, headers=claimed)
    assert "x-relay-reason: too_many_connections_per_ip" in caught.value.head.lower()
    for peer in peers:
        peer.close()


@pytest.mark.nginx
def test_a_token_in_the_query_is_not_in_the_access_log(world: World) -> None:
    proxy, source = world.proxies["nginx"], peers_of("nginx", 3)
    token = world.platform.token("client", "w", "t")
    query = {"role": "client", "workspaceId": "w", "runtimeTargetId": "t", "token": token}
    Peer(proxy.port, query, {}, tls=world.tls, source=source).close()
    log = proxy.folder / "access.log"
    until(lambda: source in log.read_text(), 10, "the line of the access log")
    assert re.search(rf'^{source} \[\S+\] "GET /ws" 101 ', log.read_text(), re.MULTILINE)
    signature = token.rpartition(".")[2]
    for text in (log.read_text(), proxy.output(), world.relay("nginx").output()):
        assert signature not in text


@EACH
def test_the_check_of_the_page(world: World, name: str) -> None:
    """The commands of the page, with the test's names of host and CA."""
    proxy = world.proxies[name]
    ca = world.folder / "ca.pem"
    ca.write_bytes(world.ca.cert_pem)
    commands = put_in(
        block("## Check it", "sh"), {"https://relay.example/": f"https://localhost:{proxy.port}/"}
    )
    curl = f'curl() {{ command curl -m 20 --cacert {ca} "$@"; }}\n'
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        ["sh", "-c", curl + commands], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    health, admin = lines[0].partition("}")[::2] if len(lines) == 2 else lines[:2]
    assert health.startswith('{"ok":true,"service":"relay"')
    assert admin == "404"
    assert lines[-1].lower() == "x-relay-reason: query_invalid"


@EACH
@pytest.mark.parametrize("path", ["/ws", "/health", "/.well-known/viewport-relay.json"])
def test_the_paths_of_peers_are_published(world: World, name: str, path: str) -> None:
    assert world.status(name, path) == (426 if path == "/ws" else 200)


@EACH
@pytest.mark.parametrize("path", OPERATORS)
def test_the_paths_of_operators_are_not_published(world: World, name: str, path: str) -> None:
    """Also with a valid token."""
    if name == "haproxy-tcp" and path == "/ready":
        assert world.status(name, path) == 200  # as the page says: a TCP balancer does not see paths
    else:
        assert world.status(name, path) == 404


@pytest.mark.nginx
def test_a_missing_upgrade_header_is_logged(world: World) -> None:
    """The page's paragraph about UPGRADE_REQUIRED."""
    dropped = {
        "proxy_set_header Upgrade $http_upgrade;": "",
        "proxy_set_header Connection $connection_upgrade;": "",
    }
    proxy = Proxy("nginx", world.folder / "dropped", world.files, world.ports[False], dropped)
    try:
        with pytest.raises(Refused) as caught:
            world.join(proxy, "client", "w", peers_of("nginx", 4))
        assert "UPGRADE_REQUIRED" in caught.value.head
    finally:
        proxy.stop()


@proxies("nginx", "caddy", "caddy-new", "traefik")
def test_a_reload_of_the_proxy_keeps_the_peers(world: World, name: str) -> None:
    """Except without `stream_close_delay`, as the page says."""
    proxy = world.proxies[name]
    daemon, client = world.pair(proxy, peers_of(name, 5))
    proxy.reload()
    time.sleep(1)
    if name == "caddy" and not knows_close_delay(name):
        # Such a Caddy sends a Close to both sides, to the relay without a mask. Either Close may reach the peer
        # first.
        assert {daemon.how_it_ends().code, client.how_it_ends().code} <= {1001, 1002}
        entry = world.relays[False].logged("close")
        assert entry["reason"] == "PROTOCOL_ERROR" and "unmasked" in entry["details"]["detail"]
    else:
        client.send(e2ee(client.session))
        assert daemon.text() == e2ee(client.session)
    for peer in [client, daemon, *world.pair(proxy, peers_of(name, 5, 2))]:
        peer.close()


@EACH
def test_idle_peers_stay_connected(world: World, name: str) -> None:
    """Pings arrive in time; in HAProxy `timeout tunnel` applies."""
    daemon, client = world.idle[name]
    for one in (daemon, client):
        one.thread.join(IDLE + 20)
        assert one.end is None, f"after {one.pings} pings: {one.end!r}"
        assert one.pings >= 2
    client.peer.send(e2ee(client.peer.session))
    assert daemon.peer.text() == e2ee(client.peer.session)
    for one in (daemon, client):
        one.peer.close()


def test_peers_reconnect_after_a_restart_of_the_relay(world: World) -> None:
    """Last test, because it replaces the relays."""
    pairs = {name: world.pair(proxy, peers_of(name, 6)) for name, proxy in world.proxies.items()}
    assert pairs, "no proxy is installed"
    ends: list[tuple[str, int]] = []

    def watch(name: str, peer: Peer) -> None:
        ends.append((name, peer.how_it_ends().code))
        peer.close()

    watchers = [threading.Thread(target=watch, args=(name, peer)) for name in pairs for peer in pairs[name]]
    for thread in watchers:
        thread.start()
    for relay in world.relays.values():
        relay.signal(signal.SIGTERM)
    for relay in world.relays.values():
        assert relay.stop() == 0
        assert relay.errors() == []
    for thread in watchers:
        thread.join(20)
    assert sorted(ends) == sorted((name, 1001) for name in pairs for _ in range(2))
    world.relays = {tcp: world.start(tcp) for tcp in (False, True)}
    for tcp in (False, True):
        world.wait(tcp)

    def comes_back(name: str) -> bool:
        try:
            world.join(world.proxies[name], "workspace-daemon", f"again-{name}", peers_of(name, 6, 2)).close()
        except (Refused, OSError):
            return False
        return True

    for name in pairs:
        until(partial(comes_back, name), 20, f"the way back through {name}")
    for relay in world.relays.values():
        assert relay.stop() == 0
