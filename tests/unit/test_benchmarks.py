"""Arithmetic of the benchmarks: ratios within a repetition, verdicts, the report."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark modules, imported like scripts in one folder."""
    names = ("cells", "compare", "floors", "plot", "relays", "report")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield SimpleNamespace(**{name: __import__(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def rows(cell: str, **costs: list[float]) -> list[dict[str, Any]]:
    return [
        {"cell": cell, "relay": relay, "repetition": turn, "cpu_s_per_100k": cost, "p99_us": cost}
        for relay, values in costs.items()
        for turn, cost in enumerate(values, 1)
    ]


def test_ratios_are_taken_within_a_repetition(bench: Any) -> None:
    # Both relays cost twice as much in the second repetition: the ratio stays equal.
    found = bench.compare.ratios(rows("c", relay=[1, 2], node=[2, 4]), "c", "relay", "cpu_s_per_100k", "node")
    assert found == [0.5, 0.5]


def test_a_failed_run_has_no_ratio(bench: Any) -> None:
    measured = rows("c", relay=[1, 2, 3], node=[2, 4, 6])
    del measured[1]["cpu_s_per_100k"]
    measured[1]["failed"] = "frames out of order"
    assert len(bench.compare.ratios(measured, "c", "relay", "cpu_s_per_100k", "node")) == 2


@pytest.mark.parametrize(
    ("cell", "most"),
    [
        ("frames, 50 pairs, 128 B, 1 in flight", 0.5),
        ("frames, 50 pairs, 1 KB, 1 in flight", 0.5),
        ("frames, 50 pairs, 1 KB, 16 in flight", 0.4),
        ("frames, 1 pair, 1 KB, 16 in flight", 0.4),
        ("frames, 1 pair, 128 B, 1 in flight", 0.9),
        ("frames, 1 pair, 16 KB, 1 in flight", 0.25),
        ("frames, 50 pairs, 256 KB, 1 in flight", 0.12),
        ("frames, 50 pairs, 900 KB, 16 in flight", 0.12),
    ],
)
def test_the_goal_of_a_cell(bench: Any, cell: str, most: float) -> None:
    found = next(c for c in bench.cells.CELLS if c.name == cell)
    assert [goal.most for goal in bench.cells.goals(found)] == [most, 1.0]


@pytest.mark.parametrize(("cost", "met"), [(0.99, True), (1.01, False)])
def test_a_goal_is_met_up_to_its_limit(bench: Any, cost: float, met: bool) -> None:
    cell = next(c for c in bench.cells.CELLS if c.name == "frames, 50 pairs, 1 KB, 1 in flight")
    verdicts = bench.compare.judge(rows(cell.name, relay=[cost] * 3, node=[2] * 3), cell, cell.name)
    assert verdicts[0]["met"] is met


@pytest.mark.parametrize(("size", "goal"), [("1 KB", 2.0), ("64 KB", 1.8)])
@pytest.mark.parametrize("tls", ["", "tls, "])
def test_links_are_compared_with_the_same_relay_without_links(
    bench: Any, size: str, goal: float, tls: str
) -> None:
    name = f"links, {tls}{size}, 16 in flight"
    base, cell = (
        next(c for c in bench.cells.CELLS if c.name == f"{name}, {what}")
        for what in ("without links", "over two links")
    )
    assert cell.base == base.name and cell.tls == base.tls and bool(cell.tls) == bool(tls)
    measured = rows(base.name, relay=[1, 2], before=[9, 9]) + rows(
        cell.name, relay=[goal, 2 * goal + 0.1], before=[9, 9]
    )
    assert bench.compare.judge(measured, base, base.name) == []
    (verdict,) = bench.compare.judge(measured, cell, base.name)
    assert verdict["most"] == goal and verdict["got"]["min"] == goal and not verdict["met"]


def test_scale_is_compared_with_the_relays_own_first_cell(bench: Any) -> None:
    first, last = (c for c in bench.cells.CELLS if c.name in ("10 connections", "5000 connections"))
    measured = rows(first.name, relay=[1, 1], node=[9, 9]) + rows(last.name, relay=[1.3, 1.3], node=[9, 9])
    assert bench.compare.judge(measured, first, first.name) == []
    (verdict,) = bench.compare.judge(measured, last, first.name)
    assert (verdict["got"]["median"], verdict["met"]) == (1.3, False)


def test_the_report_replaces_the_text_between_its_marks_only(bench: Any, tmp_path: Path) -> None:
    page, plain = tmp_path / "page.md", tmp_path / "plain.md"
    page.write_text(f"before\n{bench.report.BEGIN}\nold \\1\n{bench.report.END}\nafter\n")
    plain.write_text("no marks\n")
    assert bench.report.put(page, "new \\1") and not bench.report.put(plain, "new")
    assert not bench.report.put(tmp_path / "missing.md", "new")
    assert page.read_text() == f"before\n{bench.report.BEGIN}\n\nnew \\1\n{bench.report.END}\nafter\n"
    assert plain.read_text() == "no marks\n"


def test_cold_upgrades_have_a_goal_in_milliseconds_and_cached_ones_a_ratio(bench: Any) -> None:
    names = {cell.name: cell for cell in bench.cells.CELLS}
    rows = [
        {"cell": cell, "relay": relay, "repetition": turn, "cpu_ms_per_upgrade": cost}
        for cell in names
        for turn in (1, 2, 3)
        for relay, cost in (("relay", 0.9), ("node", 1.0))
    ]
    most = {
        "upgrades, cold, one by one": (1.0, True),
        "upgrades, cold, 32 at a time": (1.0, True),
        "upgrades, cached, one by one": (1.0, True),
        "upgrades, cached, 32 at a time": (0.8, False),
    }
    for name, (limit, met) in most.items():
        [verdict] = bench.compare.judge(rows, names[name], "")
        assert (verdict["most"], verdict["got"]["median"], verdict["met"]) == (limit, 0.9, met)
    slow = [
        {**row, "cpu_ms_per_upgrade": 1.1} for row in rows
    ]  # as slow as Node, and over the limit in milliseconds
    [verdict] = bench.compare.judge(slow, names["upgrades, cold, one by one"], "")
    assert verdict["met"] is False


def test_the_report_accepts_cells_without_figures(bench: Any) -> None:
    cell = next(c for c in bench.cells.CELLS if c.group == "frames")
    kinds = [bench.relays.KINDS[name] for name in ("relay", "node")]
    failed = [{"cell": cell.name, "relay": kind.name, "repetition": 1, "failed": "lost"} for kind in kinds]
    results = {
        "summary": bench.compare.summary(failed, cell, kinds),
        "goals": [],
        "base": "node",
        "relays": {kind.name: kind.about for kind in kinds},
        "when": "2026-01-01T00:00Z",
        "note": "",
        "pace": {"repetitions": 1},
        "machine": {"cpu": "some", "cores": 2, "kernel": "Linux"},
        "versions": {"python": "3.11"},
    }
    assert "some, 2 cores" in bench.report.full(results)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path: Path) -> None:
    """Benchmarks run by hand only, so a renamed part of the relay would be missed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("viewport_relay"):
            module = importlib.import_module(node.module)
            missing = {alias.name for alias in node.names if not hasattr(module, alias.name)}
            assert not missing, node.module


def test_a_floor_is_what_a_frame_without_a_link_and_the_cipher_cost(bench: Any, tmp_path: Path) -> None:
    def line(cell: str, relay: str, cost: float) -> dict[str, Any]:
        return {"cell": cell, "relay": relay, "cpu_s_per_100k": {"median": cost}}

    results = tmp_path / "results.json"
    summary = [
        line("links, 64 KB, 16 in flight, without links", "relay", 4),
        line("links, 64 KB, 16 in flight, over two links", "relay", 9),
        line("frames, 50 pairs, 1 KB, 16 in flight", "relay", 0.5),
        line("tls, 50 pairs, 1 KB, 16 in flight", "relay", 0.7),
        line("tls, 50 pairs, 1 KB, 16 in flight", "node", 1.4),
        line("upgrades, cold, one by one", "relay", 1) | {"cpu_s_per_100k": {"median": 0}},
    ]
    results.write_text(json.dumps({"summary": summary}))
    floors = {
        "Noise, 64 KB": 36,  # microseconds
        "plain, 50 pairs, 1 KB, 16 in flight": 0.6,
        "TLS, 50 pairs, 1 KB, 16 in flight": 2.6,
    }
    assert bench.floors.against(results, floors) == [
        ("links, 64 KB, 16 in flight", 2.25, pytest.approx(1.9), 1.8),
        ("tls, 50 pairs, 1 KB, 16 in flight", pytest.approx(0.5), pytest.approx(0.5), 0.35),
    ]
