"""Rate windows and connection counts: exact limits, bounded tables, release."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.admission.limits import ConnectionCounts, Ticket, UpgradeLimits, WindowCounter
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.windows import Window, WindowTable


@pytest.mark.parametrize("limit", [1, 3, 120])
def test_exactly_n_in_a_window_that_begins_with_the_first_event(limit: int) -> None:
    window = Window()
    assert [window.hit(1000.0 + i / 1000, limit) for i in range(limit + 2)] == [True] * limit + [False] * 2
    assert not window.hit(1059.999, limit)
    assert [window.hit(1060.0, limit) for _ in range(limit + 1)] == [True] * limit + [False]


def test_refused_events_do_not_move_the_window() -> None:
    window = Window()
    window.hit(0.0, 1)
    for second in range(1, 60):
        assert not window.hit(float(second), 1)
    assert window.hit(60.0, 1)


def test_zero_is_off() -> None:
    window = Window()
    assert all(window.hit(0.0, 0) for _ in range(10_000))
    counter = WindowCounter(0)
    assert all(counter.hit("k", 0.0) == 0 for _ in range(10_000)) and len(counter) == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 90)), max_size=20), st.integers(0, 8))
def test_events_charged_together_count_as_one_by_one(steps: list[tuple[int, float]], limit: int) -> None:
    together, single, now = Window(), Window(), 0.0
    for events, later in steps:
        now += later
        assert together.hits(events, now, limit) == sum([single.hit(now, limit) for _ in range(events)])
        assert (together.count, together.over) == (single.count, single.over)


def test_a_clock_that_is_set_back_starts_a_new_window() -> None:
    window = Window()
    window.hit(1_000_000.0, 1)
    assert window.hit(5.0, 1) and not window.hit(6.0, 1)


@pytest.mark.parametrize("at,left", [(0.0, 60_000), (30.5, 29_500), (59.9995, 1), (60.0, 1), (99.0, 1)])
def test_retry_after_in_milliseconds(at: float, left: int) -> None:
    window = Window()
    window.hit(0.0, 1)
    assert window.retry_after_ms(at) == left


def test_a_counter_returns_whole_seconds() -> None:
    counter = WindowCounter(2)
    assert [counter.hit("k", 10.0), counter.hit("k", 10.0), counter.hit("k", 10.0)] == [0, 0, 60]
    assert counter.hit("k", 69.5) == 1 and counter.hit("other", 69.5) == 0
    assert counter.hit("k", 70.0) == 0


def test_a_counter_counts_attempts_over_the_limit() -> None:
    counter = WindowCounter(2)
    for second in range(7):
        counter.hit("k", 100.0 + second)
    assert counter.tried("k", 106.0) == (7, 6), "two within the limit, five over it"
    counter.hit("k", 160.0)
    assert counter.tried("k", 160.0) == (1, 1), "a new minute begins"


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40)), max_size=80))
def test_a_counter_equals_its_model(limit: int, steps: list[tuple[int, float]]) -> None:
    counter = WindowCounter(limit)
    model: dict[int, tuple[float, int]] = {}
    now = 0.0
    for key, pause in steps:
        now += pause
        start, count = model.get(key, (now, 0))
        if now - start >= 60.0:
            start, count = now, 0
        model[key] = (start, min(limit, count + 1))
        assert (counter.hit(key, now) == 0) == (count < limit)


def test_a_table_is_bounded_and_drops_the_oldest() -> None:
    table = WindowTable(100)
    for key in range(1000):
        table.window(key, key / 100).hit(key / 100, 5)
        assert len(table) <= 100
    gc.collect()
    assert table.window(999, 10.0).count == 1 and table.window(0, 10.0).count == 0


def test_ended_windows_are_removed_when_new_ones_are_added() -> None:
    table = WindowTable(1000)
    for key in range(500):
        table.window(key, 0.0).hit(0.0, 5)
    table.window("new", 60.0)
    assert len(table) == 1


def test_one_key_has_one_window() -> None:
    table = WindowTable()
    assert table.window(("w", "c", "ip"), 0.0) is table.window(("w", "c", "ip"), 500.0)


def test_a_window_outlives_its_connection_for_the_minute() -> None:
    table = WindowTable()
    window = table.window("k", 0.0)
    for _ in range(5):
        window.hit(0.0, 5)
    del window
    gc.collect()
    assert not table.window("k", 30.0).hit(30.0, 5)  # a reconnect does not reset the window
    assert table.window("k", 60.0).hit(60.0, 5)


def test_a_referenced_window_stays_unique() -> None:
    table = WindowTable(10)
    held = table.window("held", 0.0)
    for _ in range(5):
        held.hit(0.0, 5)
    for key in range(100):
        table.window(key, 1.0).hit(1.0, 5)
    assert len(table) == 10
    assert table.window("held", 2.0) is held and not held.hit(2.0, 5)


def test_a_busy_window_is_not_dropped_as_old() -> None:
    table = WindowTable(10)
    window = table.window("busy", 0.0)
    window.hit(0.0, 5)
    for key in range(9):
        table.window(key, 59.0).hit(59.0, 5)
    window.hit(61.0, 5)  # starts a new minute, unknown to the table
    del window
    table.window("one more", 62.0).hit(62.0, 5)
    gc.collect()
    assert table.window("busy", 63.0).count == 1


# -- connections ---------------------------------------------------------------------------------------------


def refusal_of(counts: ConnectionCounts, ip: str) -> Reason:
    with pytest.raises(Refusal) as refused:
        counts.take(ip)
    assert refused.value.retry_after
    return refused.value.reason


def connections_of(counts: ConnectionCounts, ip: str) -> int:
    """The connections of an address, as the refusal of one more names them."""
    return _counted(counts, UpgradeLimits(per_ip=1), lambda: counts.take(ip).release())


def clients_of(counts: ConnectionCounts, workspace_id: str, target_id: str | None) -> int:
    """The clients of a target, as the refusal of one more names them."""

    def one_more() -> None:
        ticket = counts.take("of an address of its own")
        try:
            ticket.count_client(workspace_id, target_id)
        finally:
            ticket.release()

    return _counted(counts, UpgradeLimits(clients=1), one_more)


def _counted(counts: ConnectionCounts, limit: UpgradeLimits, ask: Callable[[], None]) -> int:
    usual, counts.limits = counts.limits, limit
    try:
        ask()
    except Refusal as refused:
        return int(refused.detail.split()[0])
    finally:
        counts.limits = usual
    return 0


def test_connections_in_all() -> None:
    counts = ConnectionCounts(UpgradeLimits(total=2))
    first = counts.take("a")
    counts.take("b")
    with pytest.raises(Refusal) as refused:
        counts.take("c")
    assert refused.value.reason is Reason.TOO_MANY_CONNECTIONS
    limit = "RELAY_MAX_TOTAL_CONNECTIONS (default 2000) or the limit on open files allows 2"
    assert refused.value.detail == f"2 connections, {limit}"
    first.release()
    counts.take("c")


def test_connections_of_one_address() -> None:
    counts = ConnectionCounts(UpgradeLimits(per_ip=2))
    tickets = [counts.take("a"), counts.take("a")]
    assert refusal_of(counts, "a") is Reason.TOO_MANY_CONNECTIONS_PER_IP
    counts.take("b")
    tickets[0].release()
    counts.take("a")


def test_the_total_is_checked_first() -> None:
    counts = ConnectionCounts(UpgradeLimits(total=1, per_ip=1))
    counts.take("a")
    assert refusal_of(counts, "a") is Reason.TOO_MANY_CONNECTIONS


def test_zero_means_no_limit() -> None:
    counts = ConnectionCounts(UpgradeLimits())
    for _ in range(100):
        counts.take("a").count_client("w", "t")
    assert counts.total == 100 and clients_of(counts, "w", "t") == 100


def test_clients_of_one_target() -> None:
    counts = ConnectionCounts(UpgradeLimits(clients=2))
    tickets = [counts.take("a") for _ in range(4)]
    tickets[0].count_client("w", "t")
    tickets[1].count_client("w", "t")
    with pytest.raises(Refusal) as refused:
        tickets[2].count_client("w", "t")
    assert refused.value.reason is Reason.TOO_MANY_CLIENTS
    tickets[2].count_client("w", "other")
    tickets[3].count_client("w", None)
    tickets[2].release()
    assert clients_of(counts, "w", "other") == 0
    tickets[0].release()
    counts.take("a").count_client("w", "t")


def test_a_client_is_counted_under_the_target_of_its_claims() -> None:
    counts = ConnectionCounts(UpgradeLimits(clients=1))
    first, second = counts.take("a"), counts.take("a")
    first.count_client("w", "t")
    second.count_client("w", None)
    second.count_client("w", None)
    with pytest.raises(Refusal):
        second.count_client("w", "t")
    assert clients_of(counts, "w", None) == 1  # unchanged by the refusal
    first.release()
    second.count_client("w", "t")
    assert (clients_of(counts, "w", None), clients_of(counts, "w", "t")) == (0, 1)


def test_a_ticket_is_released_once() -> None:
    counts = ConnectionCounts(UpgradeLimits())
    kept, ticket = counts.take("a"), counts.take("a")
    ticket.count_client("w", "t")
    for _ in range(3):
        ticket.release()
    ticket.count_client("w", "t")
    assert counts.total == connections_of(counts, "a") == 1 and clients_of(counts, "w", "t") == 0
    kept.release()
    assert counts.total == connections_of(counts, "a") == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "client", "release"]),
            st.integers(0, 3),
            st.integers(0, 9),
            st.integers(0, 2),
        ),
        max_size=120,
    )
)
def test_counts_never_pass_their_limits_and_end_empty(steps: list[tuple[str, int, int, int]]) -> None:
    counts = ConnectionCounts(UpgradeLimits(total=6, per_ip=3, clients=2))
    tickets: list[Ticket] = []
    for step, ip, index, target in steps:
        try:
            if step == "take":
                tickets.append(counts.take(f"ip{ip}"))
            elif tickets:
                ticket = tickets[index % len(tickets)]
                ticket.release() if step == "release" else ticket.count_client("w", f"t{target}")
        except Refusal:
            pass
        assert 0 <= counts.total <= 6
        assert all(connections_of(counts, f"ip{n}") <= 3 for n in range(4))
        assert all(clients_of(counts, "w", f"t{n}") <= 2 for n in range(3))
    for ticket in tickets:
        ticket.release()
    assert counts.total == 0


def test_nothing_is_kept_of_addresses_and_targets_that_have_left() -> None:
    class Name(str):
        """A string that can be referred to weakly."""

    counts = ConnectionCounts(UpgradeLimits())
    names = [Name(number) for number in range(6)]
    alive = [weakref.ref(name) for name in names]
    first, second = counts.take(names[0]), counts.take(names[1])
    first.count_client(names[2], names[3])
    second.count_client(names[4], None)
    second.count_client(names[4], names[5])
    del names
    assert all(name() for name in alive)
    first.release()
    second.release()
    del first, second
    gc.collect()
    assert not any(name() for name in alive)
