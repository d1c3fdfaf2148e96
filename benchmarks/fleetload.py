"""Load of a fleet on its Redis: formulas, and a simulation of presence and queues. Pure functions; times are in seconds.

load = Load(relays=100, daemons=5000, share=0.001)
load.commands()          # per second, by kind
simulate(load, costs, seconds=22, seed=1)
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

from attrs import frozen

from viewport_relay.backplane.instance import RECORD_TTL
from viewport_relay.backplane.lookups import ASK_AGAIN
from viewport_relay.backplane.presence import MOVES_EVERY

#: A presence entry is renewed every PERIOD seconds (RELAY_PRESENCE_SYNC_INTERVAL_MS), checked in SLICES parts of it, in the worst
#: case one slice later. A pull waits for PULL (RELAY_BUS_PULL_WAIT_MS) and takes up to LIMIT frames (RELAY_BUS_PULL_LIMIT).
PERIOD = 20.0
SLICES = 10
PULL = 1.0
LIMIT = 200
#: Planned load of Redis, as a part of a core.
FULL = 0.6
#: A step of a simulation.
TICK = 0.001


@frozen
class Load:
    """A fleet in steady state. `daemons` counts those of each relay, `frames` those that reach a peer per second, of
    each daemon and its clients; `share` is the part of them that crosses the bus."""

    relays: int
    daemons: int
    share: float
    frames: float = 5.0

    @property
    def split(self) -> float:
        """Daemons with an active client on another relay: their frames use the bus."""
        return self.relays * self.daemons * self.share

    @property
    def bus_frames(self) -> float:
        """Frames over the bus per second."""
        return self.relays * self.daemons * self.frames * self.share

    def batches(self, turn: float = 0.001) -> float:
        """Pushes per second: all frames of one turn for one relay are pushed together."""
        return self._batched(self.bus_frames * turn) / turn

    def _batched(self, frames: float) -> float:
        """Mean number of relay pairs among this number of simultaneous frames."""
        ways = self.relays * (self.relays - 1)
        return ways * -math.expm1(frames * math.log1p(-1 / ways)) if ways > 1 else min(frames, ways)

    def commands(self) -> dict[str, float]:
        """Commands per second, by kind. A push includes the pull that reads it from the queue."""
        relays, batches = self.relays, self.batches()
        # A client's frame causes one look-up per ASK_AGAIN, for each target and relay.
        asking = self.split * min(self.frames / 2, 1 / ASK_AGAIN)
        return {
            "renew": relays * self.daemons / (PERIOD * (1 + 1 / SLICES)),
            "mark": relays / PERIOD,
            "relays": relays / PERIOD,
            "moved": relays / MOVES_EVERY,
            "resolve": asking,
            "record_of": min(relays * (relays - 1.0), 2 * self.split) / RECORD_TTL,
            "push and pull": batches,
            "idle pull": max(0.0, relays / PULL - batches),
        }

    def cores(self, costs: Mapping[str, float]) -> float:
        """Cores of Redis, from the microseconds of each command."""
        return sum(rate * cost(kind, costs) for kind, rate in self.commands().items()) / 1e6


def cost(kind: str, costs: Mapping[str, float]) -> float:
    """Microseconds of Redis for one of `Load.commands`."""
    if kind == "push and pull":
        return costs["push and pull, 1 of 1 KB"]
    return costs[kind]


@frozen
class Simulated:
    """Result of a simulation. `commands` per second by kind; `waits` are the median, p99 and longest wait of a
    command for Redis, in seconds; `longest` is the largest number of waiting commands, `queue` the largest number of
    elements in the queue of one relay."""

    commands: dict[str, float]
    waits: tuple[float, float, float]
    longest: int
    busy: float
    queue: int


class _Redis:
    """Redis in a simulation: one thread, and the commands that wait for it, in seconds of its work."""

    def __init__(self) -> None:
        self.waiting = self.busy = self.longest_wait = 0.0
        self.longest = 0  # waiting commands
        self.waits: list[float] = []  # of each tick

    def arrive(self, work: float, commands: int) -> None:
        self.waiting += work
        self.waits.append(self.waiting)
        self.longest_wait = max(self.longest_wait, self.waiting)
        if work:
            self.longest = max(self.longest, round(self.waiting / (work / commands)))

    def tick(self) -> None:
        self.busy += min(self.waiting, TICK)
        self.waiting = max(0.0, self.waiting - TICK)


class _Queue:
    """One relay's queue in a simulation. A pull takes up to LIMIT elements, and ends when Redis has come to it."""

    def __init__(self, stalled: float) -> None:
        self._stalled = stalled
        self._elements = 0
        self._reads_at = 0.0
        self.longest = 0

    def tick(self, now: float, pushed: int, wait: float) -> None:
        self._elements += pushed
        self.longest = max(self.longest, self._elements)
        if now >= self._reads_at and not 1.0 <= now < 1.0 + self._stalled:
            self._elements -= min(self._elements, LIMIT)
            self._reads_at = now + wait


def simulate(
    load: Load, costs: Mapping[str, float], *, seconds: float, seed: int, lost: int = 0, stalled: float = 0.0
) -> Simulated:
    """Simulate Redis in ticks of a millisecond.

    With `lost`, that many relays fail in the first second, and the others announce the daemons that reconnect, one per
    millisecond and remaining relay. One relay's queue is followed. With `stalled`, that relay reads nothing for so many seconds,
    from the second second on.
    """
    draw = random.Random(seed)
    renewals = _renewals(draw, load, seconds)
    steady = {kind: rate * TICK for kind, rate in load.commands().items() if kind != "renew"}
    left = load.relays - lost
    to_announce = lost * load.daemons
    totals: dict[str, float] = dict.fromkeys(load.commands(), 0)
    if lost:
        totals["announce"] = 0
    redis, queue = _Redis(), _Queue(stalled)
    for at in range(round(seconds / TICK)):
        arrived = {kind: _poisson(draw, mean) for kind, mean in steady.items()}
        arrived["renew"] = renewals.get(at, 0)
        if to_announce:
            arrived["announce"] = min(left, to_announce)
            to_announce -= arrived["announce"]
        for kind, number in arrived.items():
            totals[kind] += number
        work = sum(number * cost(kind, costs) / 1e6 for kind, number in arrived.items())
        redis.arrive(work, sum(arrived.values()))
        queue.tick(at * TICK, _poisson(draw, steady["push and pull"] / load.relays), redis.waiting)
        redis.tick()
    waits = sorted(redis.waits)
    return Simulated(
        {kind: total / seconds for kind, total in totals.items()},
        (waits[len(waits) // 2], waits[len(waits) * 99 // 100], redis.longest_wait),
        redis.longest,
        redis.busy / seconds,
        queue.longest,
    )


def _renewals(draw: random.Random, load: Load, seconds: float) -> Mapping[int, int]:
    """The renewals of all relays by tick.

    Each relay checks its entries every PERIOD / SLICES, at its own phase, and sends all that are due at once (a real relay sends
    64 at a time and queues the others in its memory).
    """
    slot = PERIOD / SLICES
    groups = SLICES + 1
    drawn = min(load.daemons, 200)  # then scaled
    due: Counter[int] = Counter()
    for begin in [draw.randrange(round(slot / TICK)) for _ in range(load.relays)]:
        sizes = Counter(draw.randrange(groups) for _ in range(drawn))
        for turn in range(math.ceil(seconds / slot)):
            due[begin + turn * round(slot / TICK)] += round(
                sizes[turn % groups] * load.daemons / max(1, drawn)
            )
    return due


def _poisson(draw: random.Random, mean: float) -> int:
    """A Poisson random number with this mean."""
    if mean > 30:  # approximately a normal distribution
        return max(0, round(draw.gauss(mean, math.sqrt(mean))))
    number, left = 0, draw.random()
    chance = math.exp(-mean)
    while left > chance and number < 200:
        left -= chance
        number += 1
        chance *= mean / number
    return number
