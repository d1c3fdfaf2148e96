"""Tables and plots of a results file, written into the page about performance.

    make bench-report                         the newest full results, else the newest ones
    make bench-report ARGS=benchmarks/results/NAME.json

Writes `docs/topics/performance-*.svg`, and the text between the marks of docs/topics/performance.md. Without marks
the text is printed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plot import bars, curves

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOPICS = ROOT / "docs" / "topics"
BEGIN = "<!-- benchmarks: made by `make bench-report` -->"
END = "<!-- /benchmarks -->"

Results = dict[str, Any]
Line = dict[str, Any]

_UNITS = {
    "cpu_s_per_100k": ("CPU s per 100k frames", 2),
    "cpu_ms_per_upgrade": ("CPU ms per upgrade", 2),
    "kb_per_connection": ("KB per connection", 1),
}
_HEADINGS = {
    "frames": "Forwarded frames",
    "tls": "Forwarded frames over TLS",
    "links": "Forwarded frames over Noise links, from one client to its daemon",
    "upgrades": "Upgrades",
    "handshakes": "Upgrades with their TLS handshakes",
    "idle": "Memory of idle connections",
    "connections": "Cost against the number of connections, all of which talk in turn",
    "crowd": "Cost against the number of connections, ten of which talk",
    "workspaces": "Cost against the number of workspaces (1,000 connections)",
}


def newest() -> Path | None:
    """The results file to report: the newest full one, or else the newest."""
    found = sorted(RESULTS.glob("*.json"))
    full = [path for path in found if not path.stem.endswith("-quick")]
    best = full or found
    return best[-1] if best else None


def of(results: Results, group: str, relay: str) -> list[Line]:
    """Lines of one relay in one group, in the order of the cells."""
    return [line for line in results["summary"] if (line["group"], line["relay"]) == (group, relay)]


def row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if value < 100 else f"{value:,.0f}"


def _ratio(line: Line, figure: str) -> str:
    got = line.get(f"{figure}_ratio")
    return f"{got['median']:.2f} ({got['min']:.2f}-{got['max']:.2f})" if got else "-"


def table(results: Results, group: str) -> list[str]:
    """Tables of a group in Markdown."""
    lines = [line for line in results["summary"] if line["group"] == group and line["cost"] in line]
    if not lines:
        return []
    cost = lines[0]["cost"]
    title, digits = _UNITS[cost]
    rate = (
        "frames_per_s"
        if "frames_per_s" in lines[0]
        else "upgrades_per_s"
        if "upgrades_per_s" in lines[0]
        else None
    )
    heads = ["what", "relay", title, f"of {results['base']}'s"]
    heads += ["per second", "p50 ms", "p95 ms", "p99 ms"] if rate else []
    made = [f"### {_HEADINGS[group]}", "", row(heads), row("---" for _ in heads)]
    previous = ""
    for line in lines:
        cells = ["" if line["cell"] == previous else line["cell"].removeprefix(f"{group}, "), line["relay"]]
        previous = line["cell"]
        cells += [_number(line[cost]["median"], digits), _ratio(line, cost)]
        if rate:
            cells += [_number(line[rate]["median"], 0)]
            cells += [_number(line[f"p{p}_us"]["median"] / 1000, 2) for p in (50, 95, 99)]
        made.append(row(cells))
    return [*made, ""]


def goals(results: Results) -> list[str]:
    """The goals and whether they are met."""
    if not results["goals"]:
        return []
    made = ["### Goals", "", row(("what", "figure", "goal", "measured", "")), row("-----")]
    for goal in results["goals"]:
        got = goal["got"]
        measured = f"{got['median']:.2f} ({got['min']:.2f}-{got['max']:.2f})"
        made.append(
            row((goal["cell"], goal["what"], goal["most"], measured, "met" if goal["met"] else "**missed**"))
        )
    return [*made, ""]


def about(results: Results) -> list[str]:
    """The environment of the measurement."""
    machine, versions = results["machine"], results["versions"]
    parts = [
        f"{name} {versions[name]}"
        for name in ("python", "Twisted", "autobahn", "msgspec", "node", "ws")
        if name in versions
    ]
    text = (
        f"Measured {results['when'][:10]} on {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, with "
        f"{', '.join(parts)}; {results['pace']['repetitions']} repetitions. In brackets the range over them."
    )
    return [text + (f" Note: {results['note']}." if results["note"] else ""), ""]


def full(results: Results) -> str:
    """The text for the page about performance."""
    made = about(results)
    for group in _HEADINGS:
        made += table(results, group)
    return "\n".join([*made, *goals(results)])


def plots(results: Results) -> dict[str, str]:
    """File name -> SVG."""
    names = list(results["relays"])
    others = [name for name in names if name != results["base"]]
    made = {}
    cells = [line["cell"] for line in of(results, "frames", results["base"])]
    if cells:
        values = {
            name: [line.get("cpu_s_per_100k_ratio", {}).get("median") for line in of(results, "frames", name)]
            for name in others
        }
        labels = [cell.removeprefix("frames, ") for cell in cells]
        made["frames"] = bars("CPU per forwarded frame, Node peer = 1", labels, values)
    first = [
        int(cell["cell"].split()[0]) for cell in of(results, "connections", "relay") if cell["cost"] in cell
    ]
    if len(first) > 1:
        costs = {
            name: [
                line["cpu_s_per_100k"]["median"]
                for line in of(results, "connections", name)
                if line["cost"] in line
            ]
            for name in names
        }
        complete = {name: values for name, values in costs.items() if len(values) == len(first)}
        made["connections"] = curves("CPU seconds per 100,000 frames against connections", first, complete)
    return made


def put(path: Path, text: str) -> bool:
    """Put `text` between the marks of a file; False if it has none."""
    old = path.read_text() if path.exists() else ""
    new, count = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: f"{BEGIN}\n\n{text}\n{END}",
        old,
        count=1,
        flags=re.DOTALL,
    )
    if count and new != old:
        path.write_text(new)
    return bool(count)


def main(arguments: Sequence[str]) -> int:
    path = Path(arguments[0]) if arguments else newest()
    if path is None:
        print("there are no results yet: make bench")
        return 1
    results: Results = json.loads(path.read_text())
    TOPICS.mkdir(parents=True, exist_ok=True)
    for name, svg in plots(results).items():
        (TOPICS / f"performance-{name}.svg").write_text(svg)
    place, text = TOPICS / "performance.md", full(results)
    if not put(place, text):
        print(f"{place.name} has no marks; this would go there:\n\n{text}")
    print(f"from {path.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
