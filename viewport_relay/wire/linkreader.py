"""The common case of a Noise link's input, done in one pass: complete, masked, unfragmented binary messages.

    socket -> arena -> unmask in place -> decrypt -> judge -> the receiver's outbox

`LinkReader` takes a message over once the link is up and the peer is routed. As in `fastpath`, everything else is handed to
the codec as it came, until the next message boundary. Both ways decrypt with the same cipher state, which counts the nonces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from viewport_relay.reasons import Refusal
from viewport_relay.wire.arena import LongFrame
from viewport_relay.wire.fastpath import (
    DECISION_BYTES,
    DECISIONS,
    DECISIONS_BUSY,
    MOST_TOGETHER,
    FastReader,
    common_header,
)
from viewport_relay.wire.framing import COPIED, LONG, RECORD_LENGTH, TEXT_HEADERS, USUAL, text_header
from viewport_relay.wire.interfaces import HasOutbox, Judge, LinkCipher
from viewport_relay.wire.masking import unmasker

#: The first byte of an unfragmented binary message.
_BINARY: Final = 0x82

#: Bytes in front of a decrypted message, for the longest header.
_HEAD: Final = 10


def _ignored(refusal: Refusal) -> None:
    """A no-op callback, after the end."""


class LinkReader(FastReader):
    """A reader that decrypts and forwards the common messages of a Noise link without the codec."""

    __slots__ = ("_cipher", "_refuse")

    COMMON = _BINARY

    _cipher: LinkCipher
    _refuse: Callable[[Refusal], None]

    def limit(self, size: int) -> None:
        super().limit(size)
        self._max = size

    def link_up(self, cipher: LinkCipher, refuse: Callable[[Refusal], None]) -> None:
        self._cipher = cipher
        self._refuse = refuse

    def stop(self) -> None:
        super().stop()
        self._refuse = _ignored  # holds no reference to the connection

    def _forward_one(self, got: int, judge: Judge, now: float) -> bool:
        """Leave even a single message to `_consume`, which costs little beside the cipher."""
        return False

    def _consume(self, end: int, again: bool = False) -> None:
        data, view, now, unmask, most = self._data, self._view, self.last_seen, self._unmask, self._max
        peer = self.peer
        at = 0
        receiver: Any = None  # a HasOutbox
        sealed = False  # whether the receiver is on a link too
        batch: list[Any] = []  # messages, or frames for a receiver without a link
        size = 0
        decisions = 0
        judge = self.judge if self._between else None  # None too before the peer is routed, and after the end
        cipher: Any = None if judge is None else self._cipher
        while judge is not None and at < end:
            left = end - at
            # Nearly every header first, without a call: a payload of 126 to 65,535 bytes.
            if left >= 8 and data[at + 1] == 0xFE and data[at] == _BINARY:
                head = 8
                length = data[at + 2] << 8 | data[at + 3]
                if length < 126:
                    break
            else:
                head, length = common_header(data, at, left, _BINARY)
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
                self._begin(head, length, at, end)
                at = end
                break
            if length > LONG:
                self._leave_intake()
            unmask(start, length)
            at = stop
            if length > COPIED:
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                self._forward_long(view[start:stop], judge)
                judge = self.judge
                continue
            try:
                # One record, as nearly always.
                if data[start] << 8 | data[start + 1] == length - RECORD_LENGTH:
                    message = cipher.decrypt_record(view[start + RECORD_LENGTH : stop])
                else:
                    message = cipher.decrypt_message(view[start:stop])
            except Refusal as refusal:
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                self._refuse(refusal)
                break
            verdict = judge(peer, message, now)
            to = None if verdict is None else verdict.outlet
            if to is None:
                # A decision may write to the receiver of the messages before: they go first.
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                self._decide(peer, verdict, message)
                judge = self.judge  # None if that was the end
                decisions += 1 + length // DECISION_BYTES
                if decisions >= (DECISIONS_BUSY if self._queue.busy else DECISIONS):
                    self._queue.end_turn()
                    if at < end:
                        self._postpone(bytes(view[at:end]))
                        return
                continue
            if to is not receiver or size >= MOST_TOGETHER:
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = to, [], 0
                sealed = to.outbox.sealed
            length = len(message)
            size += length
            if sealed:
                batch.append(message)
            else:
                batch.append((TEXT_HEADERS[length] if length <= USUAL else text_header(length)) + message)
        self._flush(peer, receiver, batch, size)
        if at < end:
            self._leave(at, end)

    def _finish_long(self, long: LongFrame) -> None:
        """The long message is complete: decrypt it and send it on, in a later turn if others wait."""
        self.space = self._arena.space
        if self._queue.busy:
            self._postpone(b"")
            return
        self._long = None
        self._leave_intake()
        judge = self.judge
        assert judge is not None  # `stop` has dropped the message otherwise
        unmasker(long.buffer)(long.head, long.total - long.head)
        with long.view[long.head : long.total] as message:
            self._forward_long(message, judge)
        long.release()

    def _forward_long(self, message: memoryview, judge: Judge) -> None:
        """Decrypt a long message into a buffer that is used again, and send it from there."""
        buffers, peer = self._arena.buffers, self.peer
        buffer = buffers.take(_HEAD + len(message))
        with memoryview(buffer) as whole:
            try:
                size = self._cipher.decrypt_into(message, whole[_HEAD:])
            except Refusal as refusal:
                self._refuse(refusal)
            else:
                with whole[_HEAD : _HEAD + size] as frame:
                    verdict = judge(peer, frame, self.last_seen)
                    receiver: HasOutbox | None = None if verdict is None else verdict.outlet
                    if receiver is None:
                        self._decide(peer, verdict, frame)
                        self._queue.end_turn()
                    elif self._send_decrypted(receiver, whole, frame):
                        self.count(peer, 1, size, self.last_seen)
        buffers.give(buffer)

    def _send_decrypted(self, receiver: HasOutbox, whole: memoryview, frame: memoryview) -> bool:
        size, outbox = len(frame), receiver.outbox
        if size <= COPIED:  # of many small records: it may be held, and the buffer is not
            return outbox.send(bytes(frame), self)
        if outbox.sealed:
            return outbox.send_all((frame,), size, self)
        header = text_header(size)
        begin = _HEAD - len(header)
        whole[begin:_HEAD] = header
        with whole[begin : _HEAD + size] as data:
            return outbox.take(data, self)
