"""A reader that receives into the arena, and keeps frames that are not whole yet until their rest comes.

    socket -> arena, or a long frame's own buffer -> `_consume`, `_finish_long` of `fastpath`

A *common* frame is complete, masked and unfragmented, and carries data. Everything else (control frames, fragments, whatever
is wrong) is handed to the codec as it came, until the next message boundary. So this module has no rule of RFC 6455 of
its own: it recognises one shape (and a plain Close frame, which the codec judges) and never refuses anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from viewport_relay.protocol.framing import LONG
from viewport_relay.wire.arena import ARENA_SIZE, LongFrame
from viewport_relay.wire.interfaces import Closing, Judge, Pong, StreamTransport
from viewport_relay.wire.pausing import Shared
from viewport_relay.wire.reader import Reader
from viewport_relay.wire.transport import DirectAccess, read_nothing

#: One read in so many is timed for `relay_forward_latency_seconds`.
SAMPLE_EVERY: Final = 64

#: Frames of one read that are thrown away, before the others get their turn.
_DISCARDED: Final = 1024

#: The first byte of a Close frame, and how long its payload may be: nothing, or a code and a reason.
_CLOSE: Final = 0x88
_CLOSE_LENGTHS: Final = frozenset((0, *range(2, 126)))


def common_header(data: bytearray, at: int, left: int, first: int = 0x81) -> tuple[int, int]:
    """Read a common frame's header of which `left` bytes are there: the header's length and the payload's.

    `first` is the first byte of a common frame. Length 0: no common frame. A header longer than `left` is not whole,
    and its payload's length may not be known (0).
    """
    if data[at] != first or (left > 1 and data[at + 1] < 0x80):
        return 0, 0
    if left == 1:
        return 2, 0
    length = data[at + 1] & 0x7F
    if length < 126:
        return 6, length
    if length == 126:
        if left < 8:
            return 8, 0
        length = data[at + 2] << 8 | data[at + 3]
        return (8, length) if length >= 126 else (0, 0)
    if left < 14:
        return 14, 0
    length = int.from_bytes(data[at + 2 : at + 10], "big")
    return (14, length) if length >= 65_536 else (0, 0)


class ArenaReader(Reader):
    """A reader that is the sink of a transport which reads into the arena. The subclass handles whole frames."""

    __slots__ = (
        "_arena", "_between", "_data", "_is_fed", "_long", "_max", "_observe", "_receive", "_skip", "_stash", "_unmask",
        "_unsampled", "_view", "space",
    )  # fmt: skip

    #: The first byte of a common frame.
    COMMON = 0x81

    def __init__(self, shared: Shared, transport: StreamTransport, closing: Closing, pong: Pong) -> None:
        super().__init__(shared, transport, closing, pong)
        self._max = shared.max_message
        self._observe = shared.observe
        self._arena = arena = shared.turn.arena
        self._data = arena.data
        self._view = arena.view
        self._unmask = arena.unmask
        self._between = True  # whether the codec has nothing begun, so that the next byte begins a message
        self._stash = b""  # the beginning of a short frame
        self._long: LongFrame | None = None
        self._skip = 0  # bytes of a frame that are still to be thrown away
        self._is_fed = False  # with bytes that were read before, not by a read event
        self._unsampled = 1  # reads until the next one whose time is noted
        #: Memory that the next bytes are read into.
        self.space = arena.space
        self._receive: Callable[[memoryview], int] = read_nothing
        if isinstance(transport, DirectAccess):
            self._receive = transport.read_into(self)

    def _forward_one(self, got: int, judge: Judge, now: float) -> bool:
        """Handle the arena if it holds exactly one short frame; False: it does not."""
        raise NotImplementedError

    def _consume(self, end: int, again: bool = False) -> None:
        """Handle the first `end` bytes of the arena; `again`: they begin with the partial frame of an earlier read."""
        raise NotImplementedError

    def _finish_long(self, long: LongFrame) -> None:
        """Handle a long frame that is complete, in a later turn if others wait."""
        raise NotImplementedError

    # -- bytes -------------------------------------------------------------------------------------------------

    def received(self, size: int) -> None:
        """`size` bytes were read into `space`."""
        self.last_seen = now = self._seconds()
        long = self._long
        if self._waiting and self._must_keep():
            self._postponed += bytes(self.space[:size])
            return
        if long is not None:
            long.have += size
            if long.have == long.total:
                self._finish_long(long)
            else:
                self.space = long.space
            return
        if self._stash:
            kept = len(self._stash)
            self._data[:kept] = self._stash
            self._stash = b""
            self.space = self._arena.space
            self._consume(kept + size, again=True)
            if self._ended:
                self._pace(size)
        else:
            judge = self.judge
            if judge is None or not self._between or not self._forward_one(size, judge, now):
                self._consume(size)
                if self._ended:
                    self._pace(size)
        self._unsampled -= 1
        if not self._unsampled:
            self._sample()

    def feed(self, data: bytes) -> None:
        """Handle bytes that the transport has read (TLS, or what came before the upgrade was answered)."""
        self.last_seen = self._seconds()
        at = 0
        # A frame's rest is left to the next read event: reading it here would leave the records behind it in TLS until the peer
        # sends more, for only a read event goes on to them.
        self._is_fed = True
        try:
            if self._long is not None and self._long.have == self._long.total:
                self._finish_long(self._long)
            while at < len(data):
                if self._must_keep():
                    self._postponed += data[at:]
                    return
                piece = data[at : at + len(self.space)]
                self.space[: len(piece)] = piece
                self.received(len(piece))
                at += len(piece)
        finally:
            self._is_fed = False

    # -- what is not whole yet ---------------------------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        """Keep the beginning of a short frame until the rest comes."""
        self._stash = data
        self.space = self._view[len(data) : ARENA_SIZE]

    def _begin(self, head: int, length: int, at: int, end: int) -> None:
        """Keep the beginning of a frame, in the arena from `at` to `end`, until the rest comes."""
        if end - at < head or head + length <= LONG:
            self._keep(bytes(self._view[at:end]))
        elif self._may_receive(length):
            buffer = self._arena.buffers.take(head + length)
            self._long = long = LongFrame(buffer, head, head + length, self._view[at:end])
            self.space = long.space
        else:
            self._postponed = bytes(self._view[at:end])

    def _rest(self, end: int, stop: int) -> int:
        """Read what the frame that ends at `stop` still lacks, as far as it has come; how many bytes.

        The frame is then handled while it is in the processor's caches.
        """
        if self._is_fed:
            return 0
        try:
            return self._receive(self._view[end:stop])
        except OSError:  # nothing there, or broken: the next read tells
            return 0

    # -- what is not common ------------------------------------------------------------------------------------

    def _leave(self, at: int, end: int) -> None:
        """Pass frames that are not common to the codec; discard the common frames of a connection that has ended."""
        if self._ended and self._between:
            at = self._discard(at, end)
        if at < end:
            self._hand_on(bytes(self._view[at:end]))

    def _discard(self, at: int, end: int) -> int:
        """Discard common frames, and return where something else begins."""
        data = self._data
        for _ in range(_DISCARDED):
            size = min(self._skip, end - at)
            self._skip -= size
            at += size
            left = end - at
            head, length = common_header(data, at, left, self.COMMON) if left else (0, 0)
            if not head or length > self._max:
                return at
            if left < head:
                self._keep(bytes(self._view[at:end]))
                return end
            self._skip = head + length
        self._postpone(bytes(self._view[at:end]))
        return end

    def _hand_on(self, data: bytes) -> None:
        """Pass the rest to the codec until the next message boundary; a plain Close frame is taken apart here."""
        if not (self._between and data[0] == _CLOSE and self._close(data)):
            self._decode(data)
        codec = self._codec
        self._between = codec is None or codec.between_messages

    def _close(self, data: bytes) -> bool:
        """Pass a Close frame that came whole and alone to the codec; False: it is none. The codec judges it."""
        length = len(data) - 6
        if length not in _CLOSE_LENGTHS or data[1] != 0x80 | length:
            return False
        payload = bytes(data[6 + at] ^ data[2 + at % 4] for at in range(length))
        code = int.from_bytes(payload[:2], "big") if payload else None
        self._needed().onCloseFrame(code, payload[2:] or None)
        return True

    def _sample(self) -> None:
        """Note how long this read took, unless it was the last."""
        self._unsampled = SAMPLE_EVERY
        if self._ended:
            return
        began, seconds, observe = self.last_seen, self._seconds, self._observe
        self._turn.when_sent(lambda: observe(seconds() - began))

    # -- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        long, self._long = self._long, None
        if long is not None:
            self.space = self._arena.space
            self._skip = long.total - long.have
            self._arena.buffers.give(long.buffer)
        super().stop()

    def forget(self) -> None:
        super().forget()
        self._stash = b""
        self._long = None
        self._receive = read_nothing
