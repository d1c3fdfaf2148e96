"""CPU and latency of frames over the bus against direct ones, and of one worker against two.

    python benchmarks/bus.py                          about five minutes; JSON on standard output
    python benchmarks/bus.py --seconds 2 --repetitions 1 --only direct,bus
    python benchmarks/bus.py --only direct,bus --checkout before=../before    interleaves this checkout and another

Needs redis-server. Layouts run interleaved, started anew for each batch of cells:

    direct      one relay
    bus         daemons on one relay, clients on another, Redis in between
    workers-2   one relay with RELAY_WORKERS=2
    forwarded   one relay behind a process that copies bytes (the cost of a parent that keeps the connections)

CPU is the sum over all processes of a layout. Latency is of a round trip, two frames.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from mint import mint
from relays import (
    BUILD,
    KINDS,
    PATIENCE,
    Kind,
    NotListening,
    Platform,
    build,
    checkout,
    on_free_port,
    running,
    running_platform,
)

PAIRS = 50

#: name -> options of the load generator
CELLS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "frames, 50 pairs, 1 KB, 1 in flight": ("throughput", {"daemons": PAIRS, "clients": 1, "size": 1024, "window": 1}),
    "frames, 50 pairs, 1 KB, 16 in flight": ("throughput", {"daemons": PAIRS, "clients": 1, "size": 1024, "window": 16}),
    "frames, 50 pairs, 16 KB, 1 in flight": ("throughput", {"daemons": PAIRS, "clients": 1, "size": 16_384, "window": 1}),
    "frames, 50 pairs, 1 KB, 5,000 frames/s": (
        "throughput", {"daemons": PAIRS, "clients": 1, "size": 1024, "window": 16, "rate": 5000}),
    "frames, 5 in flight in all, 1 KB": (
        "throughput", {"daemons": PAIRS, "clients": 1, "size": 1024, "window": 1, "spread": 5}),
    "upgrades, cached, 32 at a time": ("connect", {"count": 2000, "at-once": 32, "span": 50, "prime": ""}),
}  # fmt: skip

_FIGURES = (
    "frames_per_s",
    "p50_us",
    "p99_us",
    "upgrades_per_s",
    "cpu_s_per_100k",
    "cpu_ms_per_upgrade",
    "loadgen_cpu_share",
)

_FORWARD = """
import sys
from twisted.internet import reactor
from twisted.protocols.portforward import ProxyFactory
reactor.listenTCP(int(sys.argv[1]), ProxyFactory("127.0.0.1", int(sys.argv[2])), 1024, "127.0.0.1")
reactor.run()
"""


@frozen
class Layout:
    """The relays of daemons and clients, and all processes whose CPU counts."""

    port: int
    client_port: int
    pids: tuple[int, ...]


@contextmanager
def process(*command: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if started.poll() is not None or time.monotonic() > until:
                    raise NotListening(f"{command[0]} does not listen on port {port}") from None
                time.sleep(0.05)
        yield started
    finally:
        started.kill()
        started.wait()


def _none(relay: str) -> dict[str, str]:
    """No further settings."""
    return {}


#: Starts a relay with this id and these settings.
StartRelay = Callable[..., Any]


@contextmanager
def layout(
    name: str,
    platform: Platform,
    folder: Path,
    kind: Kind,
    more: Callable[[str], dict[str, str]] = _none,
) -> Iterator[Layout]:
    """All running processes of this layout. `more` returns further settings for a relay's id."""
    remember = {"RELAY_VALIDATE_CACHE_TTL": "3600"}
    with ExitStack() as stack:

        def relay(relay_id: str = "a", **settings: str) -> Any:
            ours = {"RELAY_ID": relay_id, **more(relay_id)}
            return stack.enter_context(running(kind, platform, remember | settings | ours))

        if name == "bus":
            yield _over_redis(stack, relay, folder, platform.internal_key)
        elif name == "forwarded":
            yield _behind_a_forwarder(stack, relay)
        else:
            one = relay(RELAY_WORKERS="2" if name == "workers-2" else "1")
            yield Layout(one.port, one.port, (one.pid,))


def _over_redis(stack: ExitStack, relay: StartRelay, folder: Path, bus_key: str) -> Layout:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("needs redis-server")
    words = program, "--save", "", "--dir", str(folder), "--port"

    def redis_on(port: int) -> tuple[subprocess.Popen[bytes], int]:
        return stack.enter_context(process(*words, str(port), port=port)), port

    redis, port = on_free_port(redis_on)
    settings = {
        "RELAY_BACKPLANE_MODE": "redis",
        "RELAY_REDIS_URL": f"redis://127.0.0.1:{port}",
        "RELAY_BUS_HMAC_KEY": bus_key,
        "RELAY_CLIENT_REDIRECT_ENABLED": "0",
    }
    a, b = relay("a", **settings), relay("b", **settings)
    return Layout(a.port, b.port, (a.pid, b.pid, redis.pid))


def _behind_a_forwarder(stack: ExitStack, relay: StartRelay) -> Layout:
    behind = relay()

    def front_on(port: int) -> tuple[subprocess.Popen[bytes], int]:
        words = sys.executable, "-c", _FORWARD, str(port), str(behind.port)
        return stack.enter_context(process(*words, port=port)), port

    front, port = on_free_port(front_on)
    return Layout(port, port, (behind.pid, front.pid))


def run(cell: str, where: Layout, platform: Platform, seconds: float) -> dict[str, float]:
    """Figures of one run."""
    mode, options = CELLS[cell]
    given: dict[str, object] = {
        "port": where.port,
        "client-port": where.client_port,
        "tokens": platform.tokens,
        **options,
    }
    if mode == "throughput":
        given |= {"seconds": seconds, "warm-up": 0.5}
    words = [word for pid in where.pids for word in ("--pid", str(pid))]
    words += [word for name, value in given.items() for word in (f"--{name}", str(value)) if word]
    done = subprocess.run(
        [BUILD / "loadgen", mode, "-v", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:] or f"status {done.returncode}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", default="direct,bus,workers-2,forwarded")
    parser.add_argument("--cells", default="", help="a part of the names of the cells wanted")
    parser.add_argument(
        "--checkout",
        action="append",
        default=[],
        help="name=folder of another checkout",
    )
    return parser.parse_args()


def measured(
    kind: Kind, name: str, where: Layout, platform: Platform, given: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of all cells that are wanted, in one running layout."""
    for cell in (cell for cell in CELLS if given.cells in cell):
        if name == "bus" and CELLS[cell][0] == "connect":
            continue
        row: dict[str, Any] = {"cell": cell, "relay": kind.name, "layout": name}
        try:
            row |= run(cell, where, platform, given.seconds)
        except RuntimeError as bad:
            row["failed"] = str(bad)
        print(f"{kind.name}, {name}, {cell}: {row}", file=sys.stderr)
        yield row


def main() -> None:
    given = arguments()
    build()
    kinds = [KINDS["relay"], *(checkout(*other.split("=", 1)) for other in given.checkout)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mint(folder, PAIRS, 0)
        with running_platform(folder) as platform:
            turns = itertools.product(range(given.repetitions), kinds, given.only.split(","))
            for repetition, kind, name in turns:
                with layout(name, platform, folder, kind) as where:
                    found = measured(kind, name, where, platform, given)
                    rows += [{**row, "repetition": repetition} for row in found]
    result = {"cores": len(os.sched_getaffinity(0)), "summary": summary(rows), "rows": rows}
    print(json.dumps(result, indent=1))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the repetitions. `times_direct` is the CPU per frame divided by that of the same relay's direct
    layout."""
    lines = []
    direct: dict[tuple[str, str], float] = {}
    for cell, relay, kind in dict.fromkeys((row["cell"], row["relay"], row["layout"]) for row in rows):
        place = cell, relay, kind
        good = [r for r in rows if (r["cell"], r["relay"], r["layout"]) == place and "failed" not in r]
        line: dict[str, Any] = {
            "cell": cell,
            "relay": relay,
            "layout": kind,
            "runs": len(good),
        }
        for figure in _FIGURES:
            values = [row[figure] for row in good if figure in row]
            if values:
                line[figure] = round(statistics.median(values), 4)
        cost = line.get("cpu_s_per_100k")
        if cost is not None and kind == "direct":
            direct[cell, relay] = cost
        elif cost is not None and (cell, relay) in direct:
            line["times_direct"] = round(cost / direct[cell, relay], 2)
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
