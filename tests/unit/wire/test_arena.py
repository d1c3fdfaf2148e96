"""What the arena keeps for long messages: reused until it is cleared."""

from __future__ import annotations

from viewport_relay.wire.arena import Arena, Buffers, Scratch

LONG = 3_000_000


def test_memory_of_long_messages_is_reused_until_it_is_cleared() -> None:
    arena = Arena()
    buffer = arena.buffers.take(LONG)
    arena.buffers.give(buffer)
    scratches = [(scratch, scratch.take(LONG)) for scratch in (arena.opened, arena.sealed)]
    assert arena.buffers.take(LONG) is buffer
    arena.buffers.give(buffer)
    assert all(scratch.take(1) is view and len(view) == LONG for scratch, view in scratches)
    arena.clear()
    assert arena.buffers.take(LONG) is not buffer
    assert all(len(scratch.take(1)) == Scratch.LEAST for scratch, _ in scratches)


def test_kept_buffers_are_bounded() -> None:
    buffers = Buffers()
    count = Buffers.KEPT_BYTES // Buffers.STEP + 1
    first, *others = [buffers.take(Buffers.STEP) for _ in range(count)]
    for buffer in (*others, first):
        buffers.give(buffer)
    taken = [buffers.take(Buffers.STEP) for _ in range(count)]
    assert set(map(id, taken[:-1])) == set(map(id, others))
    assert taken[-1] is not first
