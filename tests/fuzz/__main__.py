"""Coverage-guided fuzzing of every target, with the corpus in the repository.

    python -m tests.fuzz [TARGET ...] [--runs N] [--seconds N]      needs atheris

Each target runs in its own process, for N inputs or seconds. A finding ends the process and leaves its input in the current
folder as `crash-…`. Inputs that reach new code are added to the corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="*", help="all by default")
    parser.add_argument("--runs", type=int, default=1_500_000, help="inputs for each target [1500000]")
    parser.add_argument("--seconds", type=int, default=0, help="at most so long for each target [no limit]")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.one:
        return _fuzz(given.target[0], rest)
    from tests.fuzz import corpus
    from tests.fuzz.targets import TARGETS

    unknown = set(given.target) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    status = total = 0
    for name in given.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            for number, data in enumerate((*TARGETS[name][1], *corpus.read(name))):
                (Path(folder) / f"{number:05}").write_bytes(data)
            limits = [f"-runs={given.runs}", *([f"-max_total_time={given.seconds}"] if given.seconds else [])]
            command = [
                sys.executable,
                "-m",
                "tests.fuzz",
                "--one",
                name,
                *limits,
                "-max_len=8192",
                "-timeout=20",
                folder,
            ]
            began = time.monotonic()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            seconds = time.monotonic() - began
            found = re.search(r"Done (\d+) runs", done.stdout)
            runs = int(found[1]) if found else 0
            total += runs
            kept = corpus.write(name, [path.read_bytes() for path in Path(folder).iterdir()])
            word = "ok" if done.returncode == 0 else "FOUND"
            print(f"{name:<12} {word:<6} {runs:>10} inputs {seconds:>7.0f} s  corpus {kept}", flush=True)
            if done.returncode:
                status = 1
                print(done.stdout[-6000:])
    print(f"{total} inputs in all")
    return status


def _fuzz(name: str, options: list[str]) -> int:
    """Run one target in this process. libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["viewport_relay", "jwt", "twisted.web", "autobahn"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name][0])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
