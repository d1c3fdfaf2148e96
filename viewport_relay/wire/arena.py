"""Memory that input is read into and unmasked in: one arena for all connections of a reactor, and buffers for long frames."""

from __future__ import annotations

from typing import Final

from viewport_relay.wire.masking import unmasker

#: Most bytes of one read. It bounds what one connection may do before the others get their turn.
ARENA_SIZE: Final = 262_144


class Buffer:
    """Memory that messages are received and unmasked in."""

    __slots__ = ("data", "unmask", "view")

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.unmask = unmasker(self.data)


class Arena(Buffer):
    """One buffer for the frames of one read. `space` is for a read, the whole `view` for a long frame behind it."""

    __slots__ = ("buffers", "space")

    def __init__(self) -> None:
        # A long frame may stand behind what was read before it; pages that are not used take no memory.
        super().__init__(ARENA_SIZE + 1_048_576 + 4096)
        self.space = self.view[:ARENA_SIZE]
        self.buffers = Buffers()


class Buffers:
    """Buffers for long messages, kept for reuse: fresh memory costs a page fault every 4 KiB.

    They come in steps of 64 KiB, and at most `KEPT_BYTES` of them wait for their next use.
    """

    KEPT_BYTES: Final = 64 * 1024 * 1024
    STEP: Final = 65_536

    def __init__(self) -> None:
        self._kept: dict[int, list[Buffer]] = {}
        self._bytes = 0

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes; what it holds is not cleared."""
        size = -(-size // self.STEP) * self.STEP
        kept = self._kept.get(size)
        if not kept:
            return Buffer(size)
        self._bytes -= size
        return kept.pop()

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back."""
        size = len(buffer.data)
        if self._bytes + size <= self.KEPT_BYTES:
            self._bytes += size
            self._kept.setdefault(size, []).append(buffer)

    def clear(self) -> None:
        """Release the memory of buffers that are not in use: called now and then."""
        self._kept.clear()
        self._bytes = 0


class LongFrame:
    """A frame that is being received into a buffer of its own. `head` is its header's length, `total` header and payload."""

    __slots__ = ("buffer", "have", "head", "total")

    def __init__(self, buffer: Buffer, head: int, total: int, first: memoryview) -> None:
        self.buffer = buffer
        self.head = head
        self.total = total
        self.have = len(first)
        buffer.view[: self.have] = first

    @property
    def space(self) -> memoryview:
        """The part of the buffer for the rest of the frame."""
        return self.buffer.view[self.have : self.total]
