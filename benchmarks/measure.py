"""Runs of the load generator against several relays, interleaved, each run beside the others' of its repetition."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from attrs import frozen
from cells import Cell
from compare import Figures
from relays import BUILD, HERE, Kind, Platform, Running, running


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
    asked = validations(platform)
    done = subprocess.run(
        command(cell, relay, platform, pace, turn),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_pin(pace, last=False),
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


def command(cell: Cell, relay: Running, platform: Platform, pace: Pace, turn: int) -> list[str]:
    """The load generator's command line for a run."""
    program = [str(BUILD / "loadgen"), cell.mode, "-v"]
    options: dict[str, object] = {
        "port": relay.port,
        "pid": relay.pid,
        "tokens": platform.tokens,
        **cell.options,
    }
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
    return program + [word for name, value in options.items() for word in (f"--{name}", str(value)) if word]


def validations(platform: Platform) -> int:
    """Number of requests to the platform so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{platform.port}/counts", timeout=5) as answer:
        return int(json.load(answer)["validate"])


def cores(pace: Pace, *, last: bool) -> set[int] | None:
    """With --pin the relays use only the last core, and all other processes the other cores."""
    have = sorted(os.sched_getaffinity(0))
    if not pace.pinned or len(have) < 2:
        return None
    return {have[-1]} if last else set(have[:-1])


def _pin(pace: Pace, *, last: bool) -> Any:
    chosen = cores(pace, last=last)
    return (lambda: os.sched_setaffinity(0, chosen)) if chosen else None


def measure(batch: Sequence[Cell], kinds: Sequence[Kind], platform: Platform, pace: Pace) -> list[Figures]:
    """All repetitions of a batch of cells that share their relays; the first run of each, a warm-up, is discarded."""
    first = batch[0]
    own, others = cores(pace, last=True), cores(pace, last=False)

    def begun(kind: Kind) -> AbstractContextManager[Running]:
        return running(kind, platform, first.environment, own, tls=first.tls, other_cores=others)

    rows: list[Figures] = []
    if first.mode == "idle":
        # A used heap would hide the memory of connections, so these relays start anew each time.
        for turn, cell, kind in _runs(range(1, pace.repetitions + 1), batch, kinds):
            with begun(kind) as relay:
                rows.append(run(cell, relay, platform, pace, turn))
        return rows
    with ExitStack() as stack:
        relays = {kind.name: stack.enter_context(begun(kind)) for kind in kinds}
        for turn, cell, kind in _runs(range(pace.repetitions + 1), batch, kinds):
            row = run(cell, relays[kind.name], platform, pace, turn)
            if turn:
                rows.append(row)
    return rows


def _runs(
    turns: Iterable[int], batch: Sequence[Cell], kinds: Sequence[Kind]
) -> Iterator[tuple[int, Cell, Kind]]:
    """The runs in their order: the relays of each cell one right after the other, and every second time the other way round."""
    for turn, cell in itertools.product(turns, batch):
        for kind in kinds if turn % 2 else tuple(reversed(kinds)):
            yield turn, cell, kind


def run(cell: Cell, relay: Running, platform: Platform, pace: Pace, turn: int) -> Figures:
    """The row of one run, with its figures or its failure."""
    row: Figures = {"cell": cell.name, "relay": relay.kind.name, "repetition": turn}
    try:
        return row | loadgen(cell, relay, platform, pace, turn)
    except BadRun as bad:
        print(f"  FAILED {cell.name}, {relay.kind.name}: {bad}", flush=True)
        return row | {"failed": str(bad)}
