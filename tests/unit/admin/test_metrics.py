"""The metrics collector, checked with prometheus_client's parsers and promtool."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import attrs
import pytest
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from viewport_relay import __version__
from viewport_relay.admin.metrics import DEPRECATED, RelayCollector, registry
from viewport_relay.observe.counters import COUNTERS, Counters, sample_key
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason

CONTRACT = """relay_connections_total relay_workspaces_total relay_admission_ok_total relay_admission_denied_total
relay_upgrade_rate_limited_total relay_ws_connections_opened_total relay_ws_connections_closed_total
relay_ws_connections_rejected_total relay_ws_slow_client_terminated_total relay_ws_idle_terminated_total
relay_ws_stale_terminated_total relay_ws_frame_too_large_total relay_frames_client_to_daemon_total
relay_bytes_client_to_daemon_total relay_frames_daemon_to_clients_total relay_bytes_daemon_to_clients_total
relay_frames_client_rejected_total relay_frames_daemon_rejected_total relay_client_redirect_total
relay_bus_publish_ok_total relay_bus_publish_failed_total relay_bus_pull_invalid_signature_total
relay_bus_pull_stale_signature_total relay_bus_pull_replayed_signature_total""".split()


@pytest.fixture
def counters():
    found = Counters()
    for number, attribute in enumerate(COUNTERS, 1):
        setattr(found, attribute, number)
    found.refusals[Reason.JWT_EXPIRED] += 3
    found.closes[Reason.NOISE_INVALID_PSK] += 2
    found.drops[Reason.NO_OWNER] += 1
    found.handshakes["IK"] += 4
    found.forward_latency.observe(0.0002)
    found.admission_latency.observe(0.03)
    found.platform_answered("ok", 0.02)
    found.platform_answered("failed", 3.0)
    return found


@pytest.fixture
def collect(state):
    """Factory: the registry of a relay with these counters and the state of `state`."""
    log = EventLog(io.StringIO(), max_entries=1)

    def make(counters, relay_id="r", **options):
        return registry(RelayCollector(counters, state, log, lambda: 9.0, relay_id, **options))

    return make


@pytest.fixture
def made(counters, collect, state, make_peer, make_target):
    clients = [make_peer(name=f"c-{n}", queued_bytes=size) for n, size in enumerate((70, 7, 0, 0, 0))]
    state.views = [
        make_target("w-1", daemon=make_peer("workspace-daemon"), clients=tuple(clients)),
        make_target("w-2"),
    ]
    state.age, state.back = 12.5, {"mode": "redis", "up": False}
    return collect(counters, 'relay "7"')


def values(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def test_every_documented_name_is_exported(made):
    text = generate_latest(made).decode()
    names = {name for name, _ in values(text)}
    assert set(CONTRACT) <= names
    assert "_created" not in text
    for name in ("relay_connections_total", "relay_workspaces_total"):
        assert f"# TYPE {name} gauge" in text
    for name in CONTRACT[2:]:
        assert f"# TYPE {name} counter" in text


def test_every_plain_counter_is_exported(counters, made):
    plain = {field.name for field in attrs.fields(Counters) if field.type in (int, "int")}
    assert plain == set(COUNTERS)
    found = values(generate_latest(made).decode())
    for attribute in COUNTERS:
        assert found[f"relay_{attribute}_total", ()] == getattr(counters, attribute)


def test_numbers_and_labels(made):
    found = values(generate_latest(made).decode())
    assert {k: v for k, v in found.items() if k[0] == "relay_connections_total"} == {
        ("relay_connections_total", (("role", "workspace-daemon"),)): 1.0,
        ("relay_connections_total", (("role", "client"),)): 5.0,
        ("relay_connections_total", (("role", "worker"),)): 0.0,
    }
    assert found["relay_refusals_total", (("reason", "JWT_EXPIRED"),)] == 3
    assert found["relay_closes_total", (("reason", "NOISE_INVALID_PSK"),)] == 2
    assert found["relay_handshake_failures_total", (("reason", "NOISE_INVALID_PSK"),)] == 2
    assert found["relay_handshake_failures_total", (("reason", "NOISE_TIMEOUT"),)] == 0
    assert found["relay_handshakes_total", (("noise", "IK"),)] == 4
    assert found["relay_frames_dropped_total", (("reason", "NO_OWNER"),)] == 1
    assert found["relay_forward_latency_seconds_count", ()] == 1
    assert found["relay_forward_latency_seconds_bucket", (("le", "0.00025"),)] == 1
    assert found["relay_platform_request_duration_seconds_count", (("outcome", "failed"),)] == 1
    assert found["relay_jwks_age_seconds", ()] == 12.5 and found["relay_backplane_up", ()] == 0
    assert found["relay_queue_bytes", (("to", "clients"),)] == 77 and found["relay_queue_bytes_max", ()] == 70
    assert found["relay_build_info", (("relay_id", 'relay "7"'), ("version", __version__))] == 1
    assert found["relay_workspaces", ()] == 2 and found["relay_uptime_seconds", ()] == 9
    assert found["process_resident_memory_bytes", ()] > 1_000_000


def test_openmetrics_is_valid(made):
    encode, kind = choose_encoder("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(encode(made).decode())}
    assert "relay_connections_total" in names and "relay_admission_ok" in names


def test_unknown_values_are_left_out(counters, collect, state):
    state.age = None
    text = generate_latest(collect(counters)).decode()
    assert "relay_jwks_age_seconds" not in text


def test_reasons_are_exported_with_zero_from_the_start(collect):
    found = values(generate_latest(collect(Counters())).decode())
    for name, reason in (
        ("relay_refusals_total", Reason.INTERNAL_KEY_MISMATCH),
        ("relay_closes_total", Reason.PONG_TIMEOUT),
        ("relay_frames_dropped_total", Reason.NO_OWNER),
    ):
        assert found[name, (("reason", reason.code),)] == 0
    assert found["relay_platform_request_duration_seconds_count", (("outcome", "failed"),)] == 0


# -- names --------------------------------------------------------------------------------------------------------


def promtool(text):
    """The lines that `promtool check metrics` prints."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30
    )
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.promtool
def test_promtool_complains_about_deprecated_names_only(counters, collect):
    def text(deprecated):
        return generate_latest(collect(counters, deprecated=deprecated)).decode()

    assert promtool(text(False)) == []
    complaints = promtool(text(True))
    assert {line.split()[0] for line in complaints} == set(DEPRECATED)
    assert all("_total" in line for line in complaints)


def test_a_deprecated_metric_names_its_successor_and_has_the_same_values(made):
    text = generate_latest(made).decode()
    found = values(text)
    for older, name in DEPRECATED.items():
        assert f"# HELP {older} Deprecated, use {name}. " in text
        old = {labels: value for (metric, labels), value in found.items() if metric == older}
        new = {labels: value for (metric, labels), value in found.items() if metric == name}
        assert old == new and new


def test_cpu_and_memory_of_every_process(collect, state):
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        state.pids = {"parent": os.getpid(), "worker-0": child.pid, "worker-1": 2**22 + 1}
        found = values(generate_latest(collect(Counters())).decode())
    finally:
        child.communicate()
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds"):
        labels = {dict(key)["process"] for metric, key in found if metric == f"relay_process_{name}"}
        assert labels == {"parent", "worker-0"}, "one that is gone is left out"
    assert found["relay_process_resident_memory_bytes", (("process", "parent"),)] > 1_000_000


def test_histograms_of_other_processes_are_added(collect):
    here, there = Counters(), Counters()
    here.forward_latency.observe(0.0002)
    there.forward_latency.observe(0.0002)
    there.platform_answered("timeout", 2.0)
    here.elsewhere = {sample_key(s): s.value for metric in there.latencies() for s in metric.samples}
    found = values(generate_latest(collect(here)).decode())
    assert found["relay_forward_latency_seconds_bucket", (("le", "0.00025"),)] == 2
    assert found["relay_forward_latency_seconds_sum", ()] == pytest.approx(0.0004)
    assert found["relay_platform_request_duration_seconds_count", (("outcome", "timeout"),)] == 1
