"""Faults around one relay process, one drill each; the assertions are the promises of docs/topics/resilience.md.

Invariants: connected peers keep communicating, new peers get the cause of their refusal, the log has no unhandled error, and
after the fault the relay works again without a restart.
"""

from __future__ import annotations

import concurrent.futures
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.drill.peer import CLOSE, Peer, Refused, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until

FAST = {"RELAY_ADMISSION_TIMEOUT_MS": "700", "RELAY_VALIDATE_CACHE_TTL": "0", "RELAY_JWKS_COOLDOWN": "1"}

#: Expected at level error while the platform is at fault; any other error is a bug of the relay.
OF_THE_PLATFORM = ("PLATFORM_UNREACHABLE", "VALIDATION_RESPONSE_INVALID", "ADMISSION_RESPONSE_TOO_LARGE",
                   "JWKS_UNREACHABLE")  # fmt: skip


slow = pytest.mark.slow


@pytest.fixture
def platform() -> Iterator[FaultyPlatform]:
    with FaultyPlatform() as made:
        yield made


class Pair:
    """A connected daemon and client."""

    def __init__(self, relay: Relay, platform: FaultyPlatform, workspace: str = "steady") -> None:
        self.daemon = Peer.daemon(relay, platform, workspace, "t")
        self.client = Peer.client(relay, platform, workspace, "t")
        self.client.converse(self.daemon)
        self.number = 0

    def talk(self, times: int = 10) -> float:
        """Exchange messages; returns the longest round trip in seconds."""
        longest = 0.0
        for _ in range(times):
            self.number += 1
            text = e2ee(self.client.session, self.number)
            began = time.monotonic()
            self.client.send(text)
            assert self.daemon.text() == text
            self.daemon.send(text)
            assert self.client.text() == text
            longest = max(longest, time.monotonic() - began)
        return longest

    def close(self) -> None:
        self.daemon.close()
        self.client.close()


def refusal(relay: Relay, platform: FaultyPlatform, **more: Any) -> int:
    """Status of one more upgrade; 101 if it succeeds."""
    try:
        Peer.client(relay, platform, "steady", "t", **more).close()
    except Refused as refused:
        return refused.status
    return 101


@pytest.mark.parametrize(
    ("mode", "statuses"),
    [
        ("hang", {503}),
        pytest.param("drip", {503}, marks=slow),
        pytest.param("cut", {503}, marks=slow),
        pytest.param("error", {503}, marks=slow),
        pytest.param("nonsense", {502}, marks=slow),
        # A deeply nested, unknown claim is ignored if the JSON can be parsed.
        pytest.param("deep", {502, 101}, marks=slow),
        pytest.param("huge", {502}, marks=slow),
        ("flap", {101, 502, 503}),
    ],
)
def test_the_platform_is_at_fault(platform: FaultyPlatform, mode: Any, statuses: set[int]) -> None:
    with running(platform.environment() | FAST) as relay:
        pair = Pair(relay, platform)
        platform.mode = mode
        with concurrent.futures.ThreadPoolExecutor(8) as many:
            asked = [many.submit(refusal, relay, platform) for _ in range(16)]
            assert pair.talk(30) < 5.0
            assert {one.result() for one in asked} <= statuses
        platform.mode = "ok"
        assert until(lambda: refusal(relay, platform) == 101, 10, "the first one after the fault")
        pair.talk()
        pair.close()
        assert relay.errors(*OF_THE_PLATFORM) == []


@slow
def test_a_slow_platform_delays_new_peers_only(platform: FaultyPlatform) -> None:
    with running(platform.environment() | FAST | {"RELAY_ADMISSION_TIMEOUT_MS": "5000"}) as relay:
        pair = Pair(relay, platform)
        platform.mode, platform.delay = "slow", 1.0
        with concurrent.futures.ThreadPoolExecutor(20) as many:
            began = time.monotonic()
            asked = [many.submit(refusal, relay, platform) for _ in range(20)]
            assert pair.talk(30) < 2.0
            assert {one.result() for one in asked} == {101}
            assert time.monotonic() - began < 10  # concurrently
        pair.close()
        assert relay.errors() == []


@slow
def test_the_key_set_is_unavailable_after_its_first_fetch(platform: FaultyPlatform) -> None:
    with running(platform.environment() | FAST | {"RELAY_JWKS_CACHE_TTL": "1"}) as relay:
        pair = Pair(relay, platform)
        platform.keys_follow, platform.mode = True, "error"
        time.sleep(2.5)  # expired, and the refetch fails
        assert refusal(relay, platform) == 503  # the platform's validation fails
        assert "PLATFORM_UNREACHABLE" in relay.output()
        platform.mode = "ok"
        platform.keys_follow = False
        assert until(lambda: refusal(relay, platform) == 101, 15)
        pair.talk()
        pair.close()
        assert relay.errors(*OF_THE_PLATFORM) == []


def test_the_relay_starts_before_its_platform(platform: FaultyPlatform) -> None:
    platform.keys_follow, platform.mode = True, "cut"
    with Relay(platform.environment() | FAST) as relay:
        relay.wait("/health")
        assert relay.http("/ready")[0] == 503
        assert refusal(relay, platform) == 503
        platform.mode = "ok"
        relay.wait("/ready")
        assert refusal(relay, platform) == 101
        assert relay.stop() == 0
        assert relay.errors(*OF_THE_PLATFORM, "jwks_fetch_failed") == []


@slow
def test_names_cannot_be_resolved(platform: FaultyPlatform) -> None:
    """DNS fails after the start: `platform.test` resolves at first, then every look-up fails, then it resolves again."""
    before = (
        "import socket, os\nreal = socket.getaddrinfo\n"
        "def look_up(host, *rest, **more):\n"
        "    if host in ('platform.test', b'platform.test'):\n"
        "        if os.path.exists(os.environ['DNS_DOWN']):\n"
        "            raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')\n"
        "        host = '127.0.0.1'\n"
        "    return real(host, *rest, **more)\n"
        "socket.getaddrinfo = look_up"
    )
    flag = Path(f"/tmp/drill-dns-{platform.port}")
    environment = {
        name: value.replace("127.0.0.1", "platform.test") for name, value in platform.environment().items()
    }
    try:
        with running(environment | FAST | {"DNS_DOWN": str(flag)}, before=before) as relay:
            pair = Pair(relay, platform)
            flag.touch()
            platform.mode = "cut"  # kept-alive connections end: the next request needs a look-up
            assert refusal(relay, platform) == 503
            platform.mode = "ok"
            assert refusal(relay, platform) == 503
            pair.talk()
            flag.unlink()
            assert until(lambda: refusal(relay, platform) == 101, 15)
            pair.close()
            assert relay.errors(*OF_THE_PLATFORM) == []
    finally:
        flag.unlink(missing_ok=True)


@pytest.mark.parametrize("jump", [7200.0, pytest.param(-7200.0, marks=slow)])
def test_the_wall_clock_jumps(platform: FaultyPlatform, jump: float) -> None:
    """Time-outs, pings and rates use the monotonic clock; only tokens use the wall clock."""
    before = (
        "import time, os\nreal = time.time\n"
        "time.time = lambda: real() + (float(os.environ['JUMP']) if os.path.exists(os.environ['JUMPED']) else 0.0)"
    )
    flag = Path(f"/tmp/drill-clock-{platform.port}")
    quick = {
        "RELAY_PING_INTERVAL_MS": "300",
        "RELAY_PONG_TIMEOUT_MS": "2000",
        "RELAY_IDLE_TIMEOUT_MS": "4000",
    }
    try:
        with running(
            platform.environment() | FAST | quick | {"JUMP": str(jump), "JUMPED": str(flag)}, before=before
        ) as relay:
            pair = Pair(relay, platform)
            visitor = Peer.client(relay, platform, "clocks", "t")
            flag.touch()
            visitor.close()
            left = relay.logged("leave")
            assert 0 <= left["details"]["seconds"] < 60
            assert 0 <= json.loads(relay.http("/health")[1])["uptimeMs"] < 120_000
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                pair.talk(2)
                time.sleep(0.05)
            assert relay.http("/health")[0] == 200
            # Two hours ahead the token has expired; two hours back it is not yet valid. Each is refused with its reason.
            assert refusal(relay, platform) == 401
            flag.unlink()
            assert refusal(relay, platform) == 101
            pair.talk()
            pair.close()
            assert relay.errors() == []
    finally:
        flag.unlink(missing_ok=True)


def test_the_disk_for_logs_is_full(platform: FaultyPlatform) -> None:
    with Relay(platform.environment() | FAST, stdout="/dev/full") as relay:
        relay.wait()
        pair = Pair(relay, platform)
        assert refusal(relay, platform, token="x" * 40) == 401
        pair.talk()
        status, page = relay.http("/logs")
        assert status == 200 and b"JWT_MALFORMED" in page  # /logs still has the entries
        pair.close()
        assert relay.stop() == 0
        assert "Traceback" not in relay.output()


def test_the_log_is_not_read(platform: FaultyPlatform, tmp_path: Path) -> None:
    """A logging driver stands still: the relay stood still with it, until the watchdog ended it."""
    import fcntl
    import os

    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    with Relay(platform.environment() | FAST, stdout=str(pipe)) as relay:
        relay.wait()
        for _ in range(10):  # more lines than the pipe holds
            pair = Pair(relay, platform)
            pair.talk()
            pair.close()
        assert b"20 admitted" in relay.http("/logs")[1]
        assert relay.stop() == 0
    os.close(reading)


@slow
def test_the_reader_of_the_log_closes_its_pipe(platform: FaultyPlatform, tmp_path: Path) -> None:
    """The log is a pipe, and its reader closes it."""
    import os

    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Relay(platform.environment() | FAST, stdout=str(pipe)) as relay:
        relay.wait()
        os.close(reading)
        pair = Pair(relay, platform)
        pair.talk()
        pair.close()
        assert relay.stop() == 0
        assert "Traceback" not in relay.output()


def test_the_descriptor_limit_is_lowered_at_run_time(platform: FaultyPlatform) -> None:
    """The limit is below the number of open descriptors: nothing can be opened, not even a connection to the platform."""
    with running(platform.environment() | FAST) as relay:
        pair = Pair(relay, platform)
        soft, hard = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (relay.descriptors(), hard))
        cpu = relay.cpu()
        began = time.monotonic()
        waiting = []
        for _ in range(30):
            waiting.append(socket.create_connection(("127.0.0.1", relay.port), 5))
            pair.talk(2)
        for sock in waiting:  # closed at once or in the kernel's accept queue: the relay holds no connection
            sock.close()
        assert pair.talk(20) < 2.0
        time.sleep(1.0)
        assert relay.cpu() - cpu < 0.7 * (time.monotonic() - began)  # the relay does not busy-loop
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert until(lambda: _comes_in(relay, platform), 15, "a newcomer")
        pair.talk()
        pair.close()
        assert relay.errors(*OF_THE_PLATFORM) == []
        assert len(relay.entries()) < 400  # failed accepts are folded in the log


def _comes_in(relay: Relay, platform: FaultyPlatform) -> bool:
    try:
        return refusal(relay, platform) == 101
    except OSError:
        return False


@slow
def test_memory_runs_out(platform: FaultyPlatform) -> None:
    """Twenty clients that read nothing, in a process with little memory: each queue is bounded, and the sum fits."""
    settings = {"RELAY_MAX_PENDING_BYTES": "1000000"}
    with running(platform.environment() | FAST | settings, memory=700_000_000) as relay:
        pair = Pair(relay, platform)
        before = relay.rss()
        daemon = Peer.daemon(relay, platform, "full", "t")
        lazy = []
        for _ in range(20):
            client = Peer.client(relay, platform, "full", "t")
            client.converse(daemon)
            lazy.append(client)
        for client in lazy:
            for n in range(1, 40):
                daemon.send(e2ee(client.session, n, "x" * 200_000))
        pair.talk(20)
        assert relay.rss() - before < 150_000_000
        for peer in (daemon, *lazy):
            peer.close()
        pair.talk()
        pair.close()
        assert relay.errors() == []


def test_the_process_is_stopped_for_a_while(platform: FaultyPlatform) -> None:
    """A suspended machine: time-outs do not count the time in which the relay could not read."""
    quick = {
        "RELAY_PING_INTERVAL_MS": "500",
        "RELAY_PONG_TIMEOUT_MS": "1500",
        "RELAY_IDLE_TIMEOUT_MS": "2500",
    }
    with running(platform.environment() | FAST | quick) as relay:
        pair = Pair(relay, platform)
        pair.talk()
        relay.signal(signal.SIGSTOP)
        time.sleep(4)
        text = e2ee(pair.client.session, 99)
        pair.client.send(text)
        pair.daemon.send("", 10)
        relay.signal(signal.SIGCONT)
        assert pair.daemon.text() == text
        pair.close()


@slow
def test_a_daemon_disappears_without_fin(platform: FaultyPlatform) -> None:
    quick = {"RELAY_PING_INTERVAL_MS": "300", "RELAY_PONG_TIMEOUT_MS": "1000"}
    with running(platform.environment() | FAST | quick) as relay:
        gone = Peer.daemon(relay, platform, "w", "t")
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while True:
                assert time.monotonic() - began < 20
                if not gone.sock.recv(1000):  # reads, but sends no pong
                    raise ConnectionResetError
        successor = Pair(relay, platform, "w")
        successor.talk()
        successor.client.send(b"\x03\xe8", CLOSE)
        successor.close()
        assert relay.errors() == []
