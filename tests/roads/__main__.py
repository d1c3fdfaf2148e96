"""Runs the acceptance suite over every road, and prints the matrix of roads and cases.

    python -m tests.roads SUITE [--ci] [--packages FOLDER] [ROAD ...]

SUITE is the folder with the black-box cases of the wire protocol, FOLDER one with packages that only the cases need. With
`--ci`, roads that CI does not run whole run only their part (`Road.ci`). Exit status 0 if every case of every road passed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.roads.matrix import Road, roads

ROOT = Path(__file__).parents[2]

#: Cases wait more than they compute. With many more processes than cores, clocks run late.
PROCESSES = "4"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.roads", description=__doc__.partition("\n")[0])
    parser.add_argument("suite", type=Path, help="folder of the acceptance cases")
    parser.add_argument("--ci", action="store_true", help="the part of each road that CI runs")
    parser.add_argument("--packages", type=Path, help="folder of packages that the cases import")
    parser.add_argument(
        "road", nargs="*", help=f"of {', '.join(road.name for road in roads())}; all by default"
    )
    given = parser.parse_intermixed_args()
    unknown = set(given.road) - {road.name for road in roads()}
    if unknown:
        parser.error(f"no such road: {', '.join(sorted(unknown))}")
    if not (given.suite / "relayproc.py").is_file():
        parser.error(f"{given.suite} has no acceptance suite: name its folder (make roads ACCEPTANCE=…)")
    rows = []
    with tempfile.TemporaryDirectory(prefix="roads-") as folder:
        suite = Path(folder) / "suite"
        shutil.copytree(given.suite, suite, ignore=shutil.ignore_patterns("__pycache__"))
        for road in roads():
            if not given.road or road.name in given.road:
                rows.append(take(road, suite, given.packages, part=road.ci if given.ci else ""))
    print("\n{:<18} {:>7} {:>7} {:>9} {:>6}".format("road", "passed", "failed", "left out", "s"))
    for name, passed, failed, left_out, seconds, _ in rows:
        print(f"{name:<18} {passed:>7} {failed:>7} {left_out:>9} {seconds:>6.0f}")
    total_passed, total_failed = sum(row[1] for row in rows), sum(row[2] for row in rows)
    print(f"\n{total_passed} passed, {total_failed} failed")
    return int(any(row[5] for row in rows))


def take(road: Road, suite: Path, packages: Path | None, part: str) -> tuple[str, int, int, int, float, int]:
    """Run the suite, or the `part` that a pytest expression selects, over one road.

    Returns the road's name, numbers of cases passed, failed and left out, seconds, and pytest's status.
    """
    print(f"\n-- {road.name}{f': {part}' if part else ''}", flush=True)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RELAY_", "PYTEST_", "ROAD"))
    }
    twistd = Path(sys.executable).parent / "twistd"
    environ |= {
        "ROAD": road.name,
        "ROAD_SUITE": str(suite),
        "WIRE_TLS": "1" if road.tls else "0",
        "RELAY_CMD": f"{twistd} -n --pidfile= viewport-relay",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if packages is not None:
        environ["ROAD_PACKAGES"] = str(packages.resolve())
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "tests.roads.plugin", "-p", "no:cacheprovider", "--tb=short",
        "-n", PROCESSES, "--dist", "worksteal", "-c", str(suite / "pytest.ini"), "--rootdir", str(suite), str(suite),
    ]  # fmt: skip
    if part:
        command += ["-k", part]
    began = time.monotonic()
    run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    sys.stdout.write(run.stdout if run.returncode else _closing(run.stdout))
    sys.stderr.write(run.stderr if run.returncode else "")
    sys.stdout.flush()

    def count(word: str) -> int:
        found = re.search(rf"(\d+) {word}", run.stdout.rstrip().rpartition("\n")[2])
        return int(found[1]) if found else 0

    failed = count("failed") + count("errors?")
    left_out = int(found[1]) if (found := re.search(r"^left out: (\d+)", run.stdout, re.MULTILINE)) else 0
    return road.name, count("passed"), failed, left_out, time.monotonic() - began, run.returncode


def _closing(output: str) -> str:
    """The plugin's summary of the road, and pytest's last line."""
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("road ")), len(lines) - 1)
    return "\n".join(lines[start:]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
