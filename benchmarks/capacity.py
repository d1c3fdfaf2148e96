"""The tables of docs/topics/capacity.md, from the newest results that have the needed figures.

    make docs          writes them into the page

All figures are per core of the machine that the results name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fleetload import FULL, PERIOD, PULL, SLICES, Load, Simulated, cost, simulate

RESULTS = Path(__file__).resolve().parent / "results"

#: Planned load of a relay, as a part of a core.
HALF = 0.5
#: Clients of a daemon, and frames per second that reach a peer, of a daemon and its clients together.
CLIENTS, FRAMES = 2, 5.0
FLEETS = (10, 100, 1000)
#: Way of clients to their daemon's relay -> share of frames over the bus; None: random balancing.
WAYS: tuple[tuple[str, float | None], ...] = (
    ("hashed by workspace, or redirects followed", 0.001),
    ("the goal for steady state", 0.01),
    ("neither", None),
)


@cache
def cell(name: str) -> Mapping[str, Any]:
    """This relay's line of a cell, in the newest full results that have the cell."""
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        if not path.stem.endswith("-quick"):
            for line in json.loads(path.read_text())["summary"]:
                if (line["relay"], line["cell"]) == ("relay", name):
                    return {"from": path.name, **line}
    raise SystemExit(f"no results have the cell {name!r}")


@cache
def bus(name: str, layout: str) -> Mapping[str, Any]:
    """The line of a cell of bus.py."""
    for path in sorted((RESULTS / "bus").glob("*.json"), reverse=True):
        for line in json.loads(path.read_text())["summary"]:
            if (line["cell"], line["layout"]) == (name, layout) and line.get("runs"):
                return {"from": f"bus/{path.name}", **line}
    raise SystemExit(f"no results of bus.py have {name!r}, {layout}")


@cache
def redis() -> Mapping[str, Any]:
    """The newest results of rediscost.py."""
    path = max((RESULTS / "redis").glob("*.json"))
    return {"from": f"redis/{path.name}", **json.loads(path.read_text())}


def median(line: Mapping[str, Any], figure: str) -> float:
    found = line[figure]
    return float(found["median"] if isinstance(found, dict) else found)


def frame_us(name: str) -> float:
    """Microseconds of the relay's CPU per frame in this cell."""
    return median(cell(name), "cpu_s_per_100k") * 10


# -- one core --------------------------------------------------------------------------------------------------------

SIZES = ("128 B", "1 KB", "16 KB", "256 KB", "900 KB")
#: Many connections of which ten send frames: the cell that is most similar to production.
USUAL = "5000 connections"
IDLE = "idle, 5000 connections"
#: Seconds between two pings, while memory and idle CPU are measured, and by default (RELAY_PING_INTERVAL_MS).
MEASURED_PING, PING = 3.0, 30.0


def idle_us() -> float:
    """Microseconds of CPU per second for an idle peer."""
    return median(cell(IDLE), "cpu_share") / 5000 * MEASURED_PING / PING * 1e6


def daemons_per_relay() -> int:
    """Daemons, with their clients and frames, that fit into HALF a core; rounded down to hundreds."""
    each = FRAMES * frame_us(USUAL) + (1 + CLIENTS) * idle_us()
    return int(HALF * 1e6 / each) // 100 * 100


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    titles = list(head)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join("| " + " | ".join(str(one) for one in line) + " |\n" for line in lines)


def round_(value: float) -> str:
    """A number rounded to two significant digits."""
    if value == 0:
        return "0"
    digits = max(0, 1 - int(f"{abs(value):e}".partition("e")[2]))
    return f"{round(value, digits):,.{digits}f}" if value < 100 else f"{float(f'{value:.2g}'):,.0f}"


def one_core() -> str:
    rows: list[list[str]] = []
    for size in SIZES:
        costs = [frame_us(f"frames, {which}, {size}, 1 in flight") for which in ("1 pair", "50 pairs")]
        costs.append(frame_us(f"frames, 50 pairs, {size}, 16 in flight"))
        rows.append([f"a frame of {size}", *map(round_, costs), *(round_(1e6 / us) for us in costs)])
    frames = table(
        ("", "µs alone", "µs, 50 pairs", "µs, streams", "frames/s alone", "50 pairs", "streams"), rows
    )
    usual, cold = frame_us(USUAL), median(cell("upgrades, cold, 32 at a time"), "cpu_ms_per_upgrade")
    cached = median(cell("upgrades, cached, 32 at a time"), "cpu_ms_per_upgrade")
    tls = frame_us("tls, 50 pairs, 1 KB, 1 in flight")
    memory = median(cell(IDLE), "kb_per_connection")
    others = table(
        ("", "costs", "a core or 1 GB carries"),
        [
            [f"`f`, a frame of 1 KB among 5,000 connections, {round(FRAMES)} at a time", f"{usual:.1f} µs", f"{round_(1e6 / usual)}/s"],
            ["the same frame over TLS, 50 pairs", f"{tls:.1f} µs", f"{round_(1e6 / tls)}/s"],
            ["an upgrade that the platform is asked about", f"{cold:.2f} ms", f"{round_(1e3 / cold)}/s"],
            ["an upgrade whose token was asked about before", f"{cached:.2f} ms", f"{round_(1e3 / cached)}/s"],
            ["`i`, a peer that says nothing, with a ping every 30 s", f"{idle_us():.1f} µs/s", f"{round_(1e6 / idle_us())} peers"],
            ["a peer's memory", f"{memory:.1f} KB", f"{round_(1e6 / memory)} peers"],
        ],
    )  # fmt: skip
    return f"{frames}\n{others}"


# -- a fleet ---------------------------------------------------------------------------------------------------------


def share_of(way: float | None, relays: int) -> float:
    return (relays - 1) / relays if way is None else way


def bus_us() -> float:
    """Microseconds of CPU per frame over the bus: both relays and Redis."""
    return median(bus("frames, 50 pairs, 1 KB, 1 in flight", "bus"), "cpu_s_per_100k") * 10


def fleets() -> str:
    costs = redis()["us_of_redis"]["alone"]
    daemons = daemons_per_relay()
    rows = []
    for relays in FLEETS:
        for name, way in WAYS:
            load = Load(relays, daemons, share_of(way, relays), FRAMES)
            commands = load.commands()
            cores = load.cores(costs)
            rows.append([
                f"{relays:,}, {name}", f"{relays * daemons:,}", f"{load.share:.1%}", round_(commands["renew"]),
                round_(commands["resolve"] + commands["record_of"]), round_(commands["push and pull"]), round_(cores),
                round_(load.bus_frames * bus_us() / 1e6 / relays),
            ])  # fmt: skip
    return table(
        ("relays, and how clients find their daemon", "daemons", "over the bus", "renewals/s", "look-ups/s", "pushes/s",
         "cores of Redis", "more cores per relay"),
        rows,
    )  # fmt: skip


def limits() -> str:
    """Capacity of one Redis, for each way, with the costs of single and pipelined commands."""
    daemons = daemons_per_relay()
    rows = []
    for name, way in WAYS:
        row = [name]
        for costs in redis()["us_of_redis"].values():
            relays = 1
            while Load(relays + 1, daemons, share_of(way, relays + 1), FRAMES).cores(costs) <= FULL:
                relays += 1
            row += [f"{relays:,}", f"{relays * daemons:,}"]
        load = Load(10, daemons, share_of(way, 10), FRAMES)
        costs = redis()["us_of_redis"]["alone"]
        parts = {kind: rate * cost(kind, costs) for kind, rate in load.commands().items()}
        most = max(parts, key=lambda kind: parts[kind])
        rows.append([*row, f"{most}, {parts[most] / sum(parts.values()):.0%}"])
    found = table(
        ("", "relays, commands alone", "daemons", "relays, pipelined", "daemons", "most of Redis's time"),
        rows,
    )
    each = redis()["presence_bytes"]
    return f"{found}\nPresence takes {each} bytes of Redis's memory for each daemon: {round_(each / 10)} MB for 100,000.\n"


def several() -> str:
    """The largest fleet on several Redis, in three ways: cores and connections of each server."""
    costs = redis()["us_of_redis"]["alone"]
    relays, daemons, share = max(FLEETS), daemons_per_relay(), 0.001
    load = Load(relays, daemons, share, FRAMES)
    rows = []
    for parts in (1, 5, 20, 50):
        # By workspace every relay has a queue in each server, and pulls from it.
        pushes = load.commands()["push and pull"] / parts
        idle = max(0.0, relays / PULL - pushes) - load.commands()["idle pull"] / parts
        by_workspace = load.cores(costs) / parts + idle * costs["idle pull"] / 1e6
        cells = Load(relays // parts, daemons, share, FRAMES)
        rows.append([
            str(parts), round_(cells.cores(costs)), round_(by_workspace), round_(load.cores(costs) / parts),
            f"{2 * cells.relays:,}", f"{2 * relays:,}", f"{relays + relays // parts:,}",
        ])  # fmt: skip
    return table(
        ("Redis servers", "cores of each: cells", "by workspace", "Cluster", "connections of each: cells", "by workspace", "Cluster"),
        rows,
    )  # fmt: skip


# -- the simulation --------------------------------------------------------------------------------------------------

#: name, relays, share, relays that fail in the first second, seconds for which one relay reads nothing
SCENES: tuple[tuple[str, int, float, int, float], ...] = (
    ("10 relays, hashed", 10, 0.001, 0, 0.0),
    ("50 relays, hashed", 50, 0.001, 0, 0.0),
    ("20 relays, 1 % over the bus", 20, 0.01, 0, 0.0),
    ("50 relays, 1 % over the bus: overloaded", 50, 0.01, 0, 0.0),
    ("20 relays, 1 % over the bus, one reads nothing for 3 s", 20, 0.01, 0, 3.0),
    ("50 relays, hashed, one dies", 50, 0.001, 1, 0.0),
    ("50 relays, hashed, five die at once", 50, 0.001, 5, 0.0),
)
SIMULATED_SECONDS = PERIOD * (1 + 1 / SLICES)
SEED = 21


@cache
def scene(relays: int, share: float, lost: int, stalled: float) -> tuple[Load, Simulated]:
    load = Load(relays, daemons_per_relay(), share, FRAMES)
    costs = redis()["us_of_redis"]["alone"]
    return load, simulate(load, costs, seconds=SIMULATED_SECONDS, seed=SEED, lost=lost, stalled=stalled)


def simulated() -> str:
    costs = redis()["us_of_redis"]["alone"]
    rows = []
    for name, *how in SCENES:
        load, found = scene(*how)
        rows.append([
            name, round_(sum(load.commands().values())), round_(sum(found.commands.values())), f"{load.cores(costs):.1%}",
            f"{found.busy:.1%}", *(f"{wait * 1000:.1f}" for wait in found.waits), f"{found.longest:,}", f"{found.queue:,}",
        ])  # fmt: skip
    return table(
        ("", "commands/s by formula", "simulated", "busy by formula", "simulated", "wait p50, ms", "p99", "longest",
         "most that wait", "longest queue"),
        rows,
    )  # fmt: skip


def sources() -> str:
    """The result files that the figures come from."""
    names = {cell(name)["from"] for name in (USUAL, IDLE, "upgrades, cold, 32 at a time")}
    names |= {
        cell(f"frames, {which}, {size}, 1 in flight")["from"]
        for which in ("1 pair", "50 pairs")
        for size in SIZES
    }
    names |= {cell("tls, 50 pairs, 1 KB, 1 in flight")["from"], redis()["from"]}
    names.add(bus("frames, 50 pairs, 1 KB, 1 in flight", "bus")["from"])
    return "From `benchmarks/results`: " + ", ".join(f"`{name}`" for name in sorted(names)) + ".\n"


PARTS = {
    "sources": sources,
    "one-core": one_core,
    "fleets": fleets,
    "limits": limits,
    "several": several,
    "simulated": simulated,
}
