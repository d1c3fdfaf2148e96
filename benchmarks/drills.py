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
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks/results/drills"

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


def main() -> None:
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
        result["when"] = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
        options.into.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
