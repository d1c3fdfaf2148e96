"""What the arena keeps for long messages: reused until it is cleared."""

from __future__ import annotations

from viewport_relay.wire.arena import Arena, Buffers

LONG = 3_000_000


def test_memory_of_long_messages_is_reused_until_it_is_cleared() -> None:
    buffers = Arena().buffers
    buffer = buffers.take(LONG)
    assert len(buffer.view) >= LONG and buffers.take(LONG) is not buffer
    buffers.give(buffer)
    assert buffers.take(LONG) is buffer
    buffers.give(buffer)
    buffers.clear()
    assert buffers.take(LONG) is not buffer


def test_kept_buffers_are_bounded() -> None:
    buffers = Buffers()
    count = Buffers.KEPT_BYTES // Buffers.STEP + 1
    first, *others = [buffers.take(Buffers.STEP) for _ in range(count)]
    for buffer in (*others, first):
        buffers.give(buffer)
    taken = [buffers.take(Buffers.STEP) for _ in range(count)]
    assert set(map(id, taken[:-1])) == set(map(id, others))
    assert taken[-1] is not first
