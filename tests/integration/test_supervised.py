"""The relay under a service manager: notifications, the passed socket, signals, and a stuck event loop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.drill.manager import Manager
from tests.drill.peer import CLOSE, Closed, Peer, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(256)
    return sock


def test_ready_alive_reloading_stopping(manager: Manager, platform: FaultyPlatform) -> None:
    watch = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000000"}
    with running(platform.environment() | watch) as relay:
        manager.wait("READY=1")
        daemon = Peer.daemon(relay, platform, "w", "t")
        until(
            lambda: any("1 workspace-daemons" in text for _, text in manager.heard), 10, "the number of peers"
        )
        until(lambda: len(manager.times("WATCHDOG=1")) > 4, 20, "signs of life")
        relay.signal(signal.SIGHUP)  # without TLS there is no certificate to reload, and the process goes on
        until(lambda: len(manager.times("READY=1")) == 2, 10, "READY after the reload")
        assert manager.wait("RELOADING=1") < manager.times("READY=1")[1]
        daemon.send("{}")
        relay.signal(signal.SIGTERM)
        manager.wait("STOPPING=1")
        assert daemon.how_it_ends().code == 1001
        daemon.close()
    assert relay.process.returncode == 0


def test_a_stuck_event_loop_sends_no_watchdog_notification(
    manager: Manager, platform: FaultyPlatform
) -> None:
    stick = "import signal, time\nsignal.signal(signal.SIGUSR2, lambda *_: time.sleep(3))"
    watch = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "600000"}
    with running(platform.environment() | watch, before=stick) as relay:
        until(lambda: len(manager.times("WATCHDOG=1")) > 2, 20, "signs of life")
        relay.signal(signal.SIGUSR2)
        began = time.monotonic()
        time.sleep(3.5)
        silent = [at for at in manager.times("WATCHDOG=1") if began + 0.3 < at < began + 2.8]
        assert silent == []
        until(lambda: manager.times("WATCHDOG=1")[-1] > began + 2.9, 10, "life after it")


def test_the_socket_comes_from_systemd_and_a_restart_refuses_no_connection(platform: FaultyPlatform) -> None:
    with listening() as sock:
        settings = platform.environment() | {"RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:index=0"}
        first = Relay(settings, listener=sock).wait()
        peer = Peer.daemon(first, platform, "w", "t")
        first.signal(signal.SIGTERM)
        assert peer.how_it_ends().code == 1001
        peer.send(b"\x03\xe9", CLOSE)
        assert first.process.wait(20) == 0

        # While no process accepts, connections wait in the socket's backlog.
        joined: list[Peer] = []
        waiting = [
            threading.Thread(target=lambda n=n: joined.append(Peer.daemon(first, platform, f"w{n}", "t")))
            for n in range(20)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.5)
        assert not joined
        second = Relay(settings, listener=sock)
        for thread in waiting:
            thread.join(40)
        assert len(joined) == 20
        assert second.stop() == 0
        first.kill()
        second.kill()


def test_the_socket_by_its_name(platform: FaultyPlatform) -> None:
    with listening() as sock:
        settings = platform.environment() | {
            "RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:name=viewport-relay.socket"
        }
        with running(settings, listener=sock) as relay:
            assert relay.http("/health")[0] == 200


@pytest.mark.parametrize(
    "endpoint", ["systemd:domain=INET:index=0", "systemd:domain=INET:name=other", "nonsense:1"]
)
def test_a_missing_socket_is_one_line(endpoint: str, platform: FaultyPlatform) -> None:
    with Relay(platform.environment() | {"RELAY_LISTEN_ENDPOINT": endpoint}) as relay:
        assert relay.process.wait(30) in (1, 78)
        (said,) = [line for line in relay.output().splitlines() if "RELAY_LISTEN_ENDPOINT" in line]
        assert "Traceback" not in relay.output(), said


def test_a_second_signal_ends_the_drain(platform: FaultyPlatform) -> None:
    with running(platform.environment() | {"RELAY_DRAIN_SECONDS": "60"}) as relay:
        peers = [Peer.daemon(relay, platform, f"w{n}", "t") for n in range(3)]
        relay.signal(signal.SIGTERM)
        assert peers[0].how_it_ends().code == 1001  # the peer does not answer the Close
        time.sleep(0.5)
        assert relay.process.poll() is None
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        assert relay.process.wait(10) == 0
        assert time.monotonic() - began < 8


def test_queued_frames_are_sent_before_the_close(platform: FaultyPlatform) -> None:
    with running(platform.environment() | {"RELAY_DRAIN_SECONDS": "15"}) as relay:
        daemon = Peer.daemon(relay, platform, "w", "t")
        client = Peer.client(relay, platform, "w", "t")
        client.converse(daemon)
        sent = [e2ee(client.session, n, "x" * 200_000) for n in range(1, 16)]  # more than kernel buffers hold
        for text in sent:
            daemon.send(text)
        daemon.send("", 9)
        assert daemon.frame()[0] == 10  # the relay has read all frames
        relay.signal(signal.SIGTERM)
        time.sleep(0.3)
        received = []
        with pytest.raises(Closed) as closed:
            while True:
                received.append(client.text())
        assert received == sent
        assert (closed.value.code, closed.value.reason) == (1001, "relay shutting down")
        client.close()
        daemon.close()


def test_an_upgrade_during_the_drain_is_refused_with_retry_after(platform: FaultyPlatform) -> None:
    from tests.drill.peer import Refused

    with running(platform.environment() | {"RELAY_DRAIN_SECONDS": "10"}) as relay:
        holder = Peer.daemon(relay, platform, "w", "t")  # keeps the drain from ending
        platform.mode, platform.delay = "slow", 1.0
        result: list[BaseException] = []

        def ask() -> None:
            try:
                Peer.daemon(relay, platform, "w2", "t")
            except Refused as refused:
                result.append(refused)

        thread = threading.Thread(target=ask)
        before = platform.validated
        thread.start()
        until(lambda: platform.validated > before, 10, "the platform's question")
        relay.signal(signal.SIGTERM)
        thread.join(10)
        platform.mode = "ok"
        assert isinstance(result[0], Refused) and result[0].status == 503
        assert "RELAY_SHUTTING_DOWN" in result[0].head
        holder.close()


def test_ready_is_503_on_the_admin_listener_during_the_drain(platform: FaultyPlatform) -> None:
    from tests.ports import free_port

    port = free_port()
    settings = {"RELAY_DRAIN_SECONDS": "10", "RELAY_ADMIN_LISTEN": f"127.0.0.1:{port}"}
    with running(platform.environment() | settings) as relay:
        assert relay.http("/ready", port=port)[0] == 200
        peer = Peer.daemon(relay, platform, "w", "t")
        relay.signal(signal.SIGTERM)
        assert peer.how_it_ends().code == 1001
        status, body = relay.http("/ready", port=port)
        assert status == 503 and b"RELAY_SHUTTING_DOWN" in body
        with pytest.raises(ConnectionRefusedError):
            relay.http("/ready")
        peer.close()


def test_sigint_is_a_clean_stop(platform: FaultyPlatform) -> None:
    with Relay(platform.environment()) as relay:
        relay.wait()
        os.kill(relay.pid, signal.SIGINT)
        assert relay.process.wait(20) == 0


def test_a_unix_socket(platform: FaultyPlatform, tmp_path: Path) -> None:
    """Proxies on the same machine use it. TCP socket options do not exist on it."""
    path = tmp_path / "relay.sock"
    with Relay(platform.environment() | {"RELAY_LISTEN_ENDPOINT": f"unix:{path}"}) as relay:
        relay.logged("relay_started", 30)
        until(lambda: platform.asked_for_keys, 10, "the key set")

        class AtPath:
            port = path
            tls = None

        daemon = Peer.daemon(AtPath, platform, "w", "t")
        client = Peer.client(AtPath, platform, "w", "t")
        client.converse(daemon)
        for size in (10, 70_000, 900_000):
            client.send(e2ee(client.session, size, "x" * size))
            assert len(daemon.text()) > size
        client.close()
        daemon.close()
        assert relay.stop() == 0
        assert relay.errors() == []
