"""The drills of tests/chaos with a fleet of this checkout and, in the same run, of another one.

    python benchmarks/drills.py --into benchmarks/results/drills/DATE.json --checkout ../before [--only killed]

Each drill is one test in its long form. The result has for each drill and checkout (`relay` is this one) its figures, and `broken`,
the first promise that did not hold, or null. Drills that FILE already has are replaced. The table for
docs/topics/resilience.md is made by `make docs`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks/results/drills"

#: Titles of figures, and how each is shown.
Figures = tuple[tuple[str, Callable[[dict[str, Any]], str]], ...]

#: Drill -> its test in the long form.
DRILLS: Final = {
    "killed": "tests/chaos/test_fleet.py::test_one_of_five_relays_is_killed[100-10.0]",
    "redirects": "tests/chaos/test_fleet.py::test_clients_that_follow_redirects_do_not_use_the_bus[90]",
    "paused": "tests/chaos/test_fleet.py::test_redis_stops_answering[40-10.0]",
    "sentinel": "tests/chaos/test_fleet.py::test_sentinel_promotes_another_primary[40]",
    "partition": "tests/chaos/test_fleet.py::test_one_relay_is_partitioned_from_redis[40-20.0]",
    "haproxy": "tests/chaos/test_fleet_restart.py::test_a_rolling_restart[haproxy-150]",
    "nginx": "tests/chaos/test_fleet_restart.py::test_a_rolling_restart[nginx-150]",
    "storm": "tests/chaos/test_fleet_restart.py::test_all_daemons_reconnect_at_once[2000]",
}


def drill(test: str, code: Path) -> dict[str, Any]:
    """Run one drill with the relay of a source tree."""
    with tempfile.NamedTemporaryFile() as lines:
        environ = os.environ | {"DRILL_CODE": str(code), "DRILL_FIGURES": lines.name}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "slow or not slow",
            "-q",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            test,
        ]
        ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        figures = [json.loads(line) for line in Path(lines.name).read_text().splitlines()]
    broken = re.search(r"^\S+\.py:\d+: (.*)", ran.stdout, re.MULTILINE)
    if ran.returncode and broken is None:
        raise SystemExit(f"{test} did not run:\n{ran.stdout[-2000:]}")
    return {"figures": figures[-1] if figures else None, "broken": broken[1][:300] if broken else None}


# -- the table of docs/topics/resilience.md ---------------------------------------------------------------------------


def newest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(max(RESULTS.glob("*.json")).read_text())["drills"]
    return found


def not_answered(found: dict[str, Any]) -> str:
    return (
        f"{found['cut']} cut, {found['told']:,} told, {found['silent']} silent; {found['longest_gap']:.1f} s"
    )


def seconds(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda figures: f"{figures[name]:.1f} s"


def requests(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda figures: not_answered(figures[name])


def shape(tenths: list[int]) -> str:
    return ", ".join(str(sum(tenths[at : at + 5])) for at in range(0, len(tenths), 5))


RESTART: Final[Figures] = (
    ("reconnects; upgrades refused", lambda f: f"{f['reconnects']}; {f['refused']}"),
    ("requests not answered; longest pause", not_answered),
    ("frames over the bus afterwards", lambda f: f"{f['bus_share_afterwards']:.2%}"),
)
#: Drill -> its name on the page, and its figures.
ROWS: Final[dict[str, tuple[str, Figures]]] = {
    "killed": (
        "kill -9 of one of five relays",
        (
            ("its pairs talk again after", seconds("back_after")),
            ("their requests not answered; longest pause", requests("theirs")),
            ("the same of all other pairs", requests("spared")),
        ),
    ),
    "redirects": (
        "no affinity",
        (
            ("frames over the bus, clients follow redirects", lambda f: f"{f['followed']:.2%}"),
            ("the same, clients do not follow", lambda f: f"{f['not_followed']:.0%}"),
        ),
    ),
    "paused": (
        "Redis stands still for 10 s",
        (
            ("noticed after", seconds("noticed_after")),
            ("requests of local pairs not answered; longest pause", requests("local")),
            ("the same of split pairs", requests("split")),
            ("split pairs talk again after its end", seconds("healed_after")),
        ),
    ),
    "sentinel": (
        "the primary is killed",
        (
            ("another one is named after", seconds("promoted_after")),
            ("split pairs talk again after", seconds("healed_after")),
            ("requests of split pairs not answered; longest pause", requests("split")),
        ),
    ),
    "partition": (
        "one relay loses Redis for 20 s",
        (
            ("noticed after", seconds("noticed_after")),
            ("requests of local pairs not answered; longest pause", requests("local")),
            ("split pairs talk again after its end", seconds("healed_after")),
            ("the older daemon is closed after its end", seconds("older_daemon_closed_after")),
        ),
    ),
    "haproxy": ("rolling restart behind HAProxy", RESTART),
    "nginx": ("rolling restart behind nginx", RESTART),
    "storm": (
        "2,000 daemons come at once",
        (
            (
                "all are seated; announced after",
                lambda f: f"{f['seated_after']:.1f} s; {f['announced_after']:.1f} s",
            ),
            (
                "CPU of that relay; of each daemon",
                lambda f: f"{f['relay_cpu']:.1f} s; {1000 * f['cpu_each']:.1f} ms",
            ),
            ("refused; requests to the platform", lambda f: f"{f['refused']:,}; {f['platform_requests']:,}"),
            ("commands of Redis, those of scripts too", lambda f: f"{f['redis_commands']:,}"),
            ("seats taken in each half second", lambda f: shape(f["joins_per_tenth"])),
            ("longest pause of pairs there", lambda f: f"{f['steady']['longest_gap']:.1f} s"),
            ("memory of that relay", lambda f: f"{f['rss'] / 1e6:.0f} MB"),
        ),
    ),
}


def table() -> str:
    """Figures of each drill, of release 0.1.0 and of this checkout."""
    lines = ["| fault | | 0.1.0 | now |", "| --- | --- | ---: | ---: |"]
    results = newest()
    for name, (fault, figures) in ROWS.items():
        relays = [results[name][relay] for relay in ("before", "relay")]
        for title, show in figures:
            cells = [show(found["figures"]) if found["figures"] else "-" for found in relays]
            lines.append(f"| {fault} | {title} | {cells[0]} | {cells[1]} |")
            fault = ""
        broken = ["" if found["broken"] is None else "no" for found in relays]
        if any(broken):
            lines.append(f"| | every promise was kept | {broken[0] or 'yes'} | {broken[1] or 'yes'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from machine import machine  # of this folder: it is a script's neighbour, and no module of the package

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, required=True, metavar="FILE")
    parser.add_argument("--checkout", type=Path, metavar="DIRECTORY", help="the other checkout")
    parser.add_argument("--only", default=",".join(DRILLS), help="comma list of drills")
    options = parser.parse_args()
    codes = {"relay": ROOT} | ({"before": options.checkout.resolve()} if options.checkout else {})
    result = json.loads(options.into.read_text()) if options.into.exists() else {"drills": {}}
    for name in options.only.split(","):
        for relay, code in codes.items():
            result["drills"].setdefault(name, {})[relay] = found = drill(DRILLS[name], code)
            print(name, relay, json.dumps(found), file=sys.stderr)
        result["machine"] = machine()
        result["when"] = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
        options.into.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
