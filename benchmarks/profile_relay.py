"""Where the relay's CPU time goes while the load generator drives it: a ranking of Python functions.

    python benchmarks/profile_relay.py '50 pairs, 1 KB, 1 in flight' [--checkout FOLDER] [--top N]

The relay looks at its own stack each time it has used another few milliseconds of CPU (SIGPROF), system calls
included; what other processes take does not count. *self* is a function with the C code and system calls that it
calls itself, *all* with everything. Python handles a signal only between some instructions, so a function may get a
little of what ran just before it was called. For CPU per frame use run.py: this costs a few per cent.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

PERIOD = 0.002
OUTPUT = "RELAY_PROFILE_OUTPUT"


def _place(frame: FrameType) -> str:
    code = frame.f_code
    path = Path(code.co_filename)
    return f"{code.co_qualname} ({'/'.join(path.parts[-2:])})"


def inside() -> None:
    """In the relay's process: sample until the end, then write what was seen."""
    own: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    total: Counter[str] = Counter()

    def sample(number: int, frame: FrameType | None) -> None:
        if frame is not None:
            own[_place(frame)] += 1
            lines[f"{_place(frame)}:{frame.f_lineno}"] += 1
        seen = set()
        while frame is not None:
            seen.add(_place(frame))
            frame = frame.f_back
        total.update(seen)

    def toggle(number: int, frame: FrameType | None) -> None:
        # Once to begin when the load is there, once to end and write.
        if signal.getitimer(signal.ITIMER_PROF)[1]:
            signal.setitimer(signal.ITIMER_PROF, 0)
            seen = {"self": own.most_common(), "lines": lines.most_common(), "all": total.most_common()}
            Path(os.environ[OUTPUT]).write_text(json.dumps(seen))
        else:
            signal.setitimer(signal.ITIMER_PROF, PERIOD, PERIOD)

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR2, toggle)
    from twisted.scripts.twistd import run

    sys.argv = ["twistd", "-n", "--pidfile=", "viewport-relay"]
    run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cell", help="a part of a cell's name; the first that has it is used")
    parser.add_argument("--checkout", default=str(Path(__file__).resolve().parents[1]))
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()

    import subprocess
    import time

    from cells import CELLS
    from mint import mint
    from relays import BUILD, Kind, build, running, running_platform

    cell = next(cell for cell in CELLS if options.cell in cell.name)
    build()
    output = BUILD / "profile.json"
    output.unlink(missing_ok=True)
    count = 20_000 if cell.mode == "connect" else 0
    mint(BUILD / "profile", max(500, int(cell.options.get("daemons", 0))), count if cell.cold else 1)
    environment = {OUTPUT: str(output), "PYTHONPATH": options.checkout, **cell.environment}
    kind = Kind("profiled", "", (sys.executable, __file__), environment)
    with running_platform(BUILD / "profile") as platform, running(kind, platform) as relay:
        words: dict[str, object] = {
            "port": relay.port,
            "pid": relay.pid,
            "tokens": platform.tokens,
            **cell.options,
        }
        if cell.mode == "throughput":
            words["seconds"] = options.seconds + 3
        elif cell.mode == "connect":
            words |= {"count": count, **({"tokens": platform.fresh} if cell.cold else {})}
        flags = [word for name, value in words.items() for word in (f"--{name}", str(value)) if word]
        load = subprocess.Popen([str(BUILD / "loadgen"), cell.mode, *flags], stdout=subprocess.DEVNULL)
        time.sleep(1.5)
        os.kill(relay.pid, signal.SIGUSR2)
        time.sleep(options.seconds)
        os.kill(relay.pid, signal.SIGUSR2)
        time.sleep(0.5)
        load.terminate()
        load.wait()
    seen = json.loads(output.read_text())
    samples = sum(n for _, n in seen["self"])
    print(f"{cell.name}: {samples} samples of {PERIOD * 1000:g} ms CPU")
    for what in ("self", "lines", "all"):
        print(f"\n{what}")
        for name, n in seen[what][: options.top]:
            print(f"  {100 * n / samples:5.1f} %  {name}")
    return 0


if __name__ == "__main__":
    if OUTPUT in os.environ:
        inside()
    else:
        raise SystemExit(main())
