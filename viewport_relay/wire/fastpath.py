"""The common case of a connection's input, done in one pass: complete, masked, unfragmented messages.

    socket -> arena -> unmask in place -> (decrypt ->) judge -> the receiver's socket

A read that brought just one short frame, the commonest of all, goes through `_forward_one`; `_consume` is for any number.
All frames of one read are handled together, and consecutive ones to one receiver leave in one write. A frame longer
than what one read brought is received into a buffer of its own and sent from there without being copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from viewport_relay.protocol.framing import COPIED, LONG, RECORD_LENGTH, TEXT_HEADERS, USUAL, text_header
from viewport_relay.protocol.json import Message
from viewport_relay.reasons import Refusal
from viewport_relay.wire.arena import LongFrame
from viewport_relay.wire.arenareader import ArenaReader, common_header
from viewport_relay.wire.interfaces import HasOutbox, Judge, LinkCipher

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


class FastReader(ArenaReader):
    """A reader that forwards common frames without the codec."""

    __slots__ = ()

    #: Of a Noise link that is up, and what takes its refusals (`LinkReader`).
    _cipher: LinkCipher | None = None
    _refuse: Callable[[Refusal], None]

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
        route = judge(peer, message, now)
        if route is None:
            self._not_utf8()
            return True
        receiver = route.outlet
        if receiver is None:
            self.decide(peer, route, bytes(message))
            return True
        outbox = receiver.outbox
        if outbox.ready is not None:
            outbox.hold((TEXT_HEADERS[length] if length <= USUAL else text_header(length)) + message)
        elif not outbox.send(bytes(message), self):
            return True
        self.count(peer, 1, length, now)
        return True

    def _carry_out(self, peer: Any, route: Any, message: Message) -> None:
        """Carry out a route without a receiver. None: the message is not UTF-8."""
        if route is None:
            self._not_utf8()
        else:
            self.decide(peer, route, bytes(message))

    def _consume(self, end: int, again: bool = False) -> None:
        """Handle the first `end` bytes of the arena; `again`: they begin with the partial frame of an earlier read."""
        data, view, now, unmask, most = self._data, self._view, self.last_seen, self._unmask, self._max
        first, cipher, peer = self.COMMON, self._cipher, self.peer
        at = 0
        receiver: Any = None  # a HasOutbox
        sealed = False  # whether it takes messages instead of frames
        collected: list[Message] = []
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
                    self._flush(peer, receiver, collected, size)
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
                        self._flush(peer, receiver, collected, size)
                        receiver, collected, size = None, [], 0
                        self._refuse(refusal)
                        break
                    length = len(message)
                route = judge(peer, message, now)
                to = None if route is None else route.outlet
                if to is not None:
                    if to is not receiver or size >= MOST_TOGETHER:
                        self._flush(peer, receiver, collected, size)
                        receiver, collected, size = to, [], 0
                        sealed = to.outbox.sealed
                    if sealed:
                        collected.append(message)
                    else:
                        collected.append(
                            (TEXT_HEADERS[length] if length <= USUAL else text_header(length)) + message
                        )
                    size += length
                    continue
                # A decision may write to the receiver of the frames before: they go first.
                self._flush(peer, receiver, collected, size)
                receiver, collected, size = None, [], 0
                self._carry_out(peer, route, message)
            else:
                self._flush(peer, receiver, collected, size)
                receiver, collected, size = None, [], 0
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
        self._flush(peer, receiver, collected, size)
        if at < end:
            self._leave(at, end)

    def _flush(self, peer: Any, receiver: HasOutbox | None, collected: list[Message], size: int) -> None:
        """Send the messages collected for one receiver: whole frames, or messages when it is sealed."""
        if receiver is None or not collected:
            return
        frames, outbox = len(collected), receiver.outbox
        if outbox.sealed:
            if outbox.send_all(collected, size, self):
                self.count(peer, frames, size, self.last_seen)
            return
        data = bytes(collected[0]) if frames == 1 else b"".join(collected)
        # Much data of one peer is not held: if the receiver is slow, its feeder must be paused at once.
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
        """Judge a message, and send it from its own buffer, without a copy. False: it counts as a decision.

        The server's header is never longer than the client's, over which it is written.
        """
        peer, size, message = self.peer, stop - start, view[start:stop]
        route = judge(peer, message, self.last_seen)
        receiver: HasOutbox | None = None if route is None else route.outlet
        if receiver is None:
            self._carry_out(peer, route, message)
            return False
        outbox = receiver.outbox
        if outbox.sealed:
            # A short one may be held, and the buffer is used again.
            taken = outbox.send_all((bytes(message) if size <= COPIED else message,), size, self)
        else:
            header = text_header(size)
            begin = start - len(header)
            view[begin:start] = header
            taken = outbox.take(view[begin:stop], self)
        if taken:
            self.count(peer, 1, size, self.last_seen)
        return True
