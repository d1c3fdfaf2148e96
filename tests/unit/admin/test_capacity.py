"""Capacity: quantiles of histograms, expiry of the certificate, the dashboard's lists."""

from __future__ import annotations

import time

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st

from tests.drill.certificates import Identity
from viewport_relay.admin.trends import KEPT_LATENCIES, Trends, certificate_end, quantile

INF = float("inf")


@pytest.mark.parametrize(
    "buckets,q,found",
    [
        ({}, 0.5, None),
        ({1.0: 0, INF: 0}, 0.5, None),
        ({1.0: 10, INF: 10}, 0.5, 0.5),
        ({1.0: 10, 2.0: 20, INF: 20}, 0.75, 1.5),
        ({1.0: 0, 2.0: 20, INF: 20}, 0.5, 1.5),
        ({1.0: 1, INF: 10}, 0.99, 1.0),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(buckets, q, found):
    assert quantile(buckets, q) == found


@given(st.lists(st.integers(0, 100), min_size=3, max_size=6), st.floats(0.01, 0.99))
def test_a_quantile_lies_within_the_edges_and_rises(counts, q):
    edges = [*(float(n + 1) for n in range(len(counts) - 1)), INF]
    total, buckets = 0, {}
    for edge, count in zip(edges, counts, strict=True):
        total += count
        buckets[edge] = float(total)
    found = quantile(buckets, q)
    if total == 0:
        assert found is None
    else:
        assert 0 <= found <= edges[-2] and found <= quantile(buckets, 0.999)


def test_quantiles_are_of_the_last_minutes(admin):
    counters = admin.counters
    for _ in range(100):
        counters.forward_latency.observe(0.5)
    trends = Trends(lambda: admin.config, counters, admin.state, time.time)
    for _ in range(10):
        counters.forward_latency.observe(0.0002)
    found = trends.quantiles()
    assert 0.0001 < found["forward"]["p99"] <= 0.00025, "what was before does not count"
    assert found["platform"] == {"p50": None, "p99": None}
    for _ in range(KEPT_LATENCIES):
        trends.sample()
    assert trends.quantiles()["forward"]["p50"] is None


def test_the_expiry_of_a_certificate(tmp_path):
    files = Identity.self_signed("relay", "localhost", days=3).write(tmp_path, "relay")

    ends = certificate_end(files.cert)
    assert ends is not None and abs(ends - time.time() - 3 * 86_400) < 120
    assert certificate_end(str(tmp_path / "none.pem")) is None
    (tmp_path / "broken.pem").write_text("no certificate")
    assert certificate_end(str(tmp_path / "broken.pem")) is None


@pytest_twisted.ensureDeferred
async def test_connections_with_problems_come_first(admin, make_target, make_peer):
    admin.state.views = [
        make_target(
            "w-1",
            "t-1",
            daemon=make_peer("workspace-daemon", "machine"),
            clients=(make_peer("client", "ok"),),
        ),
        make_target("w-2", "t-2", clients=(make_peer("client", "waits"),)),
        make_target("w-3", "t-3", daemon=make_peer("workspace-daemon", "slow", paused=True)),
    ]
    body = (await admin.get("/admin/api/connections")).json()
    assert [row["clientId"] for row in body["connections"]][:2] == ["waits", "slow"] and body["total"] == 4
    assert body["connections"][0]["waits"] is True
    found = (await admin.get("/admin/api/connections?search=t-1")).json()["connections"]
    assert {row["clientId"] for row in found} == {"machine", "ok"}
    assert (await admin.get("/admin/api/connections?search=" + "x" * 200)).status == 400
    assert (await admin.get("/admin/api/connections", token=None)).status == 401


@pytest_twisted.ensureDeferred
async def test_settings_show_no_secret(admin, token):
    answer = await admin.get("/admin/api/settings")
    rows = {row["name"]: row for row in answer.json()["settings"]}
    assert token not in answer.text
    assert (
        rows["RELAY_ADMIN_TOKEN"]["value"] == "(set)"
        and rows["RELAY_ADMIN_TOKEN"]["source"] == "RELAY_ADMIN_TOKEN"
    )
    assert rows["RELAY_MAX_LOGS"] == {
        "group": rows["RELAY_MAX_LOGS"]["group"], "name": "RELAY_MAX_LOGS", "value": "1000", "default": "1000", "source": "default",
    }  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_the_overview_has_the_headroom(admin):
    capacity = (await admin.get("/admin/api/overview")).json()["capacity"]
    assert capacity["connections"] == {"used": 0, "limit": 2000}
    assert capacity["processes"]["relay"]["resident_memory_bytes"] > 1_000_000
    assert capacity["certificateEnds"] is None
