"""Parent and workers without processes: assignment of workspaces, counters, messages, packets, settings."""

from __future__ import annotations

import socket
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st
from msgspec.json import decode
from prometheus_client import Histogram

from viewport_relay.config import ConfigError, load
from viewport_relay.noise.keys import StaticKey
from viewport_relay.observe.checks import Condition
from viewport_relay.observe.counters import Counters, sample_key
from viewport_relay.observe.logs import LogReport
from viewport_relay.observe.problems import ProblemsReport
from viewport_relay.observe.ring import Record
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import PeerView, TargetView
from viewport_relay.workers import channels, messages
from viewport_relay.workers.parent import worker_environment
from viewport_relay.workers.passing import slot
from viewport_relay.workers.snapshots import serialised, set_to_sum
from viewport_relay.workers.worker import WorkerService

KEY = StaticKey.generate().private_text()
ENVIRON = {"SERVER_URL": "http://127.0.0.1:9", "RELAY_WORKERS": "3"}


# -- slots -----------------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=128), st.integers(1, 256))
def test_a_workspace_has_one_worker(workspace: str, workers: int) -> None:
    assert 0 <= slot(workspace, workers) < workers
    assert slot(workspace, workers) == slot(workspace, workers)


def test_workspaces_are_spread_evenly() -> None:
    counts = Counter(slot(f"workspace-{number}", 4) for number in range(4000))
    assert all(850 < counts[worker] < 1150 for worker in range(4))


# -- tally -----------------------------------------------------------------------------------------------------


def some(factor: int) -> Counters:
    made = Counters()
    for place, field in enumerate(fields(Counters), 1):
        value = getattr(made, field.name)
        if isinstance(value, int):
            setattr(made, field.name, place * factor)
        elif isinstance(value, Histogram) and field.name != "platform_latency":
            value.observe(0.003 * factor)
        elif isinstance(value, Counter):
            by_reason = field.name in {"refusals", "closes", "drops", "handshakes_left"}
            value[Reason.JWT_EXPIRED if by_reason else "ok"] = factor
    made.platform_answered("ok", 0.1 * factor)
    return made


def test_counters_of_all_kinds_are_added_up() -> None:
    total = some(7)  # earlier values are overwritten
    parts = [messages.encode(serialised(some(factor))) for factor in (1, 2)]
    for _ in range(2):  # the second time gives the same result
        set_to_sum(total, [decode(part) for part in parts])
        for place, field in enumerate(fields(Counters), 1):
            value = getattr(total, field.name)
            if isinstance(value, int):
                assert value == 3 * place, field.name
            elif isinstance(value, Counter):
                assert value.total() == 3, field.name
        assert total.refusals == Counter({Reason.JWT_EXPIRED: 3})
        found = {sample_key(s): s.value for metric in total.latencies() for s in metric.samples}
        assert found["relay_forward_latency_seconds_count", ()] == 2
        assert found["relay_forward_latency_seconds_sum", ()] == pytest.approx(0.009)
        assert found["relay_platform_request_duration_seconds_count", (("outcome", "ok"),)] == 2


# -- messages --------------------------------------------------------------------------------------------------


def test_a_snapshot_is_decoded_unchanged() -> None:
    peer = PeerView("c-1", "client", "me", "192.0.2.1", 1.5, 3, "IK", None, "ua", False, None)
    target = TargetView("ws", None, None, (peer,), (), 1, 2, 3, 4, 5.0, 6.0)
    snapshot = messages.Snapshot(
        Condition(True, "", None, {"mode": "single"}),
        {"client": 1},
        [target],
        serialised(Counters()),
        LogReport([], [("join", None, 1.0)], ProblemsReport([], (1, 2)), [("c-2", "{}")], 3),
    )
    assert messages.decode_report(messages.encode(snapshot)) == snapshot


def test_a_log_entry_is_decoded_unchanged() -> None:
    record = Record(1, 2.0, "warn", "refuse", "JWT_EXPIRED", "ws", "c", '{"ts":"…"}', 3, "refuse")
    assert messages.decode_report(messages.encode(messages.Logged(record))) == messages.Logged(record)


# -- packets ---------------------------------------------------------------------------------------------------


class Reactor:
    """Test double of a reactor that only records writers."""

    def __init__(self) -> None:
        self.writers: list[Any] = []

    def addWriter(self, writer: Any) -> None:
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)

    def addReader(self, reader: Any) -> None: ...

    def removeReader(self, reader: Any) -> None: ...


class Taker:
    def __init__(self) -> None:
        self.taken: list[tuple[messages.Order, list[int], bytes]] = []
        self.ended = False

    def take(self, order: messages.Order, descriptors: list[int], data: bytes) -> None:
        self.taken.append((order, descriptors, data))

    def gone(self) -> None:
        self.ended = True


def ends() -> tuple[Any, channels.PacketSender, channels.PacketReader, Taker]:
    ours, theirs = channels.socket_pair()
    reactor: Any = Reactor()
    taker = Taker()
    sender = channels.PacketSender(ours, reactor)
    return reactor, sender, channels.PacketReader(theirs, reactor, taker.take, taker.gone), taker


def test_a_connection_is_passed_with_the_bytes_read() -> None:
    _, sender, reader, taker = ends()
    one, other = socket.socketpair()
    data = b"GET /ws\r\nline two\n\x00\xff"
    assert sender.send(messages.Adopt(socket.AF_UNIX, "192.0.2.1"), [one], data)
    assert one.fileno() == -1  # the sender's copy is closed
    reader.doRead()
    ((order, [descriptor], got),) = taker.taken
    assert (order, got) == (messages.Adopt(socket.AF_UNIX, "192.0.2.1"), data)
    with socket.socket(fileno=descriptor) as theirs:
        theirs.sendall(b"still open")
        assert other.recv(20) == b"still open"
    other.close()
    sender.close()
    reader.doRead()
    assert taker.ended


def test_packets_are_queued_in_order_and_bounded() -> None:
    reactor, sender, reader, taker = ends()
    big = b"x" * 60_000
    pairs = [socket.socketpair() for _ in range(12)]
    for number, (one, _) in enumerate(pairs):
        assert sender.send(messages.Adopt(number, "ip"), [one], big)
    assert reactor.writers == [sender]
    sender.send(messages.Flush())
    for _ in range(50):
        reader.doRead()
        if reactor.writers:
            sender.doWrite()
    families = [order.family for order, _, _ in taker.taken if isinstance(order, messages.Adopt)]
    assert families == list(range(12)) and isinstance(taker.taken[-1][0], messages.Flush)
    assert not reactor.writers
    for _, descriptors, _ in taker.taken[:-1]:
        (descriptor,) = descriptors
        socket.close(descriptor)
    for _, other in pairs:
        assert other.recv(1) == b""  # no other process holds a copy
        other.close()
    one, other = socket.socketpair()
    assert not sender.send(messages.Adopt(0, "ip"), [one], b"x" * channels.MAX_PACKET)
    assert one.fileno() >= 0  # the sender still owns it
    one.close()
    other.close()
    sender.close()
    reader.close()


def test_a_connection_for_a_process_that_has_exited_stays_the_senders() -> None:
    reactor, sender, reader, _ = ends()
    reader.close()
    one, other = socket.socketpair()
    assert not sender.send(messages.Adopt(socket.AF_UNIX, "ip"), [one])
    one.sendall(b"still open")
    assert other.recv(20) == b"still open"
    assert sender.disconnected and not reactor.writers
    one.close()
    other.close()


def test_connections_that_wait_for_a_process_that_exits_are_closed() -> None:
    reactor, sender, reader, _ = ends()
    pairs = [socket.socketpair() for _ in range(12)]
    for one, _ in pairs:
        assert sender.send(messages.Adopt(socket.AF_UNIX, "ip"), [one], b"x" * 60_000)
    assert reactor.writers == [sender]
    reader.close()
    sender.doWrite()
    assert sender.disconnected and not reactor.writers
    for _, other in pairs:
        assert other.recv(1) == b""
        other.close()


def test_a_tls_connection_is_passed_with_its_end_of_the_pair() -> None:
    _, sender, reader, taker = ends()
    tcp, peer = socket.socketpair()
    pair, other = socket.socketpair()
    assert sender.send(messages.EndTLS(socket.AF_INET), [tcp, pair], b"hello")
    reader.doRead()
    ((order, descriptors, data),) = taker.taken
    assert (order, data) == (messages.EndTLS(socket.AF_INET), b"hello")
    for descriptor, far in zip(descriptors, (peer, other), strict=True):
        with socket.socket(fileno=descriptor) as near:
            near.sendall(b"still open")
            assert far.recv(20) == b"still open"
        far.close()
    sender.close()
    reader.close()


def test_connections_queued_for_a_dead_worker_are_closed() -> None:
    reactor, sender, reader, _ = ends()
    pairs = [socket.socketpair() for _ in range(12)]
    for one, _ in pairs:
        assert sender.send(messages.Adopt(0, "ip"), [one], b"x" * 60_000)
    reader.close()
    sender.doWrite()
    assert not reactor.writers
    for _, other in pairs:
        other.settimeout(1)
        assert other.recv(1) == b""
        other.close()


def test_a_connection_without_its_descriptor_releases_its_place() -> None:
    """The kernel drops a descriptor if the process has reached its limit (unix(7), MSG_CTRUNC)."""
    said: list[messages.Report] = []
    worker: Any = SimpleNamespace(_reporter=SimpleNamespace(send=said.append))
    WorkerService.execute(worker, messages.Adopt(socket.AF_INET, "192.0.2.1"), [], b"GET /ws")
    assert said == [messages.Left("192.0.2.1")]


# -- settings --------------------------------------------------------------------------------------------------


def test_a_worker_loads_the_same_settings() -> None:
    environ = ENVIRON | {
        "RELAY_ADMIN_TOKEN": "an-admin-token-for-tests", "RELAY_ADMIN_LISTEN": "127.0.0.1:1", "NOTIFY_SOCKET": "/x",
        "RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:index=0", "RELAY_PROXY_PROTOCOL": "1",
    }  # fmt: skip
    parent = load(environ, {"frame_max_bytes": "4096"})
    told = worker_environment(environ, parent, {"frame_max_bytes": "4096"}, KEY, 2)
    worker = load(told)
    for name in (
        "relay_id",
        "mode",
        "public_ws_base_url",
        "frame_max_bytes",
        "server_url",
        "max_clients_per_workspace",
    ):
        assert getattr(worker, name) == getattr(parent, name), name
    counted_by_parent = worker.rate_limit_per_ip, worker.max_total_connections, worker.max_connections_per_ip
    assert counted_by_parent == (0, 0, 0)
    assert (worker.workers, worker.admin_tokens, worker.admin_listen, worker.noise_private_key) == (
        1,
        (),
        None,
        KEY,
    )
    assert "NOTIFY_SOCKET" not in told


@pytest.mark.parametrize("given", [{"RELAY_LISTEN_PORT": "0"}, {"HOST": "::1", "PORT": "0"}])
def test_a_worker_of_a_relay_on_any_free_port_loads_its_settings(given: dict[str, str]) -> None:
    environ = ENVIRON | given
    parent = load(environ)
    assert (
        load(worker_environment(environ, parent, {}, KEY, 0)).public_ws_base_url == parent.public_ws_base_url
    )


def test_each_worker_has_its_own_relay_id() -> None:
    environ = ENVIRON | {
        "RELAY_BACKPLANE_MODE": "redis", "RELAY_INTERNAL_KEY": "some-internal-key-0123", "RELAY_ID": "x" * 128,
    }  # fmt: skip
    names = {load(worker_environment(environ, load(environ), {}, KEY, i)).relay_id for i in range(3)}
    assert names == {"x" * 125 + f"-w{i}" for i in range(3)}


def test_the_ids_of_a_relay_and_its_workers_are_its_own() -> None:
    environ = ENVIRON | {
        "RELAY_BACKPLANE_MODE": "redis", "RELAY_INTERNAL_KEY": "some-internal-key-0123", "RELAY_ID": "edge-w7",
    }  # fmt: skip
    alone = load(environ)
    assert [alone.is_own(name) for name in ("edge-w7", "edge-w7-w0", "edge", "edge-w8", "")] == [True] + [
        False
    ] * 4
    worker = evolve(load(worker_environment(environ, alone, {}, KEY, 1)), worker_of="edge-w7")
    own = ["edge-w7", "edge-w7-w0", "edge-w7-w1", "edge-w7-w12"]
    others = ["edge", "edge-w8", "edge-w7-w", "edge-w7-wx", "edge-w7-w1-w1", "edge-w7-w1 ", "-w1", "w1", ""]
    assert [name for name in own + others if worker.is_own(name)] == own


def test_ssl_endpoints_and_workers_exclude_each_other() -> None:
    for kind in ("ssl", "tls"):
        endpoint = {"RELAY_LISTEN_ENDPOINT": f"{kind}:7781:privateKey=x"}
        with pytest.raises(ConfigError) as error:
            load(ENVIRON | endpoint)
        (problem,) = error.value.errors
        assert "RELAY_WORKERS=3" in problem and "RELAY_TLS_CERT_PATH" in problem
        load(ENVIRON | endpoint | {"RELAY_WORKERS": "1"})
