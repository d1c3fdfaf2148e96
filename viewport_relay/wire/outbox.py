"""The outbox of one connection: the bytes that wait to be sent, bounded, in order, fair between its feeders.

The transport buffers up to its high-water mark and then pauses its producer, the outbox. From then on bytes wait here, in
one lane for each feeder, and leave round-robin when the transport resumes the producer. A connection that only one party
writes to (a client) has one lane, so that its order is kept.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from viewport_relay.protocol.framing import BINARY, CLOSE, PING, PONG, frame_header, text_header
from viewport_relay.protocol.json import Message
from viewport_relay.wire.interfaces import Feeder, StreamTransport
from viewport_relay.wire.lanes import Lanes
from viewport_relay.wire.transport import DirectAccess, Sender, limit_kernel_queue
from viewport_relay.wire.turn import MOST_HELD, Turn

#: The transport's own buffer, bytes: small, so that a flooding feeder delays the others little.
HIGH_WATER: Final = 65_536

#: A flag of `send`: more data follow at once, so the kernel may wait for them. 0 on systems without it: then they are a segment more.
_MORE: Final[int] = getattr(sockets, "MSG_MORE", 0)


def _nothing() -> None: ...


def _taken(pending: int) -> bool:
    """No limit: everything may wait."""
    return True


def _resume(lanes: Lanes | None, cause: object) -> None:
    for feeder in () if lanes is None else lanes.feeders:
        feeder.resume_reading(cause)


@implementer(IPushProducer)
class Outbox:
    """The outbox of one connection. `blocked` says that the transport has enough for now."""

    __slots__ = (
        "_direct", "_free", "_held", "_in_transport", "_lanes", "_last", "_may_wait", "_pong",
        "_shut", "_transport", "_turn", "blocked", "on_backlog", "on_idle", "ready", "sealed",
    )  # fmt: skip

    def __init__(
        self, turn: Turn, transport: StreamTransport, may_wait: Callable[[int], bool] = _taken
    ) -> None:
        """`may_wait` is asked when a message meets a blocked transport, with `pending`; False: it is not taken."""
        self._turn = turn
        self._transport = transport
        self._may_wait: Callable[[int], bool] | None = may_wait
        self._direct = transport if isinstance(transport, DirectAccess) else None
        self._free: Sender | None = None  # its sender, while nothing waits and it may be written at once
        self._shut = False  # no more messages are taken
        self._lanes: Lanes | None = None  # made when something waits: a lane is 1,100 bytes
        self._last: bytes | None = None
        self._pong: bytes | None = None
        self._in_transport = 0  # at most so much was unsent in the transport when it blocked
        self._held: list[Any] | None = (
            None  # frames (of a link messages), until the end of the turn; only while `_free`
        )
        #: Called whenever everything has gone to the transport and it takes more.
        self.on_idle: Callable[[], None] = _nothing
        #: Called whenever a message has met a full transport.
        self.on_backlog: Callable[[], None] = _nothing
        self.blocked = False
        #: Whether messages leave as a link's records (`linkoutbox`), so that they are given to `send_all`.
        self.sealed = False
        #: The socket, while a frame may be given to `hold` without asking anything else.
        self.ready: Sender | None = None
        transport.registerProducer(self, True)

    @property
    def queued(self) -> int:
        """Bytes that wait here."""
        return 0 if self._lanes is None else self._lanes.size

    @property
    def pending(self) -> int:
        """Bytes that wait, here and (at most) in the transport."""
        return self.queued + self._in_transport

    @property
    def drained(self) -> bool:
        """Whether nothing waits anywhere: a transport that sends at once has sent everything."""
        return self._held is None and not self.blocked and self._emptied() is not None

    @property
    def idle(self) -> bool:
        """Whether everything has gone to the transport and its buffer is not full."""
        return not self.blocked and not self._lanes and self._held is None

    # -- messages ----------------------------------------------------------------------------------------------

    def take(self, data: bytes | memoryview, feeder: Feeder | None = None) -> bool:
        """Send whole frames. If they must wait, their `feeder` is not read until they have gone.

        False: they are not taken. A memoryview is used up when this returns.
        """
        if not self._may_take():
            return False
        self.write(data, feeder if self._may_wait is None else None)
        if self.blocked:
            self.on_backlog()
        return True

    def _may_take(self) -> bool:
        """Whether a message may leave, or wait."""
        if self._shut:
            return False
        return not self.blocked or self._may_wait is None or self._may_wait(self.pending)

    def send(self, message: bytes, feeder: Feeder | None = None) -> bool:
        """Make a frame of the message (on a link, records) and take it."""
        return self.take(text_header(len(message)) + message, feeder)

    def send_all(self, messages: Sequence[Message], size: int, feeder: Feeder | None = None) -> bool:
        """Make records of messages that have `size` bytes together, and take all or none of them. Only while `sealed`."""
        raise NotImplementedError

    def feed_fairly(self) -> None:
        """Keep a lane for each feeder, without a limit: the feeders are paused instead (a daemon's outbox)."""
        self._may_wait = None
        limit_kernel_queue(self._transport)

    def shut(self) -> None:
        """Take no more messages: the connection has ended. What waits still leaves, and no feeder waits for it."""
        self._shut = True
        self.ready = None

    # -- control frames ----------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Send a Ping frame (RFC 6455 section 5.5.2)."""
        self._control(PING, b"")

    def pong(self, payload: bytes) -> None:
        """Send a Pong frame; while the transport is full the latest one waits (RFC 6455 section 5.5.3)."""
        if self.blocked:
            self._pong = payload
        else:
            self._control(PONG, payload)

    def _control(self, opcode: int, payload: bytes) -> None:
        if self._last is None:
            self.write(frame_header(opcode, len(payload)) + payload)

    def send_binary(self, payload: bytes) -> None:
        """Send a message of the link's handshake."""
        self.write(frame_header(BINARY, len(payload)) + payload)

    def send_close(self, payload: bytes, *, ends: bool) -> None:
        """Send a Close frame, the last frame. `ends`: the connection ends at once then, so Close and FIN may share a segment."""
        data = frame_header(CLOSE, len(payload)) + payload
        self._pong = None
        if self.blocked or self._lanes:
            self._last = data
            return
        self._last = b""
        if ends and self.drained:
            self.write(data, flags=_MORE)
        else:
            self.hold(data)

    # -- bytes -------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview, feeder: Feeder | None = None, flags: int = 0) -> None:
        """Send bytes, or let them wait in the feeder's lane. `flags` are those of `socket.send`."""
        if self._held is not None:
            self.send_held()
        if self.blocked:
            self._wait(feeder, data if isinstance(data, bytes) else bytes(data))
            return
        sock = self._free or self._emptied()
        if sock is not None:
            try:
                sent = sock.send(data, flags)
            except OSError:
                sent = 0  # full, or broken: the transport finds out which
            if sent == len(data):
                return
            data = data[sent:]
            self._free = self.ready = None
        self._in_transport = len(data)
        self._transport.write(bytes(data))

    def hold(self, data: bytes | memoryview) -> None:
        """Send bytes at the end of the turn, with what else comes for this receiver; at once, if others wait before."""
        turn = self._turn
        if not turn.running or (self._free is None and (self.blocked or self._emptied() is None)):
            self.write(data)
            return
        if self._held is None:
            self._held = [data]
            turn.outboxes.append(self)
        else:
            self._held.append(data)
        turn.held += len(data)
        if turn.held >= MOST_HELD:
            turn.send()

    def send_held(self) -> None:
        """Send what is held: the turn is over, or something else is sent after it."""
        held, self._held = self._held, None
        if held is not None:
            self.write(held[0] if len(held) == 1 else b"".join(held))

    def _as_sent(self, data: bytes) -> bytes:
        """The bytes to write for a queued chunk."""
        return data

    def _emptied(self) -> Sender | None:
        """The sender if it may be written, and the transport has sent all that it was given."""
        direct = self._direct
        if direct is not None and direct.sent_everything:
            self._free = direct.sender
            if not self._shut and not self.sealed:
                self.ready = self._free
        return self._free

    def _wait(self, feeder: Feeder | None, data: bytes) -> None:
        if self._lanes is None:
            self._lanes = Lanes()
        if self._lanes.put(feeder, data) and feeder is not None:
            feeder.pause_reading(self)

    # -- feeders -----------------------------------------------------------------------------------------------

    def forget(self, feeder: Feeder) -> None:
        """Drop the queued data of a feeder that has left."""
        if self._lanes is not None:
            self._lanes.drop(feeder)

    def let_feeders_go(self) -> None:
        """Resume the feeders of a receiver that has left routing; queued data are still sent."""
        _resume(self._lanes, self)

    # -- IPushProducer, called by the transport ------------------------------------------------------------------

    def pauseProducing(self) -> None:
        self.blocked = True
        self._free = self.ready = None
        self._in_transport += HIGH_WATER

    def resumeProducing(self) -> None:
        self.blocked = False
        self._in_transport = 0
        while self._lanes and not self.blocked:
            data, feeder = self._lanes.take()
            data = self._as_sent(data)
            self._in_transport = len(data)
            self._transport.write(data)
            if feeder is not None:
                feeder.resume_reading(self)  # last: it may write at once
        if self._lanes or self.blocked:
            return
        self._lanes = None
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._control(PONG, payload)
        if self._last:
            last, self._last = self._last, b""
            self._transport.write(last)
        self.on_idle()

    def stopProducing(self) -> None:
        """Drop everything and resume the feeders: nothing can be sent any more."""
        self.shut()
        lanes, self._lanes = self._lanes, None
        self._held = self._pong = self._direct = self._free = None
        self._last = b""
        self.on_idle = self.on_backlog = _nothing  # holds no reference to the connection
        self._may_wait = _taken
        self.sealed = False
        self._in_transport = 0
        self.blocked = True
        _resume(lanes, self)
