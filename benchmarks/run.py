"""Measures this relay and others, interleaved, and compares the figures with the goals.

    make bench                        everything: about an hour
    make bench ARGS=--quick           a part of the cells, short: about ten minutes
    make bench ARGS="--cells '50 pairs, 1 KB' --only relay,node"

Relays are started anew for each cell. The first run of a cell is discarded; then in each repetition every relay runs
once, in an order that is reversed each time. Ratios are taken within a repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from attrs import asdict
from cells import CELLS, TOGETHER, Cell
from compare import Figures, judge, summary
from machine import machine, versions
from measure import Pace, cores, measure
from mint import mint
from relays import (
    BASE,
    BUILD,
    HERE,
    KINDS,
    Kind,
    build,
    checkout,
    running_platform,
)

DEFAULT_KINDS = "relay,relay-plain,node,autobahn"
#: Above this share of a core the load generator may have limited the rate (not the CPU per frame).
LOADGEN_LIMIT = 0.9


def show(lines: Sequence[Figures], verdicts: Sequence[Figures]) -> None:
    """Print progress."""
    print(f"\n{lines[0]['cell']}")
    for line in lines:
        cost = line.get(line["cost"])
        if cost is None:
            print(f"  {line['relay']:12s} no figures")
            continue
        ratio = line.get(f"{line['cost']}_ratio")
        words = f"  {line['relay']:12s} {line['cost']} {cost['median']:9.3f}"
        words += f"  x{ratio['median']:.3f} [{ratio['min']:.2f}-{ratio['max']:.2f}]" if ratio else " " * 21
        for figure, unit in (
            ("frames_per_s", "/s"),
            ("upgrades_per_s", "/s"),
            ("p50_us", " us p50"),
            ("p99_us", " us p99"),
        ):
            if figure in line:
                words += f"  {line[figure]['median']:9.0f}{unit}"
        busy = line.get("loadgen_cpu_share", {}).get("median", 0)
        print(words + ("  (load generator at its limit)" if busy > LOADGEN_LIMIT else ""))
    for verdict in verdicts:
        word = "met   " if verdict["met"] else "MISSED"
        print(
            f"  {word} {verdict['what']}: {verdict['got']['median']:.3f}, goal {verdict['most']}", flush=True
        )


def batches(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that share their relays: those of a group in TOGETHER, those with their base, else each alone."""
    found: list[list[Cell]] = []
    for cell in cells:
        together = cell.group in TOGETHER and found and found[-1][0].group == cell.group
        if together or (cell.base and found and cell.base == found[-1][0].name):
            found[-1].append(cell)
        else:
            found.append([cell])
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells, 3 repetitions of 2 s")
    parser.add_argument(
        "--cells", action="append", default=[], metavar="TEXT", help="only cells whose name has TEXT"
    )
    parser.add_argument(
        "--only", default=DEFAULT_KINDS, metavar="NAMES", help=f"relays, of {','.join(KINDS)}"
    )
    parser.add_argument(
        "--checkout",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="also measure this relay as it is in another checkout",
    )
    parser.add_argument("--reps", type=int, help="repetitions [5, quick: 3]")
    parser.add_argument("--seconds", type=float, help="seconds of one run [4, quick: 2]")
    parser.add_argument("--pin", action="store_true", help="give the relays the last core alone")
    parser.add_argument("--note", default="", help="words for the results file, for example what else ran")
    parser.add_argument("--list", action="store_true", help="list the cells")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    chosen = [
        cell
        for cell in CELLS
        if (not options.cells and (cell.quick or not options.quick))
        or any(text in cell.name for text in options.cells)
    ]
    if options.list:
        print("\n".join(cell.name for cell in chosen))
        return 0
    unknown = [name for name in options.only.split(",") if name not in KINDS]
    if unknown or not chosen:
        print(f"no such relay: {', '.join(unknown)}" if unknown else "no such cell; see --list")
        return 2
    kinds = [KINDS[name] for name in options.only.split(",")]
    kinds += [checkout(*text.partition("=")[::2]) for text in options.checkout]
    quick = options.quick
    pace = Pace(
        repetitions=options.reps or (3 if quick else 5),
        seconds=options.seconds or (2.0 if quick else 4.0),
        warm_up=0.5 if quick else 1.0,
        upgrades=500 if quick else 1500,
        settle=4.0 if quick else 8.0,
        pinned=options.pin,
    )
    return bench(chosen, kinds, pace, options)


def bench(chosen: Sequence[Cell], kinds: Sequence[Kind], pace: Pace, options: argparse.Namespace) -> int:
    """Build, measure, judge, and write the results file. Returns the exit status."""
    build()
    mint_tokens(chosen, pace)
    began, load = time.time(), os.getloadavg()
    rows: list[Figures] = []
    lines: list[Figures] = []
    verdicts: list[Figures] = []
    with running_platform(BUILD / "tokens", cores(pace, last=False)) as platform:
        for batch in batches(chosen):
            able = [kind for kind in kinds if can_serve(kind, batch[0])]
            measured = measure(batch, able, platform, pace)
            rows += measured
            for cell in batch:
                new = summary(measured, cell, able)
                judged = judge(measured, cell, batch[0].name)
                show(new, judged)
                lines += new
                verdicts += judged
    met = sum(verdict["met"] for verdict in verdicts)
    failed = sum("failed" in row for row in rows)
    print(f"\n{met} of {len(verdicts)} goals met, {failed} of {len(rows)} runs failed")
    results = {
        "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(began)),
        "minutes": round((time.time() - began) / 60, 1),
        "quick": options.quick,
        "note": options.note,
        "pace": asdict(pace),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(),
        "base": BASE,
        "relays": {kind.name: kind.about for kind in kinds},
        "goals": verdicts,
        "summary": lines,
        "runs": rows,
    }
    write(results, began, quick=options.quick)
    return 1 if failed else 0


def mint_tokens(chosen: Sequence[Cell], pace: Pace) -> None:
    """Mint tokens for the most pairs of a cell, and fresh ones if a cell needs them."""
    pairs = max([500, *(int(cell.options.get("daemons", 0)) for cell in chosen)])
    pairs = max([pairs, *(int(cell.options.get("steps", 0)) // 2 for cell in chosen)])
    fresh = (pace.repetitions + 1) * pace.upgrades if any(cell.cold for cell in chosen) else 1
    mint(BUILD / "tokens", pairs, fresh)


def can_serve(kind: Kind, cell: Cell) -> bool:
    """Whether this relay has what the cell measures."""
    return (
        (kind.admits or cell.mode == "throughput")
        and (kind.tls or not cell.tls)
        and (kind.links or cell.mode != "links")
    )


def write(results: Figures, began: float, *, quick: bool) -> None:
    """Write the results file, named after the time of the start."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began))
    path = HERE / "results" / f"{stamp}{'-quick' if quick else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(compact(results))
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def compact(results: Figures) -> str:
    """JSON with one line for each entry of the long lists."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list) and value:
            body = "[\n" + ",\n".join("  " + json.dumps(entry) for entry in value) + "\n ]"
        else:
            body = json.dumps(value)
        parts.append(f" {json.dumps(name)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    raise SystemExit(main())
