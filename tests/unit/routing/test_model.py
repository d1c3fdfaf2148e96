"""The daemon's seat: generations, replacement, contest."""

from __future__ import annotations

import pytest

from tests.unit.routing.house import House
from viewport_relay.protocol.grant import Role
from viewport_relay.routing.model import Contested, Peer, Seat, Seated, SeatOutcome, Stale


class Bench:
    """A seat and a factory of daemons."""

    def __init__(self) -> None:
        self.house = House()
        self.seat = Seat()

    def daemon(self, generation: int | None) -> Peer:
        return self.house.peer(Role.DAEMON, daemon_issue_generation=generation)

    def arrive(self, generation: int | None, now: float = 0.0) -> tuple[Peer, SeatOutcome]:
        peer = self.daemon(generation)
        return peer, self.seat.arrive(peer, now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


#: generations that arrived before, the next generation, its outcome
ARRIVALS: list[tuple[list[int | None], int | None, str]] = [
    ([], None, "seated"),
    ([], 0, "seated"),
    ([], 9, "seated"),
    ([5], 4, "stale"),
    ([5], 0, "stale"),
    ([5], 5, "contested"),
    ([5], None, "contested"),
    ([5], 6, "replaces"),
    ([0], 1, "replaces"),
    ([None], None, "contested"),
    ([None], 0, "contested"),  # an absent generation equals any other
    ([None], 7, "contested"),
    ([5, 6], 5, "stale"),
    ([5, 6], 6, "contested"),
    ([5, 6], 7, "replaces"),
    ([5, None], 4, "stale"),
]


@pytest.mark.parametrize(("before", "generation", "outcome"), ARRIVALS)
def test_who_has_the_seat_after_an_arrival(
    bench: Bench, before: list[int | None], generation: int | None, outcome: str
) -> None:
    for earlier in before:
        bench.arrive(earlier)
    holder = bench.seat.holder
    peer, arrival = bench.arrive(generation)
    match outcome:
        case "seated":
            assert arrival == Seated(None)
            assert bench.seat.holder is peer
        case "stale":
            assert arrival == Stale()
            assert bench.seat.holder is holder
        case "contested":
            assert arrival == Contested(holder)
            assert bench.seat.holder is holder
            assert bench.seat.challengers[-1] is peer
        case "replaces":
            assert arrival == Seated(replaced=holder)
            assert bench.seat.holder is peer


def test_the_highest_generation_is_kept_while_the_seat_is_empty(bench: Bench) -> None:
    first, _ = bench.arrive(5)
    bench.seat.leave(first)
    assert bench.arrive(4)[1] == Stale()
    absent, arrival = bench.arrive(None)
    assert arrival == Seated(None)
    bench.seat.leave(absent)
    assert bench.arrive(5)[1] == Seated(None)


def test_an_absent_generation_counts_as_the_highest_seen(bench: Bench) -> None:
    first, _ = bench.arrive(5)
    bench.seat.leave(first)
    absent, _ = bench.arrive(None)
    assert bench.arrive(5)[1] == Contested(absent)
    assert bench.arrive(6)[1] == Seated(replaced=absent)


def test_after_three_replacements_within_a_minute_a_higher_generation_contests(bench: Bench) -> None:
    bench.arrive(1, now=0.0)
    for generation, now in ((2, 10.0), (3, 20.0), (4, 30.0)):
        assert isinstance(bench.arrive(generation, now)[1], Seated)
    holder = bench.seat.holder
    assert bench.arrive(5, now=69.9)[1] == Contested(holder)
    # one minute after the first of the three replacements
    sixth, arrival = bench.arrive(6, now=70.0)
    assert arrival == Seated(replaced=holder)
    assert bench.arrive(7, now=75.0)[1] == Contested(sixth)  # replacements at 20, 30 and 70 s


def test_a_challenger_that_leaves_never_gets_the_seat(bench: Bench) -> None:
    holder, _ = bench.arrive(1)
    challenger, _ = bench.arrive(1)
    assert bench.seat.leave(challenger) is None
    assert bench.seat.holder is holder
    assert bench.seat.leave(holder) is None
    assert bench.seat.holder is None


def test_when_the_holder_leaves_the_first_challenger_gets_the_seat(bench: Bench) -> None:
    holder, _ = bench.arrive(1)
    first, _ = bench.arrive(1)
    second, _ = bench.arrive(None)
    assert bench.seat.leave(holder) is first
    assert bench.seat.challengers == [second]
    assert bench.seat.leave(first) is second
    assert bench.seat.leave(second) is None


def test_a_challenger_with_a_stale_generation_never_gets_the_seat(bench: Bench) -> None:
    bench.arrive(1)
    for generation in (2, 3, 4):
        bench.arrive(generation)
    holder = bench.seat.holder
    assert holder is not None
    equal, _ = bench.arrive(4)
    higher, arrival = bench.arrive(5)
    assert arrival == Contested(holder)  # more than three replacements within a minute
    assert bench.seat.leave(holder) is higher
    assert equal not in bench.seat.challengers
    assert bench.arrive(5)[1] == Contested(higher)


def test_a_daemon_without_the_seat_leaves_without_effect(bench: Bench) -> None:
    holder, _ = bench.arrive(1)
    assert bench.seat.leave(bench.daemon(1)) is None
    assert bench.seat.holder is holder
