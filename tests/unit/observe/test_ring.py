"""The log's ring: which record is dropped when the ring is full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.observe.ring import Record, Ring


def record(seq, level="info", event="join", reason=None):
    return Record(seq, float(seq), level, event, reason, None, None, "{}")


def kinds(ring):
    return [(entry.event, entry.reason) for entry in ring]


def test_joins_and_leaves_do_not_displace_warnings():
    ring = Ring(100)
    for seq in range(20):
        ring.append(record(seq, "warn", "close", "BUFFER_OVERFLOW"))
    for seq in range(20, 2020):
        ring.append(record(seq, event="join" if seq % 2 else "leave"))
    assert len(ring) == 100 and kinds(ring)[:20] == [("close", "BUFFER_OVERFLOW")] * 20


def test_strangers_of_every_kind_leave_errors_and_rare_warnings_alone():
    ring = Ring(200)
    ring.append(record(0, "error", "refuse", "INTERNAL_KEY_MISMATCH"))
    ring.append(record(1, "warn", "refuse", "JWT_EXPIRED"))
    for seq in range(2, 20_002):
        ring.append(record(seq, "warn", "refuse", ("NOT_FOUND", "QUERY_INVALID", "TOKEN_MISSING")[seq % 3]))
    assert kinds(ring)[:2] == [("refuse", "INTERNAL_KEY_MISMATCH"), ("refuse", "JWT_EXPIRED")]
    assert len(ring) == 200


def test_a_rare_info_entry_outlives_a_flood_of_another_kind():
    ring = Ring(40)
    ring.append(record(0, event="relay_started"))
    for seq in range(1, 500):
        ring.append(record(seq))
    assert kinds(ring)[0] == ("relay_started", None) and len(ring) == 40


def test_a_level_shrinks_to_its_reserve_and_no_further():
    ring = Ring(100)
    for seq in range(100):
        ring.append(record(seq))
    for seq in range(100, 400):
        ring.append(record(seq, "error", "internal_error"))
    # both levels exceed their reserve by the same number
    assert kinds(ring).count(("join", None)) == 50
    for seq in range(400, 800):
        ring.append(record(seq, "warn", "close"))
    assert {level: sum(entry.level == level for entry in ring) for level in ("info", "warn", "error")} == {
        "info": 33, "warn": 34, "error": 33,
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_tiny_ring_keeps_the_newest(size):
    ring = Ring(size)
    for seq in range(50):
        ring.append(record(seq, ("info", "warn", "error")[seq % 3], "e", str(seq % 7)))
    assert len(ring) == size and [entry.seq for entry in ring][-1] == 49


@given(st.lists(st.tuples(st.sampled_from(["info", "warn", "error"]), st.integers(0, 4)), max_size=200))
def test_the_ring_is_bounded_and_keeps_the_order(rows):
    ring = Ring(16)
    for seq, (level, kind) in enumerate(rows):
        ring.append(record(seq, level, f"event-{kind}"))
        assert len(ring) == min(16, seq + 1)
    numbers = [entry.seq for entry in ring]
    assert numbers == sorted(numbers)
    for level in ("info", "warn", "error"):  # the reserve of each level is kept
        logged = sum(have == level for have, _ in rows)
        assert sum(entry.level == level for entry in ring) >= min(4, logged)
