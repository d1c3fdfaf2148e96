"""Arithmetic of docs/topics/capacity.md: formulas against the simulation and against known values."""

from __future__ import annotations

import math

import pytest

from benchmarks import capacity
from benchmarks.fleetload import FULL, Load, simulate

COSTS = {
    "renew": 20.0, "announce": 20.0, "mark": 10.0, "relays": 12.0, "moved": 6.0, "resolve": 10.0, "record_of": 8.0, "idle pull": 12.0,
    "push and pull, 1 of 1 KB": 30.0,
}  # fmt: skip


def test_rates_of_a_fleet_calculated_by_hand() -> None:
    commands = Load(relays=10, daemons=1100, share=0.0).commands()
    assert commands["renew"] == pytest.approx(10 * 1100 / 22)
    assert commands["idle pull"] == 10 and commands["mark"] == commands["relays"] == 0.5
    assert commands["moved"] == 20
    assert commands["push and pull"] == commands["resolve"] == commands["record_of"] == 0


def test_frames_form_batches_only_at_high_rates_per_direction() -> None:
    few, many = Load(100, 5000, 0.001), Load(2, 5000, 0.5)
    assert few.batches() == pytest.approx(few.bus_frames, rel=0.01)
    assert many.bus_frames == 25_000 and many.batches() < 2_000.1  # two directions, a thousand turns a second


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01])
def test_the_simulation_has_the_rates_of_the_formulas(share: float) -> None:
    load = Load(20, 2000, share)
    found = simulate(load, COSTS, seconds=22.0, seed=7)
    for kind, rate in load.commands().items():
        four_sigma = 4 * math.sqrt(rate / 22.0)  # of a number that comes at random
        assert found.commands[kind] == pytest.approx(rate, abs=max(1.0, four_sigma)), kind
    assert found.busy == pytest.approx(load.cores(COSTS), rel=0.05)


def test_the_simulation_is_the_same_each_time() -> None:
    load = Load(5, 500, 0.01)
    first, again, other = (simulate(load, COSTS, seconds=4.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_an_overloaded_redis_has_a_queue_that_grows() -> None:
    load = Load(100, 20_000, 0.01)
    assert load.cores(COSTS) > 1
    short, long = (simulate(load, COSTS, seconds=seconds, seed=1) for seconds in (2.0, 6.0))
    assert long.waits[2] > 2 * short.waits[2] and long.busy > 0.95


def test_the_queue_of_a_relay_that_reads_nothing() -> None:
    load = Load(20, 5000, 0.01)
    read, stalled = (simulate(load, COSTS, seconds=6.0, seed=1, stalled=seconds) for seconds in (0.0, 3.0))
    assert read.queue < 20
    assert stalled.queue == pytest.approx(load.bus_frames / load.relays * 3.0, rel=0.1)


def test_daemons_of_lost_relays_are_announced_once() -> None:
    load = Load(20, 1000, 0.001)
    found = simulate(load, COSTS, seconds=22.0, seed=3, lost=2)
    assert found.commands["announce"] * 22 == pytest.approx(2000)
    assert found.busy > simulate(load, COSTS, seconds=22.0, seed=3).busy


def test_the_results_plan_half_a_core_for_a_relay() -> None:
    daemons = capacity.daemons_per_relay()
    used = daemons * (
        capacity.FRAMES * capacity.frame_us(capacity.USUAL) + (1 + capacity.CLIENTS) * capacity.idle_us()
    )
    assert 0.45e6 < used <= 0.5e6
    costs = capacity.redis()["us_of_redis"]["alone"]
    assert Load(2, daemons, 0.001).cores(costs) < FULL


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.00371, "0.0037"), (8.84, "8.8"), (19, "19"), (52_510, "53,000")]
)
def test_figures_are_shown_with_two_digits(value: float, shown: str) -> None:
    assert capacity.round_(value) == shown
