"""A peer that closes leaves routing at once, and its socket is closed within 10 s: every way, state and road.

Ways: a Close frame, TLS close_notify with and without FIN, FIN, RST. States: it is idle, its queue is full, it waits in a
contest, an admission or a link handshake, it is paused, its HTTP response is not read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.drill.certificates import Identity
from tests.drill.peer import BINARY, CLOSE, Closed, Peer, dial, e2ee, kex_init, kex_response, upgrade_request
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ADMIN, Relay, running, until
from tests.wireframes import masked_frame
from viewport_relay.noise.keys import decode_key
from viewport_relay.peer.link import SUBPROTOCOL, LinkInitiator, LinkSettings, generate_static

#: Seconds until the peer has left routing, and until its descriptor is closed: 10, and one for a busy machine.
AT_ONCE: Final = 2.0
CLOSED: Final = 11.0

WAYS: Final = ("Close frame", "close_notify", "close_notify and FIN", "FIN", "RST")
_numbers = itertools.count(1)


# Workers only in the slow tests: in CI the acceptance cases cover them (`make roads`).
@pytest.fixture(
    scope="module",
    params=[
        "plain",
        "tls",
        pytest.param("workers", marks=pytest.mark.slow),
        pytest.param("tls with workers", marks=pytest.mark.slow),
    ],
)
def relay(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, platform: FaultyPlatform
) -> Iterator[Relay]:
    settings = platform.environment() | {
        "RELAY_PING_INTERVAL_MS": "60000",
        "RELAY_PONG_TIMEOUT_MS": "30000",
        "RELAY_VALIDATE_CACHE_TTL": "0",
        "RELAY_ADMISSION_TIMEOUT_MS": "30000",
    }
    context = None
    if request.param.startswith("tls"):
        ca = Identity.self_signed("test CA")
        files = ca.issue("relay", "localhost").write(tmp_path_factory.mktemp("tls"), "relay")
        settings |= {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
        context = ca.context()
    if request.param.endswith("workers"):
        settings |= {"RELAY_WORKERS": "2"}
    with running(settings, tls=context) as made:
        yield made
        assert made.errors() == []


@pytest.fixture(params=WAYS)
def goes(request: pytest.FixtureRequest, relay: Relay) -> Callable[[socket.socket], None]:
    """Closes the peer of this socket; the test keeps the descriptor open and reads no more."""
    way: str = request.param
    if relay.tls is None and way.startswith("close_notify"):
        way = "FIN"  # the equivalent without TLS

    def go(sock: socket.socket) -> None:
        if way == "Close frame":
            sock.sendall(masked_frame(CLOSE, b"\x03\xe8"))
            return
        if way.startswith("close_notify"):
            sock.settimeout(0.1)
            with contextlib.suppress(OSError):
                sock.unwrap()  # type: ignore[attr-defined]  # a TLS socket
        if way == "RST":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        elif way != "close_notify":
            sock.shutdown(socket.SHUT_WR)

    go.__name__ = way
    return go


class Watch:
    """The relay's state of one workspace, and the number of connections."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.workspace = f"gone-{next(_numbers)}"

    def target(self) -> dict[str, object]:
        return next(t for t in self.relay.state() if t["workspaceId"] == self.workspace)

    def until_clients(self, count: int) -> None:
        until(lambda: self.target()["clientCount"] == count, AT_ONCE, f"{count} clients")

    def until_daemon(self, connected: bool) -> None:
        until(lambda: self.target()["daemonConnected"] is connected, AT_ONCE, f"daemonConnected {connected}")

    def until_connections(self, count: int) -> None:
        """Wait for this many; the connection of the previous `/state` request must have ended too."""
        until(lambda: self.relay.accepted() == count, CLOSED, f"{count} connections")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's entries of this event and of the workspace."""
        return [
            entry
            for entry in self.relay.entries()
            if entry["event"] == event and entry.get("details", {}).get("workspaceId") == self.workspace
        ]

    def says(self, event: str) -> bool:
        """Whether the log has this event of the workspace."""
        return bool(self.logged(event))


@pytest.fixture
def watch(relay: Relay) -> Watch:
    until(lambda: relay.accepted() == 0, CLOSED, "the end of earlier connections")
    return Watch(relay)


@pytest.mark.parametrize("role", ["client", "daemon"])
def test_an_idle_peer(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None], role: str
) -> None:
    daemon = Peer.daemon(watch.relay, platform, watch.workspace, "t")
    client = Peer.client(watch.relay, platform, watch.workspace, "t")
    client.converse(daemon)
    goes(client.sock if role == "client" else daemon.sock)
    if role == "client":
        watch.until_clients(0)
    else:
        watch.until_daemon(False)
    watch.until_connections(1)
    until(lambda: watch.says("leave"), AT_ONCE, "the entry of the leave")
    how = "closed by peer" if goes.__name__ == "Close frame" else "connection lost"
    assert watch.logged("leave")[0]["message"] == how
    client.close()
    daemon.close()


@pytest.mark.parametrize(("frames", "size"), [(1, 900_000), (3, 900_000), (4, 900_000), (12, 200_000)])
def test_a_client_whose_queue_is_full(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None], frames: int, size: int
) -> None:
    daemon = Peer.daemon(watch.relay, platform, watch.workspace, "t")
    client = Peer.client(watch.relay, platform, watch.workspace, "t", receive_buffer=8192)
    client.converse(daemon)
    for n in range(frames):
        daemon.send(e2ee(client.session, n, "x" * size))
    time.sleep(0.3)
    watch.until_clients(1)
    goes(client.sock)
    watch.until_clients(0)
    watch.until_connections(1)
    client.close()
    daemon.close()


def test_a_daemon_whose_queue_is_full(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None]
) -> None:
    """The clients that were paused for the daemon are read again."""
    daemon = Peer.daemon(watch.relay, platform, watch.workspace, "t", receive_buffer=8192)
    client = Peer.client(watch.relay, platform, watch.workspace, "t")
    client.converse(daemon)
    client.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            client.send(e2ee(client.session, 1, "x" * 500_000))
    client.sock.settimeout(20)
    goes(daemon.sock)
    watch.until_daemon(False)
    watch.until_connections(1)
    client.close()
    daemon.close()


def test_a_daemon_that_waits_in_a_contest(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None]
) -> None:
    holder = Peer.daemon(watch.relay, platform, watch.workspace, "t")  # answers no ping
    challenger = Peer.daemon(watch.relay, platform, watch.workspace, "t")
    goes(challenger.sock)
    watch.until_connections(1)
    holder.close()
    watch.until_daemon(False)
    challenger.close()


def test_a_daemon_that_is_contested(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None]
) -> None:
    """The waiting daemon gets the seat at once."""
    holder = Peer.daemon(watch.relay, platform, watch.workspace, "t")
    challenger = Peer.daemon(watch.relay, platform, watch.workspace, "t")
    client = Peer.client(watch.relay, platform, watch.workspace, "t")
    began = time.monotonic()
    goes(holder.sock)
    until(lambda: watch.says("leave"), AT_ONCE, "the end of the holder")
    client.converse(challenger)
    assert time.monotonic() - began < 5
    for peer in (holder, challenger, client):
        peer.close()


@pytest.mark.parametrize("goes", [way for way in WAYS if way != "Close frame"], indirect=True)
def test_a_peer_that_waits_for_its_admission(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None]
) -> None:
    """A Close frame sent before the 101 is read after it."""
    platform.mode = "hang"
    try:
        sock = dial(watch.relay.port, watch.relay.tls)
        token = platform.token("client", watch.workspace, "t")
        path = f"/ws?role=client&workspaceId={watch.workspace}&runtimeTargetId=t"
        asked = platform.validated
        sock.sendall(upgrade_request(path, {"Authorization": f"Bearer {token}"}))
        until(lambda: platform.validated > asked, 5, "the question to the platform")
        goes(sock)
        watch.until_connections(0)
        sock.close()
    finally:
        platform.mode = "ok"


@pytest.mark.parametrize("stage", ["before message 1", "after message 2", "its queue is full"])
def test_a_peer_with_a_link(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None], stage: str
) -> None:
    daemon = Peer.daemon(watch.relay, platform, watch.workspace, "t")
    headers = {"Sec-WebSocket-Protocol": SUBPROTOCOL}
    peer = Peer.client(watch.relay, platform, watch.workspace, "t", headers=headers, receive_buffer=8192)
    if stage != "before message 1":
        key = decode_key(
            json.loads(watch.relay.http("/.well-known/viewport-relay.json")[1])["noisePublicKey"]
        )
        assert key is not None
        link = LinkInitiator(LinkSettings(key, generate_static(), "client", watch.workspace, "t"))
        peer.send(link.message_1(), BINARY)
        link.read_message_2(peer.message())
        if stage != "after message 2":
            peer.send(link.confirm(), BINARY)
            peer.send(link.seal(kex_init("request-1").encode()), BINARY)
            assert json.loads(daemon.text())["requestId"] == "request-1"
            daemon.send(kex_response("request-1", peer.session))
            assert json.loads(link.open(peer.message()))["sessionId"] == peer.session
            watch.until_clients(1)
    if stage == "its queue is full":
        for n in range(1, 5):
            daemon.send(e2ee(peer.session, n, "x" * 900_000))
        time.sleep(0.3)
    goes(peer.sock)
    watch.until_clients(0)
    watch.until_connections(1)
    peer.close()
    daemon.close()


@pytest.mark.parametrize("goes", [way for way in WAYS if way != "Close frame"], indirect=True)
def test_an_answer_over_http_that_is_not_read(watch: Watch, goes: Callable[[socket.socket], None]) -> None:
    sock = dial(watch.relay.port, watch.relay.tls, receive_buffer=8192)
    ask = f"GET /admin/ HTTP/1.1\r\nHost: localhost\r\nX-Relay-Admin-Token: {ADMIN}\r\n\r\n".encode()
    sock.sendall(ask * 200)
    time.sleep(0.5)
    goes(sock)
    watch.until_connections(0)
    sock.close()


def flooded(watch: Watch, platform: FaultyPlatform) -> tuple[Peer, Peer]:
    """A daemon that does not read, and a client that sends until back-pressure stops the relay's reading."""
    daemon = Peer.daemon(watch.relay, platform, watch.workspace, "t", receive_buffer=8192)
    flood = Peer.client(watch.relay, platform, watch.workspace, "t")
    flood.converse(daemon)
    flood.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            flood.send(e2ee(flood.session, 1, "x" * 500_000))
    return daemon, flood


@pytest.mark.parametrize("goes", ["close_notify and FIN", "FIN", "RST"], indirect=True)
def test_a_client_that_is_paused_for_a_slow_daemon(
    watch: Watch, platform: FaultyPlatform, goes: Callable[[socket.socket], None]
) -> None:
    """Frames sent before the FIN still reach the daemon."""
    daemon, flood = flooded(watch, platform)
    client = Peer.client(watch.relay, platform, watch.workspace, "t")
    sent = [e2ee("of nobody", n, "y" * 1000) for n in range(1, 30)]
    for text in sent:
        client.send(text)
        time.sleep(0.005)  # separate reads: the first one pauses the client
    watch.until_clients(2)
    goes(client.sock)
    watch.until_clients(1)
    watch.until_connections(2)
    flood.close()
    if goes.__name__ != "RST":
        heard: list[str] = []
        with contextlib.suppress(TimeoutError, Closed):
            daemon.sock.settimeout(3)
            while len(heard) < len(sent):
                heard += [text for text in (daemon.text(),) if "of nobody" in text]
        assert heard == sent
    client.close()
    daemon.close()
