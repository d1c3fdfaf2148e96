"""The common case of a connection's input, done in one pass: complete, masked, unfragmented text frames.

    socket -> arena -> unmask in place -> judge -> the receiver's socket

A read that brought just one short frame, the commonest of all, goes straight through `_forward_one`; `_consume` is for
any number of them.

Everything else (control frames, fragments, whatever is wrong, the end of a connection) is handed to Autobahn as it
came, from the first byte of the frame that is not common; it hands back when it is between two messages. So this
module has no rule of RFC 6455 of its own: it recognises one shape (and a plain Close, which it only passes on) and never
refuses anything.

All frames of one read are handled together, and consecutive ones to one receiver leave in one write. A frame longer
than what one read brought is received into a buffer of its own and sent from there without being copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from twisted.internet import tcp
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from viewport_relay.protocol.json import Message
from viewport_relay.routing.decisions import Decision
from viewport_relay.routing.model import Peer
from viewport_relay.wire.masking import unmasker
from viewport_relay.wire.outbox import TURN

if TYPE_CHECKING:
    from viewport_relay.wire.websocket import Connection

#: Says where a peer's message goes, or what is to be done with it; None: it is not UTF-8. The float is monotonic seconds.
Judge: TypeAlias = Callable[[Peer, Message, float], Peer | Decision | None]

#: Most bytes of one read. It bounds what one connection may do before the others get their turn.
ARENA_SIZE: Final = 262_144

#: One read of so many is timed for `relay_forward_latency_seconds`; a clock reading for each would cost 2 %.
SAMPLE_EVERY: Final = 64

#: Bytes of frames to one receiver that leave in one write. Where a daemon is slow its feeders take turns, a write each.
MOST_TOGETHER: Final = 65_536

#: A long frame may stand behind what was read before it; pages that are not used take no memory.
_arena: Final = bytearray(ARENA_SIZE + 1_048_576 + 4096)
_arena_view: Final = memoryview(_arena)
_one_read: Final = _arena_view[:ARENA_SIZE]
_unmask: Final = unmasker(_arena)

#: A frame no longer than this comes in one piece, or two. In more pieces it drips, and is left to Autobahn, which checks
#: UTF-8 as it comes: a peer that drips is told at the first wrong byte.
_DRIPPING: Final = 1024

#: Frames of one read that are answered or dropped instead of forwarded, before the others get their turn: no rate ends
#: those, and a read may hold tens of thousands.
_DECISIONS: Final = 128

#: A longer frame that is not there yet gets a buffer of its own.
_LONG: Final = ARENA_SIZE // 4

#: Up to here a frame is copied behind its header, so that it can leave together with others.
_COPIED: Final = 32_768

#: The first byte of a Close frame, and how long its payload may be: nothing, or a code and a reason.
_CLOSE: Final = 0x88
_CLOSE_LENGTHS: Final = frozenset((0, *range(2, 126)))

#: Up to here headers are ready-made.
_USUAL: Final = 4096


def can_read_directly(transport: Any) -> bool:
    """Whether the transport is a plain TCP socket that may be read (and written) without it.

    On TLS there is a socket too, but what it carries is not ours.
    """
    return (
        isinstance(transport, tcp.Connection)
        and not ISSLTransport.providedBy(transport)
        and callable(getattr(transport, "doRead", None))
    )


def _header(length: int) -> bytes:
    """Header of a text frame."""
    if length < 126:
        return bytes((0x81, length))
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


_HEADERS: Final = tuple(_header(length) for length in range(_USUAL + 1))


def _nothing(_: bytearray | memoryview) -> int:
    """Before there is a socket, and after."""
    return 0


class _Buffers:
    """Buffers for long frames, kept for reuse: fresh memory costs a page fault every 4 KiB.

    They come in steps of 64 KiB, and at most `KEPT_BYTES` of them wait for their next use.
    """

    KEPT_BYTES: Final = 64 * 1024 * 1024
    STEP: Final = 65_536

    def __init__(self) -> None:
        self._kept: dict[int, list[bytearray]] = {}
        self._bytes = 0

    def take(self, size: int) -> bytearray:
        size = -(-size // self.STEP) * self.STEP
        kept = self._kept.get(size)
        if not kept:
            return bytearray(size)
        self._bytes -= size
        return kept.pop()

    def give(self, buffer: bytearray) -> None:
        if self._bytes + len(buffer) <= self.KEPT_BYTES:
            self._bytes += len(buffer)
            self._kept.setdefault(len(buffer), []).append(buffer)

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


_buffers: Final = _Buffers()


def release_buffers() -> None:
    """Give the memory of buffers that nobody uses just now back; called now and then."""
    _buffers.clear()


class _LongFrame:
    """One frame on its way in. `head` is the length of its header, `total` of header and payload."""

    __slots__ = ("buffer", "have", "head", "total", "view")

    def __init__(self, head: int, total: int, first: memoryview) -> None:
        self.buffer = _buffers.take(total)
        self.view = memoryview(self.buffer)
        self.head = head
        self.total = total
        self.have = len(first)
        self.view[: self.have] = first

    def release(self) -> None:
        self.view.release()
        _buffers.give(self.buffer)


class Reader:
    """Reads for one connection. `start` puts it before Autobahn; it stays there for the connection's life."""

    __slots__ = (
        "_between", "_connection", "_long", "_max", "_receive", "_seconds", "_stash", "_unsampled",
    )  # fmt: skip

    def __init__(self, connection: Connection, max_message: int) -> None:
        self._connection = connection
        self._seconds = connection.factory.clock.seconds
        self._max = max_message
        self._receive: Callable[[bytearray | memoryview], int] = _nothing
        self._between = True  # whether Autobahn has nothing begun, so that the next byte begins a message
        self._stash = b""  # the beginning of a short frame
        self._long: _LongFrame | None = None
        self._unsampled = 1  # reads until the next one whose time is noted

    def start(self, transport: Any) -> None:
        """Take over the transport's reads if it is a plain socket; else `feed` is called with what it read."""
        if can_read_directly(transport):
            self._receive = transport.socket.recv_into
            transport.doRead = self._do_read

    def _do_read(self) -> Any:
        """In place of the transport's doRead: one recv into the arena, or into the frame that is under way."""
        long = self._long
        kept = len(self._stash)
        try:
            if long is not None:
                got = self._receive(long.view[long.have : long.total])
            elif kept:
                got = self._receive(_arena_view[kept:ARENA_SIZE])
            else:
                got = self._receive(_one_read)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if not got:
            return CONNECTION_DONE
        connection = self._connection
        connection.now = connection.last_seen = now = self._seconds()
        if long is not None:
            long.have += got
            if long.have == long.total:
                self._finish_long(long)
            return None
        if kept:
            _arena[:kept] = self._stash
            self._stash = b""
            self._consume(kept + got, again=True)
        else:
            judge = connection.judge
            if judge is None or not self._between or not self._forward_one(got, judge, connection, now):
                self._consume(got)
        self._unsampled -= 1
        if not self._unsampled:
            self._sample()
        return None

    def _forward_one(self, got: int, judge: Judge, connection: Connection, now: float) -> bool:
        """Handle the arena if it holds exactly one short frame; False: it does not."""
        if _arena[0] != 0x81:
            return False
        length = _arena[1] ^ 0x80
        if length < 126:
            start = 6
        elif length == 126:
            start = 8
            length = _arena[2] << 8 | _arena[3]
            if not 126 <= length <= _COPIED:
                return False
        else:  # longer, or not masked
            return False
        if got != start + length or length > self._max:
            return False
        _unmask(start, length)
        message = _arena[start:got]
        peer: Any = connection.routed  # is, where somebody judges
        verdict = judge(peer, message, now)
        if type(verdict) is not Peer:
            self._decide(peer, verdict, message)
            return True
        to: Any = verdict.outlet
        outbox = to.outbox
        if outbox.ready is None or to.sealed or to.ending is not None:
            if to.take(connection, to.frame(message)):
                connection.count_forwarded(connection, peer, 1, length)
            return True
        outbox.hold((_HEADERS[length] if length <= _USUAL else _header(length)) + message)
        connection.count_forwarded(connection, peer, 1, length)
        return True

    def _decide(self, peer: Peer, verdict: Peer | Decision | None, message: Message) -> None:
        connection = self._connection
        if verdict is None:
            connection.end_not_utf8()
        else:
            connection.decide(connection, peer, verdict, bytes(message))

    def _hand_on(self, data: bytes) -> None:
        """Autobahn's from here on, until it is between two messages again; but for the usual good-bye."""
        connection = self._connection
        if not (self._between and data[0] == _CLOSE and self._close(data)):
            connection.autobahn_received(data)
        self._between = connection.between_messages

    def _close(self, data: bytes) -> bool:
        """Pass on a Close frame that came whole and alone; False: it is none. What it means is Autobahn's to say."""
        length = len(data) - 6
        if length not in _CLOSE_LENGTHS or data[1] != 0x80 | length:
            return False
        payload = bytes(data[6 + at] ^ data[2 + at % 4] for at in range(length))
        code = int.from_bytes(payload[:2], "big") if payload else None
        self._connection.onCloseFrame(code, payload[2:] or None)
        return True

    def _sample(self) -> None:
        """Note how long this read took, from the socket to the receivers' sockets."""
        self._unsampled = SAMPLE_EVERY
        began, seconds = self._connection.now, self._seconds
        observe = self._connection.factory.counters.forward_latency.observe
        TURN.when_sent(lambda: observe(seconds() - began))

    def feed(self, data: bytes) -> None:
        """Handle bytes that the transport has read (TLS, or what came before the upgrade was answered)."""
        connection = self._connection
        connection.now = connection.last_seen = self._seconds()
        at = 0
        while at < len(data):
            if connection.postponed:
                connection.postpone(data[at:])
                return
            long = self._long
            if long is not None:
                piece = data[at : at + long.total - long.have]
                long.view[long.have : long.have + len(piece)] = piece
                long.have += len(piece)
                if long.have == long.total:
                    self._finish_long(long)
            else:
                kept = len(self._stash)
                piece = data[at : at + ARENA_SIZE - kept]
                _arena[:kept] = self._stash
                _arena[kept : kept + len(piece)] = piece
                self._stash = b""
                self._consume(kept + len(piece), kept > 0)
            at += len(piece)

    def _consume(self, end: int, again: bool = False) -> None:
        """Handle the first `end` bytes of the arena; `again`: they begin with what was not a whole frame before."""
        connection = self._connection
        peer: Any = connection.routed  # is, where somebody judges
        at = 0
        receiver: Connection | None = None
        batch: list[bytes] = []
        size = 0
        decisions = 0
        judge = connection.judge if self._between else None  # None too if nobody judges any more
        while judge is not None:
            left = end - at
            if left < 2 and at < end and _arena[at] == 0x81:
                self._stash = bytes(_arena_view[at:end])
                at = end
                break
            if left < 2 or _arena[at] != 0x81 or _arena[at + 1] < 0x80:
                break
            length = _arena[at + 1] & 0x7F
            head = 6 if length < 126 else 8 if length == 126 else 14
            if left >= head:
                if length == 126:
                    length = _arena[at + 2] << 8 | _arena[at + 3]
                    if length < 126:
                        break
                elif length == 127:
                    length = int.from_bytes(_arena[at + 2 : at + 10], "big")
                    if length < 65_536:
                        break
                if length > self._max:
                    break
            start = at + head
            stop = start + length
            if left >= head and head + length > _LONG and end < stop <= len(_arena):
                end += self._rest(end, stop)
            if stop > end or left < head:
                if again and at == 0 and head <= left and length <= _DRIPPING:
                    break
                if left >= head and head + length > _LONG:
                    self._long = _LongFrame(head, head + length, _arena_view[at:end])
                else:
                    self._stash = bytes(_arena_view[at:end])
                at = end
                break
            _unmask(start, length)
            message: Message = _arena_view[start:stop] if length > _COPIED else _arena[start:stop]
            at = stop
            verdict = judge(peer, message, connection.now)
            if type(verdict) is not Peer:
                # A decision may write to the receiver of the frames before: they go first.
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                self._decide(peer, verdict, message)
                judge = connection.judge  # None if that was the end
                decisions += 1
                if decisions == _DECISIONS and at < end:
                    connection.postpone(bytes(_arena_view[at:end]))
                    return
                continue
            to: Any = verdict.outlet
            if to is not receiver or size >= MOST_TOGETHER:
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = to, [], 0
            if to.sealed:
                # On a link every message is a frame of its own records: nothing to put together.
                if to.take(connection, to.frame(message)):
                    connection.count_forwarded(connection, peer, 1, length)
                continue
            if length > _COPIED:
                # Not worth a copy: the server's header goes over the mask, and the frame leaves from the arena.
                self._flush(peer, receiver, batch, size)
                receiver, batch, size = None, [], 0
                header = _header(length)
                begin = start - len(header)
                _arena[begin:start] = header
                if to.take(connection, _arena_view[begin:stop]):
                    connection.count_forwarded(connection, peer, 1, length)
                continue
            size += length
            batch.append((_HEADERS[length] if length <= _USUAL else _header(length)) + message)
        self._flush(peer, receiver, batch, size)
        if at < end and not connection.lost:
            self._hand_on(bytes(_arena_view[at:end]))

    def _rest(self, end: int, stop: int) -> int:
        """Bytes that have come meanwhile for the frame that ends at `stop`, read behind what is there.

        While a long frame is in the caches, it is the time for all that is to be done with it.
        """
        try:
            return self._receive(_arena_view[end:stop])
        except OSError:  # nothing there, or broken: the next read tells
            return 0

    def _flush(self, peer: Peer, receiver: Connection | None, batch: list[bytes], size: int) -> None:
        if receiver is None or not batch:
            return
        frames = len(batch)
        data = batch[0] if frames == 1 else b"".join(batch)
        connection, outbox = self._connection, receiver.outbox
        # Much of one peer's is not held: if the receiver is slow, its feeder must be found out at once.
        if outbox.ready is not None and receiver.ending is None and size < _COPIED:
            outbox.hold(data)
        elif not receiver.take(connection, data):
            return
        connection.count_forwarded(connection, peer, frames, size)

    def _finish_long(self, long: _LongFrame) -> None:
        """The long frame is complete: judge it and send it from its own buffer."""
        self._long = None
        connection = self._connection
        judge = connection.judge
        if judge is None:  # it was closed meanwhile: Autobahn throws it away
            self._hand_on(bytes(long.view[: long.total]))
            long.release()
            return
        head, total = long.head, long.total
        unmasker(long.buffer)(head, total - head)
        payload = long.view[head:total]
        peer: Any = connection.routed  # is, where somebody judges
        verdict = judge(peer, payload, connection.now)
        if type(verdict) is Peer:
            self._send_long(peer, verdict.outlet, long, payload)
        else:
            self._decide(peer, verdict, payload)
        payload.release()
        long.release()

    def _send_long(self, peer: Peer, to: Any, long: _LongFrame, payload: memoryview) -> None:
        length = len(payload)
        if to.sealed:
            data: bytes | memoryview = to.frame(bytes(payload))
        else:
            # The server's header is the client's without the mask: it fits before the payload.
            header = _header(length)
            begin = long.head - len(header)
            long.view[begin : long.head] = header
            data = long.view[begin : long.total]
        if to.take(self._connection, data):
            self._connection.count_forwarded(self._connection, peer, 1, length)
        if isinstance(data, memoryview):
            data.release()

    def close(self, transport: Any) -> None:
        """The connection is lost: give back what `start` took."""
        self._stash = b""
        self._long = None
        if self._receive is not _nothing:
            self._receive = _nothing
            del transport.doRead
