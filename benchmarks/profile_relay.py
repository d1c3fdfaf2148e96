"""CPU profile of the relay under the load generator: a ranking of Python functions.

    python benchmarks/profile_relay.py '50 pairs, 1 KB, 1 in flight' [--checkout FOLDER] [--top N]
    python benchmarks/profile_relay.py --bus '50 pairs, 1 KB, 1 in flight'

The relay samples its own stack every few milliseconds of its CPU time (SIGPROF), system calls included; other
processes do not count. *self* is a function with the C code and system calls that it calls itself, *all* includes its
callees. Python handles a signal only between some instructions, so a function may get samples of the code just before
its call. For CPU per frame use run.py: the profiler costs a few per cent.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import bus
from cells import CELLS
from mint import mint
from relays import BUILD, Kind, build, running, running_platform

PERIOD = 0.002
OUTPUT = "RELAY_PROFILE_OUTPUT"


def _place(frame: FrameType) -> str:
    code = frame.f_code
    path = Path(code.co_filename)
    return f"{code.co_qualname} ({'/'.join(path.parts[-2:])})"


def inside() -> None:
    """Runs in the relay's process: sample until the end, then write the profile."""
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
        # The first signal starts the sampling under load, the second ends it and writes.
        if signal.getitimer(signal.ITIMER_PROF)[1]:
            signal.setitimer(signal.ITIMER_PROF, 0)
            seen = {"self": own.most_common(), "lines": lines.most_common(), "all": total.most_common()}
            Path(os.environ[OUTPUT]).write_text(json.dumps(seen))
        else:
            signal.setitimer(signal.ITIMER_PROF, PERIOD, PERIOD)

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR2, toggle)
    # Importing it installs a reactor, which the program that drives the load has no use for.
    from twisted.scripts.twistd import run

    sys.argv = ["twistd", "-n", "--pidfile=", "viewport-relay"]
    run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cell", help="a part of a cell's name; the first that has it is used")
    parser.add_argument("--checkout", default=str(Path(__file__).resolve().parents[1]))
    parser.add_argument(
        "--bus", action="store_true", help="two relays, Redis in between; cells are those of bus.py"
    )
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    build()
    if options.bus:
        over_the_bus(options)
    else:
        one_relay(options)


def one_relay(options: argparse.Namespace) -> None:
    cell = next(cell for cell in CELLS if options.cell in cell.name)
    count = 20_000 if cell.mode == "connect" else 0
    mint(BUILD / "profile", max(500, int(cell.options.get("daemons", 0))), count if cell.cold else 1)
    kind = _profiled(options.checkout, {**cell.environment, **_outputs("a")})
    with running_platform(BUILD / "profile") as platform, running(kind, platform, tls=cell.tls) as relay:
        words = {"port": relay.port, "tokens": platform.tokens, **cell.options}
        if cell.mode == "connect":
            words |= {"count": count, **({"tokens": platform.fresh} if cell.cold else {})}
        _drive(cell.mode, words, (relay.pid,), options.seconds, {})
    _report(cell.name, _output("a"), options.top)


def over_the_bus(options: argparse.Namespace) -> None:
    name, (mode, words) = next(item for item in bus.CELLS.items() if options.cell in item[0])
    mint(BUILD / "profile", bus.PAIRS, 0)
    kind = _profiled(options.checkout, {})
    with (
        running_platform(BUILD / "profile") as platform,
        bus.layout("bus", platform, BUILD, kind, _outputs) as where,
    ):
        load = {"port": where.port, "client-port": where.client_port, "tokens": platform.tokens, **words}
        _drive(mode, load, where.pids[:2], options.seconds, {where.pids[2]: "redis-server"})
    for relay, role in (("a", "the daemons' relay"), ("b", "the clients' relay")):
        _report(f"{name}, {role}", _output(relay), options.top)


def _profiled(folder: str, environment: Mapping[str, str]) -> Kind:
    """The relay of a checkout, which starts this file."""
    return Kind("profiled", "", (sys.executable, __file__), {"PYTHONPATH": folder, **environment})


def _output(relay: str) -> Path:
    return BUILD / f"profile-{relay}.json"


def _outputs(relay: str) -> dict[str, str]:
    """Settings with the file of a relay's profile."""
    _output(relay).unlink(missing_ok=True)
    return {OUTPUT: str(_output(relay))}


def _drive(
    mode: str, words: Mapping[str, object], pids: Sequence[int], seconds: float, others: Mapping[int, str]
) -> None:
    """Profile the relays under this load; report the CPU of the `others`."""
    words = {**words, "pid": pids[0]}
    if mode == "throughput":
        words["seconds"] = seconds + 3
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value)) if word]
    load = subprocess.Popen([str(BUILD / "loadgen"), mode, *flags], stdout=subprocess.DEVNULL)
    time.sleep(1.5)
    before = {pid: cpu_seconds(pid) for pid in (*pids, *others)}
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)
    for pid, spent in before.items():
        name = others.get(pid, "relay")
        print(f"{name}: {cpu_seconds(pid) - spent:.2f} s of CPU in {seconds:g} s")
    time.sleep(0.5)
    load.terminate()
    load.wait()


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _report(name: str, output: Path, top: int) -> None:
    seen = json.loads(output.read_text())
    samples = sum(n for _, n in seen["self"])
    print(f"{name}: {samples} samples of {PERIOD * 1000:g} ms CPU")
    for what in ("self", "lines", "all"):
        print(f"\n{what}")
        for place, n in seen[what][:top]:
            print(f"  {100 * n / samples:5.1f} %  {place}")


if __name__ == "__main__":
    if OUTPUT in os.environ:
        inside()
    else:
        main()
