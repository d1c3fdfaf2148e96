"""The common case of a connection's input, done in one pass: complete, masked, unfragmented text frames.

    socket -> arena -> unmask in place -> judge -> the receiver's socket

A read that brought just one short frame, the commonest of all, goes through `_forward_one`; `_consume` is for any number.

Everything else (control frames, fragments, whatever is wrong) is handed to the codec as it came, from the first byte of the
frame that is not common, until the next message boundary. So this module has no rule of RFC 6455 of its own: it recognises
one shape (and a plain Close, which the codec judges) and never refuses anything.

All frames of one read are handled together, and consecutive ones to one receiver leave in one write. A frame longer
than what one read brought is received into a buffer of its own and sent from there without being copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from viewport_relay.protocol.json import Message
from viewport_relay.reasons import Refusal
from viewport_relay.wire.arena import ARENA_SIZE, LongFrame
from viewport_relay.wire.codec import CodecFactory
from viewport_relay.wire.framing import COPIED, LONG, RECORD_LENGTH, TEXT_HEADERS, USUAL, text_header
from viewport_relay.wire.interfaces import Closing, HasOutbox, Judge, LinkCipher, StreamTransport
from viewport_relay.wire.reader import Reader
from viewport_relay.wire.transport import DirectAccess, read_nothing
from viewport_relay.wire.turn import Turn
from viewport_relay.wire.turnqueue import TurnQueue

#: One read of so many is timed for `relay_forward_latency_seconds`.
SAMPLE_EVERY: Final = 64

#: Bytes of frames to one receiver that leave in one write. Where a daemon is slow its feeders take turns, a write each.
MOST_TOGETHER: Final = 65_536

#: A frame no longer than this comes in one piece, or two. In more pieces it drips, and is left to the codec, which checks
#: UTF-8 as it comes: a peer that drips is told at the first wrong byte.
_DRIPPING: Final = 1024

#: Frames of one read that are answered or dropped instead of forwarded, before the others get their turn: a read may hold
#: tens of thousands. A frame counts once more for each `DECISION_BYTES`. The second number holds while others wait.
DECISIONS: Final = 128
DECISIONS_BUSY: Final = 16
DECISION_BYTES: Final = 512

#: Frames of one read that are thrown away, before the others get their turn.
_DISCARDED: Final = 1024

#: The first byte of a Close frame, and how long its payload may be: nothing, or a code and a reason.
_CLOSE: Final = 0x88
_CLOSE_LENGTHS: Final = frozenset((0, *range(2, 126)))


def common_header(data: bytearray, at: int, left: int, first: int = 0x81) -> tuple[int, int]:
    """Read a common frame's header of which `left` bytes are there: the header's length and the payload's.

    `first` is the first byte of a common frame. Length 0: no common frame. A header longer than `left` is not whole, and its payload's length may not be known (0).
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


def accepted(refusal: Refusal) -> None:
    """A no-op callback: without a link, and after the end."""


class FastReader(Reader):
    """A reader that forwards common frames without the codec. It is the sink of a transport that reads into the arena."""

    __slots__ = (
        "_arena", "_between", "_cipher", "_data", "_long", "_max", "_observe", "_receive", "_refuse", "_skip", "_stash", "_unmask",
        "_unsampled", "_view", "space",
    )  # fmt: skip

    #: The first byte of a common frame.
    COMMON = 0x81

    def __init__(
        self,
        clock: IReactorTime,
        queue: TurnQueue,
        transport: StreamTransport,
        codecs: CodecFactory,
        closing: Closing,
        pong: Callable[[bytes], None],
        turn: Turn,
        max_message: int,
        observe: Callable[[float], None],
    ) -> None:
        """`observe` is told how long one read in `SAMPLE_EVERY` took, from the socket to the receivers' sockets."""
        super().__init__(clock, queue, transport, codecs, closing, pong, turn)
        self._max = max_message
        self._observe = observe
        self._arena = arena = turn.arena
        self._data = arena.data
        self._view = arena.view
        self._unmask = arena.unmask
        self._cipher: LinkCipher | None = None  # of a Noise link that is up
        self._refuse: Callable[[Refusal], None] = accepted
        self._between = True  # whether the codec has nothing begun, so that the next byte begins a message
        self._stash = b""  # the beginning of a short frame
        self._long: LongFrame | None = None
        self._skip = 0  # bytes of a frame that are still to be thrown away
        self._unsampled = 1  # reads until the next one whose time is noted
        #: Where the next bytes are read into.
        self.space = arena.space
        self._receive: Callable[[memoryview], int] = read_nothing
        if isinstance(transport, DirectAccess):
            self._receive = transport.read_into(self)

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

    def _forward_one(self, got: int, judge: Judge, now: float) -> bool:
        """Handle the arena if it holds exactly one short frame; False: it does not."""
        data = self._data
        if data[0] != 0x81:
            return False
        length = data[1] ^ 0x80
        if length < 126:
            start = 6
        elif length == 126:
            start = 8
            length = data[2] << 8 | data[3]
            if not 126 <= length <= COPIED:
                return False
        else:  # longer, or not masked
            return False
        if got != start + length or length > self._max:
            return False
        self._unmask(start, length)
        message = data[start:got]
        peer = self.peer
        verdict = judge(peer, message, now)
        if verdict is None:
            self._not_utf8()
            return True
        receiver = verdict.outlet
        if receiver is None:
            self.decide(peer, verdict, bytes(message))
            return True
        outbox = receiver.outbox
        if outbox.ready is not None:
            outbox.hold((TEXT_HEADERS[length] if length <= USUAL else text_header(length)) + message)
        elif not outbox.send(bytes(message), self):
            return True
        self.count(peer, 1, length, now)
        return True

    def _decide(self, peer: Any, verdict: Any, message: Message) -> None:
        if verdict is None:
            self._not_utf8()
        else:
            self.decide(peer, verdict, bytes(message))

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
        """Note how long this read took."""
        self._unsampled = SAMPLE_EVERY
        began, seconds, observe = self.last_seen, self._seconds, self._observe
        self._turn.when_sent(lambda: observe(seconds() - began))

    def feed(self, data: bytes) -> None:
        """Handle bytes that the transport has read (TLS, or what came before the upgrade was answered)."""
        self.last_seen = self._seconds()
        at = 0
        if self._long is not None and self._long.have == self._long.total:
            self._finish_long(self._long)
        while at < len(data):
            if self._must_keep():
                self._postponed += data[at:]
                return
            long = self._long
            if long is not None:
                piece = data[at : at + long.total - long.have]
                long.space[: len(piece)] = piece
                long.have += len(piece)
                if long.have == long.total:
                    self._finish_long(long)
            else:
                kept = len(self._stash)
                piece = data[at : at + ARENA_SIZE - kept]
                self._data[:kept] = self._stash
                self._data[kept : kept + len(piece)] = piece
                self._stash = b""
                self._consume(kept + len(piece), kept > 0)
            at += len(piece)
        self._set_space()
        if self._ended:
            self._pace(len(data))

    def _set_space(self) -> None:
        long = self._long
        if long is not None and long.have < long.total:
            self.space = long.space
        else:
            self.space = self._view[len(self._stash) : ARENA_SIZE] if self._stash else self._arena.space

    def _keep(self, data: bytes) -> None:
        """Keep the beginning of a short frame until the rest comes."""
        self._stash = data
        self.space = self._view[len(data) : ARENA_SIZE]

    def _consume(self, end: int, again: bool = False) -> None:
        """Handle the first `end` bytes of the arena; `again`: they begin with what was not a whole frame before."""
        data, view, now, unmask, most = self._data, self._view, self.last_seen, self._unmask, self._max
        first, cipher, peer = self.COMMON, self._cipher, self.peer
        at = 0
        receiver: Any = None  # a HasOutbox
        sealed = False  # whether it takes messages instead of frames
        batch: list[Message] = []
        size = 0
        decisions = 0
        judge = self.judge if self._between else None  # None too before the peer is routed, and after the end
        while at < end and judge is not None:
            left = end - at
            # Nearly every header first, without a call: a payload of 126 to 65,535 bytes.
            if left >= 8 and data[at + 1] == 0xFE and data[at] == first:
                head = 8
                length = data[at + 2] << 8 | data[at + 3]
                if length < 126:
                    break
            else:
                head, length = common_header(data, at, left, first)
                if not head:
                    break
            if length > most:
                break
            start = at + head
            stop = start + length
            if length > LONG and left >= head:
                if self._queue.busy:
                    self._flush(peer, receiver, batch, size)
                    self._postpone(bytes(view[at:end]))
                    return
                if end < stop <= len(data):
                    end += self._rest(end, stop)
            if stop > end or left < head:
                if again and at == 0 and head <= left and length <= _DRIPPING:
                    break
                self._begin(head, length, at, end)
                at = end
                break
            unmask(start, length)
            at = stop
            if length <= COPIED and (
                cipher is None or data[start] << 8 | data[start + 1] == length - RECORD_LENGTH
            ):
                message: Message
                if cipher is None:
                    message = data[start:stop]
                else:
                    try:
                        message = cipher.decrypt_record(view[start + RECORD_LENGTH : stop])
                    except Refusal as refusal:
                        self._flush(peer, receiver, batch, size)
                        receiver, batch, size = None, [], 0
                        self._refuse(refusal)
                        break
                    length = len(message)
                verdict = judge(peer, message, now)
                to = None if verdict is None else verdict.outlet
                if to is not None:
                    if to is not receiver or size >= MOST_TOGETHER:
                        self._flush(peer, receiver, batch, size)
                        receiver, batch, size = to, [], 0
                        sealed = to.outbox.sealed
                    if sealed:
                        batch.append(message)
                    else:
                        batch.append(
                            (TEXT_HEADERS[length] if length <= USUAL else text_header(length)) + message
                        )
                    size += length
                    continue
                # A decision may write to the receiver of the frames before: they go first.
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                self._decide(peer, verdict, message)
            else:
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                if length > LONG:
                    self._leave_intake()
                if self._forward_alone(view, start, stop, judge):
                    continue
            judge = self.judge  # None if that was the end
            decisions += 1 + length // DECISION_BYTES
            if decisions >= (DECISIONS_BUSY if self._queue.busy else DECISIONS):
                self._queue.end_turn()
                if at < end:
                    self._postpone(bytes(view[at:end]))
                    return
        self._flush(peer, receiver, batch, size)
        if at < end:
            self._leave(at, end)

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

    def _leave(self, at: int, end: int) -> None:
        """Leave what is not common to the codec, and throw the common frames of a connection that has ended away."""
        if self._ended and self._between:
            at = self._discard(at, end)
        if at < end:
            self._hand_on(bytes(self._view[at:end]))

    def _discard(self, at: int, end: int) -> int:
        """Throw common frames away, and return where something else begins."""
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

    def _rest(self, end: int, stop: int) -> int:
        """Bytes that have come meanwhile for the frame that ends at `stop`, read behind what is there.

        While a long frame is in the caches, it is the time for all that is to be done with it.
        """
        try:
            return self._receive(self._view[end:stop])
        except OSError:  # nothing there, or broken: the next read tells
            return 0

    def _flush(self, peer: Any, receiver: HasOutbox | None, batch: list[Message], size: int) -> None:
        """Send what one receiver gets together: whole frames, or messages when it is sealed."""
        if receiver is None or not batch:
            return
        frames, outbox = len(batch), receiver.outbox
        if outbox.sealed:
            if outbox.send_all(batch, size, self):
                self.count(peer, frames, size, self.last_seen)
            return
        data = bytes(batch[0]) if frames == 1 else b"".join(batch)
        # Much of one peer's is not held: if the receiver is slow, its feeder must be found out at once.
        if outbox.ready is not None and size < COPIED:
            outbox.hold(data)
        elif not outbox.take(data, self):
            return
        self.count(peer, frames, size, self.last_seen)

    def _finish_long(self, long: LongFrame) -> None:
        """The long frame is complete: judge it and send it from its own buffer, in a later turn if others wait."""
        self.space = self._arena.space
        if self._queue.busy:
            self._postpone(b"")
            return
        self._long = None
        self._leave_intake()
        judge = self.judge
        assert judge is not None  # `stop` has dropped the frame otherwise
        buffer, head, total = long.buffer, long.head, long.total
        buffer.unmask(head, total - head)
        if not self._forward_alone(buffer.view, head, total, judge):
            self._queue.end_turn()
        self._arena.buffers.give(buffer)

    def _forward_alone(self, view: memoryview, start: int, stop: int, judge: Judge) -> bool:
        """Judge a message, and send it from where it stands: a copy would be dear. False: it counts as a decision.

        The server's header is never longer than the client's, over which it is written.
        """
        peer, size = self.peer, stop - start
        with view[start:stop] as message:
            verdict = judge(peer, message, self.last_seen)
            receiver: HasOutbox | None = None if verdict is None else verdict.outlet
            if receiver is None:
                self._decide(peer, verdict, message)
                return False
            outbox = receiver.outbox
            if outbox.sealed:
                # A short one may be held, and the buffer is used again.
                taken = outbox.send_all((bytes(message) if size <= COPIED else message,), size, self)
            else:
                header = text_header(size)
                begin = start - len(header)
                view[begin:start] = header
                with view[begin:stop] as frame:
                    taken = outbox.take(frame, self)
        if taken:
            self.count(peer, 1, size, self.last_seen)
        return True

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
