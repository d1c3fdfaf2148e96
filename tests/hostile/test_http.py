"""HTTP that is slow, endless, oversized or excessive: the relay ends it at little cost, and peers are not affected."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.drill.peer import Peer, Refused, dial, e2ee, upgrade_request
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until

HASTE = "import viewport_relay.wire.channel as channel\nchannel.REQUEST_TIMEOUT = 2\nchannel.LINGER = 1"


@pytest.fixture(scope="module")
def relay(platform: FaultyPlatform) -> Iterator[Relay]:
    with running(platform.environment() | {"RELAY_HTTP_KEEP_ALIVE_SEC": "2"}, before=HASTE) as made:
        yield made
        assert made.errors() == []


def talk(daemon: Peer, client: Peer, times: int = 5) -> None:
    for n in range(1, times + 1):
        client.send(e2ee(client.session, n))
        assert daemon.text() == e2ee(client.session, n)


def answer(sock: socket.socket) -> bytes:
    """All bytes up to the end of the connection."""
    data = b""
    try:
        while piece := sock.recv(65_536):
            data += piece
    except ConnectionError:
        pass
    return data


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(
            [b"GET /ws HTTP/1.1\r\n"] + [b"X-%d: y\r\n" % n for n in range(200)], id="a line now and then"
        ),
        pytest.param([bytes([b]) for b in b"GET /health HTTP/1.1\r\nHost: " + b"x" * 200], id="byte by byte"),
        pytest.param(
            [b"POST /disconnect HTTP/1.1\r\nContent-Length: 200\r\n\r\n"] + [b"x"] * 100, id="a body"
        ),
        pytest.param([b"\r\n"] * 200, id="empty lines"),
    ],
)
def test_a_request_that_drips_is_ended_after_its_time(relay: Relay, parts: list[bytes]) -> None:
    with dial(relay.port) as sock:
        began = time.monotonic()
        with pytest.raises(OSError):  # reset or broken pipe
            for part in parts:
                sock.sendall(part)
                time.sleep(0.1)
            answer(sock)
            sock.sendall(b"x")
            sock.sendall(b"x")
        assert time.monotonic() - began < 12


def test_a_late_request_is_408(relay: Relay) -> None:
    with dial(relay.port) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHo")
        assert answer(sock).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_without_a_response(relay: Relay) -> None:
    with dial(relay.port) as sock:
        assert answer(sock) == b""


def test_requests_one_after_the_other_each_have_their_time(relay: Relay) -> None:
    with dial(relay.port) as sock:
        for _ in range(6):
            time.sleep(0.7)
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(10_000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /ws HTTP/1.1\r\n" + b"X: " + b"y" * 17_000, b"431"),
        (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (
            b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(400)) + b"\r\n",
            b"400",
        ),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"A:\r\n" for _ in range(600)) + b"\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" + b" c\r\n" * 9000 + b"\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 1000, b"413"),
        (b"POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nContent-Length: 16385\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 1000, b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\nA: b\r\nC: d\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nContent-Length: x\r\nA: b\r\nC: d\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"\x00\x01\x02\x03\r\n\r\n", b"400"),
        (b"GET http://[::1 HTTP/1.1\r\nHost: [\r\n\r\n", b"400"),
        (b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n", b"400"),
    ],
)
def test_oversized_and_broken_requests(relay: Relay, request_head: bytes, status: bytes) -> None:
    with dial(relay.port) as sock:
        try:
            sock.sendall(request_head)
            got = answer(sock)
        except ConnectionError:
            got = b""  # a reset during the sending is as good
        assert got == b"" or got.split()[1] == status
    assert got.count(b"HTTP/1.1") <= 1
    assert relay.http("/health")[0] == 200


def test_a_long_body_is_not_kept_anywhere(relay: Relay) -> None:
    before = relay.rss()
    with dial(relay.port) as sock, pytest.raises(OSError):
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(400):
            sock.sendall(b"x" * 262_144)
        raise BrokenPipeError
    assert relay.rss() - before < 20_000_000


def test_bodies_of_strangers_fill_no_memory(relay: Relay) -> None:
    """Each connection kept 64 KiB for 15 s, of a body that was refused or never ended."""
    before = relay.rss()
    with contextlib.ExitStack() as held:
        for number in range(300):
            sock = held.enter_context(dial(relay.port))
            length = (60_000, 16_384)[number % 2]
            sock.sendall(b"POST /disconnect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
            with contextlib.suppress(OSError):  # refused and closed at once
                sock.sendall(b"x" * (length - 1))
        assert relay.http("/health")[0] == 200
        assert relay.rss() - before < 10_000_000


def test_endless_pipelining_is_bounded(relay: Relay) -> None:
    before = relay.rss()
    with dial(relay.port) as sock:
        sock.settimeout(0.5)
        sent = 0
        try:
            while sent < 50_000_000:
                sent += sock.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        except OSError:
            pass
    assert relay.rss() - before < 30_000_000
    assert relay.http("/health")[0] == 200


def test_idle_connections_of_one_address_are_bounded(platform: FaultyPlatform) -> None:
    limit = {"RELAY_MAX_CONNECTIONS_PER_IP": "20"}
    with running(platform.environment() | limit) as relay:
        daemon = Peer.daemon(relay, platform, "w", "t")
        client = Peer.client(relay, platform, "w", "t")
        client.converse(daemon)
        idle = [dial(relay.port) for _ in range(300)]
        until(lambda: relay.descriptors() < 90, 10, "fewer descriptors")
        talk(daemon, client)
        assert relay.http("/health")[0] == 200
        newcomer = Peer.client(relay, platform, "w", "t")
        newcomer.converse(daemon)
        # The longest idle connections were closed first: the newest are still open.
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[-1].recv(1000).startswith(b"HTTP/1.1 200")
        idle[0].settimeout(5)
        assert answer(idle[0]) == b""
        for sock in idle:
            sock.close()
        for peer in (daemon, client, newcomer):
            peer.close()
        (first, *_) = (entry for entry in relay.entries() if entry["event"] == "http_dropped")
        assert first["reason"] == "TOO_MANY_CONNECTIONS_PER_IP" and first["details"]["ip"] == "127.0.0.1"
        assert "more than twice RELAY_MAX_CONNECTIONS_PER_IP=" in first["details"]["detail"]


def test_idle_connections_cannot_use_up_the_descriptors(platform: FaultyPlatform) -> None:
    """160 descriptors in all, 64 of them reserved; 400 idle connections."""
    with running(platform.environment(), nofile=160) as relay:
        daemon = Peer.daemon(relay, platform, "w", "t")
        client = Peer.client(relay, platform, "w", "t")
        client.converse(daemon)
        idle = [dial(relay.port) for _ in range(400)]
        until(lambda: relay.descriptors() < 130, 10, "fewer descriptors")
        talk(daemon, client)
        # The relay still reaches the platform and admits a new peer.
        newcomer = Peer.client(relay, platform, "w", "t")
        newcomer.converse(daemon)
        cpu = relay.cpu()
        time.sleep(1.0)
        assert relay.cpu() - cpu < 0.5
        for sock in idle:
            sock.close()
        until(lambda: relay.descriptors() < 30, 20, "the descriptors to be free again")
        for peer in (daemon, client, newcomer):
            peer.close()
        warned = [entry["message"] for entry in relay.entries() if entry["event"] == "config_warning"]
        assert any("160 files" in message for message in warned)


def test_more_upgrades_than_descriptors(platform: FaultyPlatform) -> None:
    with running(platform.environment(), nofile=128) as relay:
        joined: list[Peer] = []
        refused = 0
        for n in range(120):
            try:
                joined.append(Peer.daemon(relay, platform, f"w{n}", "t"))
            except (Refused, OSError):
                refused += 1
        assert len(joined) == 128 - 64 - 16 and refused == 120 - len(joined)
        assert relay.http("/health")[0] == 200  # full, but healthy
        client = None
        joined.pop().close()
        joined.pop().close()

        def again() -> Peer | None:
            try:
                return Peer.client(relay, platform, "w0", "t")
            except (Refused, OSError):
                return None

        client = until(again, 10, "a place that was freed")
        client.converse(joined[0])
        talk(joined[0], client)
        for peer in (*joined, client):
            peer.close()
        assert relay.errors("TOO_MANY_CONNECTIONS") == []


def test_early_frames_are_kept_within_bounds(relay: Relay, platform: FaultyPlatform) -> None:
    """Frames sent before the 101 are kept, then handled; back-pressure stops a flood of them."""
    platform.mode, platform.delay = "slow", 0.5
    try:
        daemon = Peer.daemon(relay, platform, "early", "t")
        from tests.drill.peer import kex_init
        from tests.wireframes import masked_frame

        init = kex_init("early-1")
        client = Peer.client(relay, platform, "early", "t", early=masked_frame(1, init.encode()))
        assert daemon.text() == init
        client.close()
        daemon.close()
        token = platform.token("client", "early", "t")
        with dial(relay.port) as sock:
            sock.settimeout(0.2)
            sock.sendall(
                upgrade_request(
                    "/ws?role=client&workspaceId=early&runtimeTargetId=t",
                    {"Authorization": f"Bearer {token}"},
                )
            )
            sent = 0
            before = relay.rss()
            try:
                while sent < 100_000_000:
                    sent += sock.send(b"\x81\xfe\xff\xff" + b"x" * 65_000)
            except OSError:
                pass
            assert relay.rss() - before < 20_000_000
    finally:
        platform.mode = "ok"
