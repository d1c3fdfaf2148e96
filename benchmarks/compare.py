"""Medians, ratios and verdicts from the figures of single runs. Pure functions.

A row is the load generator's output, with `cell`, `relay` and `repetition`, or with `failed`. Ratios are taken within
a repetition, where the relays ran one right after the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from cells import TOGETHER, Cell, goals
from relays import BASE, Kind

Figures = dict[str, Any]


def ratios(
    rows: Sequence[Figures], cell: str, relay: str, figure: str, base: str, base_cell: str = ""
) -> list[float]:
    """`figure` divided by the base's, in each repetition that has both."""

    def by_repetition(cell: str, relay: str) -> dict[int, float]:
        return {
            row["repetition"]: row[figure]
            for row in rows
            if row["cell"] == cell and row["relay"] == relay and row.get(figure)
        }

    ours, theirs = by_repetition(cell, relay), by_repetition(base_cell or cell, base)
    return [ours[turn] / theirs[turn] for turn in ours if turn in theirs]


def spread(values: Sequence[float]) -> Figures:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


_SUMMED = (
    "cpu_s_per_100k",
    "system_s_per_100k",
    "cpu_ms_per_upgrade",
    "kb_per_connection",
    "frames_per_s",
    "mb_per_s",
    "upgrades_per_s",
    "p50_us",
    "p95_us",
    "p99_us",
    "cpu_share",
    "rss_kb",
    "loadgen_cpu_share",
)


def summary(rows: Sequence[Figures], cell: Cell, kinds: Sequence[Kind]) -> list[Figures]:
    """Per relay: medians and ranges of the figures, and of the ratios to the base."""
    lines = []
    for kind in kinds:
        good = [r for r in rows if r["cell"] == cell.name and r["relay"] == kind.name and "failed" not in r]
        line: Figures = {
            "cell": cell.name,
            "group": cell.group,
            "relay": kind.name,
            "cost": cell.cost,
            "runs": len(good),
        }
        for figure in _SUMMED:
            values = [row[figure] for row in good if figure in row]
            if values:
                line[figure] = spread(values)
        for figure in (cell.cost, "p99_us", "frames_per_s", "upgrades_per_s"):
            found = ratios(rows, cell.name, kind.name, figure, BASE)
            if found and kind.name != BASE:
                line[f"{figure}_ratio"] = spread(found)
        lines.append(line)
    return lines


def judge(rows: Sequence[Figures], cell: Cell, first: str) -> list[Figures]:
    """Each goal of a cell whose figures exist, and whether this relay meets it."""
    verdicts = []
    for goal in goals(cell):
        if goal.absolute:
            found = [
                row[goal.figure]
                for row in rows
                if row["cell"] == cell.name and row["relay"] == "relay" and goal.figure in row
            ]
        elif cell.group in TOGETHER or cell.base:
            found = (
                [] if cell.name == first else ratios(rows, cell.name, "relay", goal.figure, "relay", first)
            )
        else:
            found = ratios(rows, cell.name, "relay", goal.figure, BASE)
        if found:
            got = spread(found)
            met = got["median"] <= goal.most
            verdicts.append({"cell": cell.name, "what": goal.what, "most": goal.most, "got": got, "met": met})
    return verdicts
