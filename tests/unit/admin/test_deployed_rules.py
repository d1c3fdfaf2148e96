"""Grafana dashboard and alert rules of `deploy/`: every metric exists in a scrape, promtool accepts the rules."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families

from viewport_relay.reasons import Reason

DEPLOY = Path(__file__).parents[3] / "deploy"
ALERTS = DEPLOY / "prometheus-alerts.yaml"
GRAFANA = DEPLOY / "grafana-dashboard.json"

_NAME = re.compile(r"\b(?:relay|process|python)_[a-z0-9_]+\b")


def expressions() -> dict[str, str]:
    """All queries of both files, by their place."""
    found = {}
    dashboard = json.loads(GRAFANA.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for variable in dashboard["templating"]["list"]:
        found[f"variable {variable['name']}"] = variable.get("definition", "")
    for number, block in enumerate(
        re.findall(r"expr: (.*?)\n        (?:for|labels):", ALERTS.read_text(), re.S)
    ):
        found[f"alert {number}"] = block
    return found


@pytest_twisted.ensureDeferred
async def test_every_metric_of_a_query_is_in_a_scrape(admin):
    families = list(text_string_to_metric_families((await admin.get("/metrics")).text))
    samples = {sample.name for family in families for sample in family.samples}
    named = {name for text in expressions().values() for name in _NAME.findall(text)}
    assert len(named) > 30
    assert named <= samples, named - samples


@pytest_twisted.ensureDeferred
async def test_every_label_value_of_a_query_is_in_a_scrape(admin):
    text = (await admin.get("/metrics")).text
    for where, expression in expressions().items():
        for label, operator, value in re.findall(
            r'\b(reason|role|outcome|noise|to)(=~?)"([^"]+)"', expression
        ):
            for one in value.split("|") if operator == "=~" else [value]:
                assert f'{label}="{one}"' in text, (where, label, one)
                assert label != "reason" or one in Reason.__members__


def test_the_dashboard_has_the_structure_that_grafana_requires():
    dashboard = json.loads(GRAFANA.read_text())
    assert dashboard["uid"] == "viewport-relay" and dashboard["title"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert all(target["datasource"]["uid"] == "${source}" for target in panel["targets"])


@pytest.mark.promtool
def test_promtool_accepts_the_rules():
    ran = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "rules found" in ran.stdout


@pytest.mark.promtool
@pytest_twisted.ensureDeferred
async def test_promtool_accepts_the_names_and_the_exposition(admin):
    text = (await admin.get("/metrics")).body
    ran = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    # deprecated names, and prometheus_client's own
    known = ("relay_connections_total", "relay_workspaces_total", "python_gc_", "python_info", "process_")
    complaints = [line for line in ran.stderr.decode().splitlines() if line and not line.startswith(known)]
    assert complaints == []


#: alert, series over ten minutes at one sample a minute, whether the alert fires at the end
CASES = [
    ("RelayDown", 'up{job="viewport-relay", instance="a"}', "1x4 0x10", True),
    ("RelayDown", 'up{job="viewport-relay", instance="a"}', "1x10", False),
    ("RelayNotReady", 'relay_ready{instance="a"}', "0x10", True),
    ("RelayNotReady", 'relay_ready{instance="a"}', "0x8 1x3", False),
    ("RelayInternalKeyMismatch", 'relay_refusals_total{reason="INTERNAL_KEY_MISMATCH", instance="a"}', "0x6 1x5", True),
    ("RelayInternalKeyMismatch", 'relay_refusals_total{reason="JWT_EXPIRED", instance="a"}', "0+9x10", False),
    ("RelayPlatformFailing", 'relay_refusals_total{reason="PLATFORM_UNREACHABLE", instance="a"}', "0+10x10", True),
    ("RelayPlatformFailing", 'relay_refusals_total{reason="PLATFORM_UNREACHABLE", instance="a"}', "0x6 1x5", False),
    ("RelayFull", 'relay_refusals_total{reason="TOO_MANY_CONNECTIONS", instance="a"}', "0x6 5x5", True),
    ("RelayKeysOld", 'relay_jwks_age_seconds{instance="a"}', "20000+60x10", True),
    ("RelayKeysOld", 'relay_jwks_age_seconds{instance="a"}', "60+60x10", False),
    ("RelayBackplaneDown", 'relay_backplane_up{instance="a"}', "1x2 0x10", True),
    ("RelayBusForged", 'relay_bus_pull_invalid_signature_total{instance="a"}', "0x6 3x5", True),
    ("RelayBusForged", 'relay_bus_pull_invalid_signature_total{instance="a"}', "3x10", False),
    ("RelayLogLost", 'relay_log_write_failures_total{instance="a"}', "0x6 3x5", True),
    ("RelayHandshakesFail", 'relay_handshake_failures_total{reason="NOISE_INVALID_PSK", instance="a"}', "0+5x10", True),
    ("RelayHandshakesFail", 'relay_handshake_failures_total{reason="NOISE_INVALID_PSK", instance="a"}', "0x9 1x2", False),
]  # fmt: skip


@pytest.mark.promtool
def test_alerts_fire_in_their_cases_only(tmp_path):
    tests = []
    for alert, series, values, fires in CASES:
        given = [{"series": series, "values": values}]
        if alert == "RelayBusForged":  # the alert adds three counters
            for kind in ("stale", "replayed"):
                name = f'relay_bus_pull_{kind}_signature_total{{instance="a"}}'
                given.append({"series": name, "values": "0x10"})
        tests.append(
            {
                "interval": "1m",
                "input_series": given,
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                        "eval_time": "10m",
                        "exp_samples": [{"labels": "{}", "value": int(fires)}],
                    }
                ],
            }
        )
    file = tmp_path / "tests.yaml"  # JSON is valid YAML
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    ran = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
