"""The reader of one connection: its messages and their handler. `pausing` tells when it is read.

    transport -> Reader.feed -> codec -> judge -> the receiver's outbox

`fastpath.FastReader` puts the common case before the codec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from viewport_relay.protocol.framing import COPIED, LONG, text_header
from viewport_relay.protocol.json import is_utf8
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.codec import Codec
from viewport_relay.wire.intake import Intake
from viewport_relay.wire.interfaces import Closing, Count, Decide, Judge, LinkCipher, Pong, StreamTransport
from viewport_relay.wire.pausing import PausableReader, Shared

#: Bytes of the first slice that the codec is given at a time: tiny frames cost 20 µs each.
_SLICE: Final = 512

#: A longer read, bytes, waits for its turn while others wait: fifty connections that each worked at theirs made a turn of 15 ms.
_FEW: Final = 4096

#: Seconds of work at one read from which on longer reads of other connections wait for the next turn.
_COSTLY: Final = 0.0001


def _ignored(payload: bytes) -> None:
    """A no-op callback: before there is a handler, and after the end."""


def _without_judge(*_: object) -> None:
    raise AssertionError("nothing is decided or forwarded without a judge")


class Reader(PausableReader):
    """Reads one connection through its codec. Times are monotonic seconds."""

    __slots__ = (
        "_closing", "_codec", "_codecs", "_pong", "_turn", "count", "decide", "judge", "peer", "receive", "unwrap",
    )  # fmt: skip

    def __init__(self, shared: Shared, transport: StreamTransport, closing: Closing, pong: Pong) -> None:
        """`closing` gets reports of how the peer ends the connection, `pong` sends the answer to a Ping frame."""
        super().__init__(shared, transport)
        self._codecs = shared.codecs
        self._codec: Codec | None = None  # made for the first byte that needs it
        self._closing: Closing | None = closing  # until lost
        self._pong = pong
        self._turn = shared.turn
        #: For messages that are routed: the judge, the peer that its routes are for, and what carries out a route without a receiver.
        self.judge: Judge | None = None
        self.peer: Any = None
        self.decide: Decide = _without_judge
        self.count: Count = _without_judge
        #: Takes messages that are not routed.
        self.receive: Callable[[bytes], None] = _ignored
        #: Opens a message of a Noise link: (payload, binary) -> frame, or None when there is none for `receive`.
        self.unwrap: Callable[[bytes, bool], bytes | None] | None = None

    # -- the handler -------------------------------------------------------------------------------------------

    def route(
        self, peer: Any, judge: Judge, decide: Decide, count: Count, intake: Intake | None = None
    ) -> None:
        """Judge messages from now on; `peer` is handed to all three. `intake` bounds the long messages of a client."""
        self._intake = intake
        self.peer = peer
        self.judge = judge
        self.decide = decide
        self.count = count
        self.receive = self.forward

    def forward(self, message: bytes) -> None:
        """Judge one message, and send it or have the route carried out."""
        judge, peer = self.judge, self.peer
        assert judge is not None
        route = judge(peer, message, self.last_seen)
        if route is None:
            self._not_utf8()
            return
        receiver = route.outlet
        if receiver is None:
            self.decide(peer, route, message)
            if len(message) > LONG:
                self._queue.end_turn()
            return
        outbox, length = receiver.outbox, len(message)
        if outbox.ready is not None and length <= COPIED:
            outbox.hold(text_header(length) + message)
        elif not outbox.send(message, self):
            return
        self.count(peer, 1, length, self.last_seen)

    def limit(self, size: int) -> None:
        """The longest message from now on, bytes (a link's records are longer than the frame in them)."""
        self._needed().limit(size)

    def link_up(self, cipher: LinkCipher, refuse: Callable[[Refusal], None]) -> None:
        """The link is up: messages may be decrypted with `cipher`, and what it raises goes to `refuse`."""

    def stop(self) -> None:
        """Throw away what comes from now on, but read it: a peer that still sends then gets the relay's Close frame."""
        self.receive = _ignored
        self.judge = None
        self.peer = None
        self.unwrap = None
        self.decide = self.count = _without_judge
        if self._codec is not None:
            self._codec.discard()
        self.end()

    def close_sent(self) -> None:
        """The relay's Close frame is on its way: the peer's next one answers it."""
        self._needed().closing()

    def forget(self) -> None:
        super().forget()
        self._codec = self._closing = None

    # -- bytes -------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Handle bytes that the transport has read."""
        self.last_seen = self._seconds()
        self._decode(data)
        if self._ended:
            self._pace(len(data))

    def _decode(self, data: bytes) -> None:
        """Give bytes to the codec, in slices, so that a flood of tiny frames does not hold the other connections up."""
        if self._must_keep():
            self._postponed += data
            return
        codec = self._needed()
        end = len(data)
        if end <= _SLICE:
            codec.feed(data)
            return
        if end > _FEW and self._queue.busy:
            self._postpone(data)
            return
        self._turn.hold_frames()
        began = self._seconds()
        until = began + self._queue.share
        at, size = 0, _SLICE
        while at < end:
            codec.feed(data[at : at + size])
            at += size
            size *= 2  # in few steps for what is quickly done, as large frames are
            if at < end and self._must_keep():  # the intake is full
                self._postponed = data[at:]
                return
            if at < end and self._seconds() >= until:
                self._postpone(data[at:])
                return
        if self._seconds() - began > _COSTLY:
            self._queue.end_turn()

    def _needed(self) -> Codec:
        if self._codec is None:
            self._codec = self._codecs.codec(self)
            if self._ended:
                self._codec.discard()
        return self._codec

    # -- CodecEvents -------------------------------------------------------------------------------------------

    def long_message(self, most: int) -> None:
        self._may_receive(most)

    def message_received(self, payload: bytes, is_binary: bool) -> None:
        if len(payload) > LONG:
            self._leave_intake()
        if self._ended:
            return
        if self.unwrap is not None:
            frame = self.unwrap(payload, is_binary)
            if frame is None:
                return
            payload, is_binary = frame, True  # whose UTF-8 is not checked yet
        if is_binary and not is_utf8(payload):
            self._not_utf8()
        else:
            self.receive(payload)

    def _not_utf8(self) -> None:
        self.violated(Reason.FRAME_NOT_UTF8, "a message is not UTF-8")

    def ping_received(self, payload: bytes) -> None:
        self._pong(payload)

    def close_received(self, code: int | None, answer: bytes) -> None:
        if self._closing is not None:
            self._closing.peer_closed(code, answer)

    def close_answered(self) -> None:
        if self._closing is not None:
            self._closing.close_answered()

    def violated(self, reason: Reason, detail: str) -> None:
        if self._closing is not None:
            self._closing.failed(reason, detail)
