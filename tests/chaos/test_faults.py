"""Faults around a relay process, one drill each: what docs/topics/resilience.md promises is what is asserted.

The same in all of them: whoever is in keeps talking, newcomers are told what is wrong, nothing unhandled is in the log,
and when the fault is over everything works again without a restart.
"""

from __future__ import annotations

import concurrent.futures
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

#: What is said at level error while the platform is at fault; everything else would be a mistake of ours.
OF_THE_PLATFORM = ("PLATFORM_UNREACHABLE", "VALIDATION_RESPONSE_INVALID", "ADMISSION_RESPONSE_TOO_LARGE",
                   "JWKS_UNREACHABLE")  # fmt: skip


slow = pytest.mark.slow


@pytest.fixture
def platform() -> Iterator[FaultyPlatform]:
    with FaultyPlatform() as made:
        yield made


class Pair:
    """A daemon and a client that are in, and how they fare."""

    def __init__(self, relay: Relay, platform: FaultyPlatform, workspace: str = "steady") -> None:
        self.daemon = Peer.daemon(relay, platform, workspace, "t")
        self.client = Peer.client(relay, platform, workspace, "t")
        self.client.converse(self.daemon)
        self.number = 0

    def talk(self, times: int = 10) -> float:
        """The longest round trip, seconds."""
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
    """Status of one more upgrade; 101 when it gets in."""
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
        # Claims that are nested deeply and unknown are ignored, once they can be read.
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
def test_a_slow_platform_delays_only_who_asks_it(platform: FaultyPlatform) -> None:
    with running(platform.environment() | FAST | {"RELAY_ADMISSION_TIMEOUT_MS": "5000"}) as relay:
        pair = Pair(relay, platform)
        platform.mode, platform.delay = "slow", 1.0
        with concurrent.futures.ThreadPoolExecutor(20) as many:
            began = time.monotonic()
            asked = [many.submit(refusal, relay, platform) for _ in range(20)]
            assert pair.talk(30) < 2.0
            assert {one.result() for one in asked} == {101}
            assert time.monotonic() - began < 10  # side by side
        pair.close()
        assert relay.errors() == []


@slow
def test_the_key_set_is_gone_after_it_was_fetched(platform: FaultyPlatform) -> None:
    with running(platform.environment() | FAST | {"RELAY_JWKS_CACHE_TTL": "1"}) as relay:
        pair = Pair(relay, platform)
        platform.keys_follow, platform.mode = True, "error"
        time.sleep(2.5)  # expired, and its refetch fails
        assert refusal(relay, platform) == 503  # the platform's validation is what fails
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
    """DNS gone after the start: `platform.test` is known at first, then every look-up fails, then it is back."""
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
            platform.mode = "cut"  # kept-alive connections are of no use
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
    """Time-outs, pings and rates follow the monotonic clock; only tokens follow the wall clock."""
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
            flag.touch()
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                pair.talk(2)
                time.sleep(0.05)
            assert relay.http("/health")[0] == 200
            # Two hours ahead its tokens have expired; two hours back they are of the future. Both are said, not crashed on.
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
        assert status == 200 and b"JWT_MALFORMED" in page  # /logs still has them
        pair.close()
        assert relay.stop() == 0
        assert "Traceback" not in relay.output()


@slow
def test_whoever_reads_the_log_goes_away(platform: FaultyPlatform, tmp_path: Path) -> None:
    """A pipe whose reader has ended."""
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


def test_descriptors_are_taken_away_while_it_runs(platform: FaultyPlatform) -> None:
    """The limit falls below what is in use: nothing new can be opened at all, not even to the platform."""
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
        for sock in waiting:  # closed at once, or still in the kernel's queue: the relay holds no connection
            sock.close()
        assert pair.talk(20) < 2.0
        time.sleep(1.0)
        assert relay.cpu() - cpu < 0.7 * (time.monotonic() - began)  # it does not spin
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert until(lambda: _comes_in(relay, platform), 15, "a newcomer")
        pair.talk()
        pair.close()
        assert relay.errors(*OF_THE_PLATFORM) == []
        assert len(relay.entries()) < 400  # each failed accept is not worth a line for ever


def _comes_in(relay: Relay, platform: FaultyPlatform) -> bool:
    try:
        return refusal(relay, platform) == 101
    except OSError:
        return False


@slow
def test_memory_runs_out(platform: FaultyPlatform) -> None:
    """Twenty clients that read nothing, in a process with little room: each is held to its bound, and all fits."""
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
    """A suspended machine: no clock of ours ran against peers that could not be heard."""
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
def test_a_daemon_vanishes_without_a_word(platform: FaultyPlatform) -> None:
    quick = {"RELAY_PING_INTERVAL_MS": "300", "RELAY_PONG_TIMEOUT_MS": "1000"}
    with running(platform.environment() | FAST | quick) as relay:
        gone = Peer.daemon(relay, platform, "w", "t")
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while True:
                assert time.monotonic() - began < 20
                if not gone.sock.recv(1000):  # reads, but answers nothing
                    raise ConnectionResetError
        successor = Pair(relay, platform, "w")
        successor.talk()
        successor.client.send(b"\x03\xe8", CLOSE)
        successor.close()
        assert relay.errors() == []
