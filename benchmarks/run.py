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
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from cells import CELLS, TOGETHER, Cell
from compare import Figures, judge, summary
from machine import machine, versions
from mint import mint
from relays import (
    BASE,
    BUILD,
    HERE,
    KINDS,
    Kind,
    Platform,
    Running,
    build,
    checkout,
    running,
    running_platform,
)

DEFAULT_KINDS = "relay,relay-plain,node,autobahn"
#: Above this share of a core the load generator may have limited the rate (not the CPU per frame).
LOADGEN_LIMIT = 0.9


@frozen
class Pace:
    """Durations in seconds, except `upgrades` and `repetitions`."""

    repetitions: int
    seconds: float
    warm_up: float
    upgrades: int
    settle: float
    pinned: bool


class BadRun(Exception):
    """The load generator found an error; the message is its own."""


def loadgen(cell: Cell, relay: Running, platform: Platform, pace: Pace, turn: int) -> Figures:
    """One run. `turn` counts from 0, the discarded run. Raises BadRun."""
    options: dict[str, object] = {
        "port": relay.port,
        "pid": relay.pid,
        "tokens": platform.tokens,
        **cell.options,
    }
    program = [str(BUILD / "loadgen"), cell.mode, "-v"]
    if cell.mode == "throughput":
        shorter = 0.5 if turn == 0 else 1.0
        options |= {"seconds": pace.seconds * shorter, "warm-up": pace.warm_up}
    elif cell.mode == "links":
        program = [sys.executable, str(HERE / "link_frames.py")]
    elif cell.mode == "connect":
        options |= {"count": pace.upgrades}
        if cell.cold:
            options |= {"tokens": platform.fresh, "first-token": turn * pace.upgrades}
    else:
        options |= {"settle": pace.settle, "seconds": pace.settle}
    command = program + [
        word for name, value in options.items() for word in (f"--{name}", str(value)) if word
    ]
    asked = validations(platform)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=_pin(pace, last=False)
    )
    if done.returncode:
        raise BadRun(done.stderr.strip()[:2000] or f"status {done.returncode}")
    figures: Figures = json.loads(done.stdout)
    if cell.mode == "idle":
        figures |= figures.pop("steps")[0]
    if cell.mode == "connect" and relay.kind.admits:
        figures["validations"] = validations(platform) - asked
        if cell.cold and figures["validations"] < pace.upgrades:
            raise BadRun(f"only {figures['validations']} of {pace.upgrades} upgrades asked the platform")
    return figures


def validations(platform: Platform) -> int:
    """Number of requests to the platform so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{platform.port}/counts", timeout=5) as answer:
        return int(json.load(answer)["validate"])


def _cores(pace: Pace, *, last: bool) -> set[int] | None:
    """With --pin the relays use only the last core, and all other processes the other cores."""
    have = sorted(os.sched_getaffinity(0))
    if not pace.pinned or len(have) < 2:
        return None
    return {have[-1]} if last else set(have[:-1])


def _pin(pace: Pace, *, last: bool) -> Any:
    cores = _cores(pace, last=last)
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None


def measure(batch: Sequence[Cell], kinds: Sequence[Kind], platform: Platform, pace: Pace) -> list[Figures]:
    """All repetitions of a batch of cells that share their relays."""
    rows: list[Figures] = []
    relay_cores = _cores(pace, last=True)
    # A used heap would hide the memory of connections, so these relays start anew each time.
    anew = batch[0].mode == "idle"
    with ExitStack() as stack:

        def begin(kind: Kind) -> Running:
            cell = batch[0]
            others = _cores(pace, last=False)
            return stack.enter_context(
                running(kind, platform, cell.environment, relay_cores, tls=cell.tls, other_cores=others)
            )

        relays = {} if anew else {kind.name: begin(kind) for kind in kinds}
        for turn in range(1 if anew else 0, pace.repetitions + 1):
            for cell in batch:
                for kind in kinds if turn % 2 else tuple(reversed(kinds)):
                    relay = begin(kind) if anew else relays[kind.name]
                    row: Figures = {"cell": cell.name, "relay": kind.name, "repetition": turn}
                    try:
                        row |= loadgen(cell, relay, platform, pace, turn)
                    except BadRun as bad:
                        row["failed"] = str(bad)
                        print(f"  FAILED {cell.name}, {kind.name}: {bad}", flush=True)
                    if anew:
                        stack.close()
                    if turn:
                        rows.append(row)
    return rows


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
    pairs = max([500, *(int(cell.options.get("daemons", 0)) for cell in chosen)])
    pairs = max([pairs, *(int(cell.options.get("steps", 0)) // 2 for cell in chosen)])
    fresh = (pace.repetitions + 1) * pace.upgrades if any(cell.cold for cell in chosen) else 1
    mint(BUILD / "tokens", pairs, fresh)
    began, load = time.time(), os.getloadavg()
    rows: list[Figures] = []
    lines: list[Figures] = []
    verdicts: list[Figures] = []
    with running_platform(BUILD / "tokens", _cores(pace, last=False)) as platform:
        for batch in batches(chosen):
            able = [
                kind
                for kind in kinds
                if (kind.admits or batch[0].mode == "throughput")
                and (kind.tls or not batch[0].tls)
                and (kind.links or batch[0].mode != "links")
            ]
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
    path = (
        HERE
        / "results"
        / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(began))}{'-quick' if options.quick else ''}.json"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(compact(results))
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 1 if failed else 0


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
