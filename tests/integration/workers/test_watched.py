"""RELAY_WORKERS=2 in operation: drains, reloads, service managers, workers that hang; with real processes."""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.drill.manager import Manager
from tests.drill.peer import CLOSE, Closed, Peer, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until
from tests.ports import free_port
from viewport_relay.workers.crew import CUT
from viewport_relay.workers.passing import slot
from viewport_relay.workers.supervision import PATIENCE

_numbers = itertools.count()


def workspace_of(worker: int) -> str:
    """A new workspace that this one of two workers serves."""
    return next(name for number in _numbers if slot(name := f"ws-{number}", 2) == worker)


class Pair:
    """Daemon and client on one worker, with a session."""

    def __init__(self, relay: Relay, platform: FaultyPlatform, worker: int) -> None:
        self.workspace = workspace_of(worker)
        self.daemon = Peer.daemon(relay, platform, self.workspace, "t")
        self.client = Peer.client(relay, platform, self.workspace, "t")
        self.client.converse(self.daemon)
        self._seq = 0

    def talk(self, times: int = 5) -> None:
        for _ in range(times):
            self._seq += 1
            text = e2ee(self.client.session, self._seq)
            self.client.send(text)
            assert self.daemon.text() == text
            self.daemon.send(text)
            assert self.client.text() == text

    def close(self) -> None:
        self.daemon.close()
        self.client.close()


@contextmanager
def crewed(platform: FaultyPlatform, **settings: str) -> Iterator[tuple[Relay, list[Pair]]]:
    """A relay with two workers and a pair on each; at the end it must stop with status 0."""
    with running(platform.environment() | {"RELAY_WORKERS": "2"} | settings) as relay:
        until(lambda: len(pids(relay)) == 2, 30, "both workers")
        pairs = [Pair(relay, platform, worker) for worker in (0, 1)]
        yield relay, pairs
        for pair in pairs:
            pair.close()


def pids(relay: Relay) -> dict[int, int]:
    """Worker's number -> PID of its latest process."""
    started = (entry for entry in relay.entries() if entry["event"] == "worker_started")
    return {entry["details"]["worker"]: entry["details"]["pid"] for entry in started}


def said(relay: Relay, *events: str) -> list[tuple[str, int]]:
    """Event and worker of these log entries."""
    return [(e["event"], e["details"]["worker"]) for e in relay.entries() if e["event"] in events]


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def timed(relay: Relay, path: str, port: int | None = None) -> tuple[float, int, bytes]:
    began = time.monotonic()
    status, body = relay.http(path, port=port)
    return time.monotonic() - began, status, body


def metric(relay: Relay, name: str) -> float:
    _, body = relay.http("/metrics")
    (line,) = [line for line in body.decode().splitlines() if line.startswith(name + " ")]
    return float(line.rsplit(" ", 1)[1])


# -- shutdown ------------------------------------------------------------------------------------------------


def test_sigterm_drains_both_workers_in_waves(platform: FaultyPlatform) -> None:
    port = free_port()
    settings = {"RELAY_DRAIN_SECONDS": "10", "RELAY_ADMIN_LISTEN": f"127.0.0.1:{port}"}
    with running(platform.environment() | {"RELAY_WORKERS": "2"} | settings) as relay:
        relay.wait()
        crowd = {
            Peer.client(relay, platform, workspace_of(worker), "t"): worker
            for worker in (0, 1)
            for _ in range(50)
        }
        until(lambda: relay.http("/ready", port=port)[0] == 200, what="both workers")
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        ended: dict[int, list[float]] = {0: [], 1: []}
        selector = selectors.DefaultSelector()
        for peer in crowd:
            selector.register(peer.sock, selectors.EVENT_READ, peer)
        holder: Peer | None = None
        while selector.get_map():
            ready = selector.select(20)
            assert ready, "no further peer is closed"
            for key, _ in ready:
                peer = key.data
                selector.unregister(peer.sock)
                closed = peer.how_it_ends()
                assert (closed.code, closed.reason) == (1001, "relay shutting down")
                ended[crowd[peer]].append(time.monotonic() - began)
                if holder is None:  # answers last, so that the test can observe the drain
                    holder = peer
                else:
                    peer.send(b"\x03\xe9", CLOSE)
        status, body = relay.http("/ready", port=port)
        assert status == 503 and b"RELAY_SHUTTING_DOWN" in body
        for times in ended.values():
            # Waves of twenty, a tenth of a second apart.
            assert len(times) == 50 and times[-1] < 10
            assert times[19] + 0.05 < times[20] and times[39] + 0.05 < times[40], times
        assert holder is not None
        holder.send(b"\x03\xe9", CLOSE)
        assert relay.process.wait(20) == 0
        assert time.monotonic() - began < 10  # the drain ends with the last peer, before the deadline
        for peer in crowd:
            peer.close()
        assert relay.errors() == []


def test_queued_frames_of_both_workers_are_sent_before_the_close(platform: FaultyPlatform) -> None:
    with crewed(platform, RELAY_DRAIN_SECONDS="15") as (relay, pairs):
        sent = {}
        for pair in pairs:
            sent[pair] = [e2ee(pair.client.session, n, "x" * 200_000) for n in range(1, 16)]
            for text in sent[pair]:
                pair.daemon.send(text)
            pair.daemon.send("", 9)
            assert pair.daemon.frame()[0] == 10  # the relay has read all frames
        relay.signal(signal.SIGTERM)
        time.sleep(0.3)
        for pair in pairs:
            received = []
            with pytest.raises(Closed) as closed:
                while True:
                    received.append(pair.client.text())
            assert received == sent[pair]
            assert (closed.value.code, closed.value.reason) == (1001, "relay shutting down")


@pytest.mark.parametrize("stuck", [False, True], ids=["peers do not answer", "a worker hangs"])
def test_a_second_signal_ends_the_drain(platform: FaultyPlatform, stuck: bool) -> None:
    with crewed(platform, RELAY_DRAIN_SECONDS="60") as (relay, pairs):
        before = pids(relay)
        with standing_still(before[1]) if stuck else nullcontext():
            relay.signal(signal.SIGTERM)
            assert pairs[0].daemon.how_it_ends().code == 1001  # the peer does not answer the Close
            time.sleep(0.5)
            assert relay.process.poll() is None
            began = time.monotonic()
            relay.signal(signal.SIGTERM)
            assert relay.process.wait(20) == 0
            assert time.monotonic() - began < (CUT if stuck else 0) + 3
        for pid in before.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert said(relay, "worker_killed") == ([("worker_killed", 1)] if stuck else [])
        assert relay.errors("worker_killed", "worker_lost") == []


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_prolong_the_drain(platform: FaultyPlatform) -> None:
    with crewed(platform, RELAY_DRAIN_SECONDS="1") as (relay, pairs), standing_still(pids(relay)[1]):
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        assert pairs[0].client.how_it_ends().code == 1001
        assert relay.process.wait(30) == 0
        assert time.monotonic() - began < 10


def test_a_signal_to_all_processes_at_once_is_no_error(platform: FaultyPlatform) -> None:
    """Ctrl-C in a terminal, and systemd with KillMode=control-group."""
    with crewed(platform) as (relay, pairs):
        os.killpg(relay.pid, signal.SIGINT)
        for pair in pairs:
            assert pair.daemon.how_it_ends().code == 1001
            pair.close()
        assert relay.process.wait(20) == 0
        assert relay.errors() == []
        assert [entry["event"] for entry in relay.entries()].count("relay_stopping") == 1


# -- reload and service manager ------------------------------------------------------------------------------


def test_a_reload_closes_no_connection(manager: Manager, platform: FaultyPlatform) -> None:
    with crewed(platform, NOTIFY_SOCKET=manager.path) as (relay, pairs):
        manager.wait("READY=1")
        before = pids(relay)
        for number in (2, 3):
            relay.signal(signal.SIGHUP)
            until(lambda n=number: len(manager.times("READY=1")) == n, 10, "READY after the reload")  # type: ignore[misc]
            for pair in pairs:
                pair.talk()
        assert len(manager.times("RELOADING=1")) == 2
        for pid in before.values():  # a SIGHUP to a worker, as from `pkill -HUP`, does not end it
            os.kill(pid, signal.SIGHUP)
        time.sleep(0.5)
        for pair in pairs:
            pair.talk()
        assert pids(relay) == before
        assert "leave" not in [entry["event"] for entry in relay.entries()]


def test_a_parent_that_hangs(manager: Manager, platform: FaultyPlatform) -> None:
    """No message reaches the service manager, peers are not affected, and a worker that was not polled is not killed."""
    watch = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "600000", "RELAY_WORKER_TIMEOUT_MS": "1500"}
    with crewed(platform, **watch) as (relay, pairs):
        before = pids(relay)
        until(lambda: len(manager.times("WATCHDOG=1")) > 2, 20, "signs of life")
        with standing_still(relay.pid):
            stopped = time.monotonic()
            time.sleep(0.3)
            while time.monotonic() < stopped + 4:
                for pair in pairs:
                    pair.talk()
                time.sleep(0.1)
            over = time.monotonic()
            assert [at for at in manager.times("WATCHDOG=1") if at > stopped + 0.3] == []
        until(lambda: manager.times("WATCHDOG=1")[-1] > over, 10, "signs of life after it")
        time.sleep(2.5)  # two more polls
        for worker, pair in enumerate(pairs):
            pair.talk()
            Pair(relay, platform, worker).close()
        assert pids(relay) == before and said(relay, "worker_killed", "worker_lost") == []


def test_a_parent_that_the_service_manager_aborts(platform: FaultyPlatform) -> None:
    """systemd's watchdog sends SIGABRT to the main process: the workers drain and end."""
    with Relay(platform.environment() | {"RELAY_WORKERS": "2", "RELAY_DRAIN_SECONDS": "5"}) as relay:
        relay.wait()
        until(lambda: len(pids(relay)) == 2, 30, "both workers")
        pairs, before = [Pair(relay, platform, worker) for worker in (0, 1)], pids(relay)
        relay.signal(signal.SIGABRT)
        for pair in pairs:
            assert (pair.client.how_it_ends().code, pair.daemon.how_it_ends().code) == (1001, 1001)
            pair.close()
        assert relay.process.wait(10) == -signal.SIGABRT
        until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in before.values()), 10, "the end of both"
        )


# -- a worker that hangs -------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_replaced_and_the_others_do_not_wait(
    manager: Manager, platform: FaultyPlatform
) -> None:
    seconds = 2 * PATIENCE
    watch = {
        "NOTIFY_SOCKET": manager.path,
        "WATCHDOG_USEC": "1000000",
        "RELAY_WORKER_TIMEOUT_MS": str(int(seconds * 1000)),
    }
    with crewed(platform, **watch) as (relay, pairs):
        before = pids(relay)
        for pair in pairs:
            pair.talk()
        frames = metric(relay, "relay_frames_client_to_daemon_total")
        assert frames == 12
        with standing_still(before[1]):
            stopped = time.monotonic()
            # The admin API responds within the time limit, with the worker's last report.
            took, status, body = timed(relay, "/metrics")
            assert status == 200 and took < PATIENCE + 1.5
            assert b"relay_frames_client_to_daemon_total 12" in body
            until(lambda: said(relay, "worker_silent") == [("worker_silent", 1)], PATIENCE + 3, "the warning")
            for path in ("/state", "/logs", "/metrics", "/ready", "/health"):
                took, status, body = timed(relay, path)
                assert status == 200 and took < 1.5, (path, took)
                if path == "/ready":
                    assert b"1 of 2 workers do not answer" in body
                elif path == "/state":
                    assert pairs[0].workspace.encode() in body and pairs[1].workspace.encode() in body
            pairs[0].talk()
            Pair(relay, platform, 0).close()
            until(lambda: ("worker_lost", 1) in said(relay, "worker_lost"), seconds + 5, "the end of it")
            assert time.monotonic() - stopped < seconds + 3
        assert pairs[1].client.how_it_ends().code == pairs[1].daemon.how_it_ends().code == 1006
        Pair(relay, platform, 1).close()  # waits for the new process
        pairs[0].talk()
        assert said(relay, "worker_killed", "worker_lost") == [("worker_killed", 1), ("worker_lost", 1)]
        (lost,) = [entry for entry in relay.entries() if entry["event"] == "worker_lost"]
        assert f"has not answered for {seconds:g} s; its peers reconnect, a new one starts" in lost["message"]
        assert pids(relay)[0] == before[0] and pids(relay)[1] != before[1]
        # Counts of the lost worker's last report are kept: key exchanges of 3 pairs, and their frames.
        assert metric(relay, "relay_frames_client_to_daemon_total") == 12 + 1 + 1 + 10
        gaps = [b - a for a, b in itertools.pairwise(manager.times("WATCHDOG=1"))]
        assert max(gaps) < 1.0  # the parent was responsive all the time


def test_workers_that_are_killed_over_and_over(platform: FaultyPlatform) -> None:
    """Each loss is logged, the parent keeps no state of it, and the other worker's peers are not affected."""
    with crewed(platform) as (relay, pairs):
        most = relay.descriptors()
        for round_ in range(4):
            pid = pids(relay)[1]
            os.kill(pid, signal.SIGKILL)
            until(lambda n=round_: len(said(relay, "worker_lost")) == n + 1, 10, "its obituary")  # type: ignore[misc]
            until(lambda old=pid: pids(relay)[1] != old, 30, "the next one")  # type: ignore[misc]
            Pair(relay, platform, 1).close()
            pairs[0].talk()
            until(lambda: _clients(relay) == 1, 10, "the end of the pair")
            until(lambda: relay.descriptors() <= most, 10, "as few open files as before")
        losses = [entry["message"] for entry in relay.entries() if entry["event"] == "worker_lost"]
        assert all("ended by signal 9 (Killed), which was not sent by its parent" in text for text in losses)
        assert relay.errors("worker_lost") == []
        assert metric(relay, "relay_worker_processes_lost_total") == 4


def _clients(relay: Relay) -> int:
    targets: list[dict[str, Any]] = relay.state()
    return sum(target["clientCount"] for target in targets)
