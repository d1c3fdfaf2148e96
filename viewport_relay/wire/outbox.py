"""What waits to be sent to one connection: bounded, in order, fair between those who feed it.

The transport buffers a little (its high-water mark) and then says pause; from then on bytes wait here, in one
lane for each feeder, and leave round-robin when the transport says resume. A connection that only one party
writes to (a client) has one lane, so that its order is kept. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import socket as sockets
from collections import deque
from collections.abc import Callable
from socket import socket
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

#: The transport's own buffer, bytes: small, so that a flooding feeder delays the others little.
HIGH_WATER: Final = 65_536

#: For `send`: more will follow at once. Where the kernel does not know it, that costs a segment.
_MORE: Final[int] = getattr(sockets, "MSG_MORE", 0)

#: Most bytes that are held until the end of a turn, for all receivers together.
MOST_HELD: Final = 262_144


class Turn:
    """One look of the reactor at its sockets. What its frames make is held back, and sent when all were read.

    A receiver that several peers write to gets one `send` for all of it; and receivers that are woken up one right
    after another cost less than those that fall asleep again in between. Only who dispatches the reactor's events
    knows when a turn begins and ends: where nobody does, it never runs, and everything is sent at once.
    """

    __slots__ = ("calls", "disconnect", "held", "outboxes", "running", "within")

    def __init__(self) -> None:
        # Set by who dispatches, who then calls `send` if there is anything in `outboxes` or `calls`:
        self.within = False  # whether a turn is under way
        self.running = False  # whether frames are held until its end
        self.outboxes: list[Outbox] = []
        self.held = 0  # bytes, at most MOST_HELD and a frame
        self.calls: list[Callable[[], None]] = []
        #: The reactor's way to end a TCP connection at once, where that is known.
        self.disconnect: Callable[[Any], None] | None = None

    def send(self) -> None:
        """Send what is held, in the order in which receivers came."""
        outboxes, self.outboxes = self.outboxes, []
        self.held = 0
        for outbox in outboxes:
            outbox.send_held()
        if self.calls:
            calls, self.calls = self.calls, []
            for call in calls:
                call()

    def when_sent(self, call: Callable[[], None]) -> None:
        """Call this at the end of the turn, when what is held now has been sent: at once, outside a turn."""
        if self.within:
            self.calls.append(call)
        else:
            call()

    def lose(self, transport: Any) -> None:
        """End a TCP connection that has nothing left to send; `loseConnection` would come back to it in another turn."""
        if self.disconnect is not None and not self.within:
            self.disconnect(transport)
        else:
            transport.loseConnection()


#: The turn of this process's reactor.
TURN: Final = Turn()


def _nothing() -> None:
    """Nobody waits any more."""


class Unsealed(bytes):
    """A message that is sealed only when it leaves: a Noise link counts its messages in the order of sending."""

    __slots__ = ()


class Transport(Protocol):
    """What an outbox needs of a Twisted stream transport."""

    def write(self, data: bytes, /) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class DirectTransport(Transport, Protocol):
    """A plain TCP transport of Twisted, whose socket may be written while its own buffer is empty."""

    dataBuffer: bytes
    _tempDataLen: int


class Feeder(Protocol):
    """A connection whose messages go to this one; it is not read while its lane is not empty."""

    def pause_reading(self, cause: object) -> None: ...
    def resume_reading(self, cause: object) -> None: ...


class _Lane:
    __slots__ = ("chunks", "feeder", "size")

    def __init__(self, feeder: Feeder | None) -> None:
        self.feeder = feeder
        self.chunks: deque[bytes] = deque()
        self.size = 0


@implementer(IPushProducer)
class Outbox:
    """The way out of one connection. `blocked` says that the transport has enough for now."""

    __slots__ = (
        "_direct",
        "_held",
        "_in_transport",
        "_lanes",
        "_last",
        "_on_resume",
        "_seal",
        "_socket",
        "_transport",
        "_turns",
        "blocked",
        "queued",
        "ready",
    )

    def __init__(self, transport: Transport, on_resume: Callable[[], None]) -> None:
        """`on_resume` is called whenever everything has gone to the transport and it takes more."""
        self._transport = transport
        self._direct: DirectTransport | None = None
        self._socket: socket | None = None
        self._seal: Callable[[bytes], bytes] = bytes
        self._on_resume = on_resume
        self._lanes: dict[Feeder | None, _Lane] = {}
        # Lanes that hold something. None of them: no deque, which is 600 bytes even if it is empty.
        self._turns: deque[_Lane] | None = None
        self._last: bytes | None = None
        self._in_transport = 0  # at most so much was unsent in the transport when it blocked
        self.blocked = False
        self.queued = 0
        #: The socket, while nothing waits and it may be written at once; None: `write` finds out.
        self.ready: socket | None = None
        self._held: bytes | list[bytes] | None = None  # until the end of the turn; only while `ready`
        transport.registerProducer(self, True)

    @property
    def pending(self) -> int:
        """Bytes that wait, here and (at most) in the transport."""
        return self.queued + self._in_transport

    def write_directly(self, transport: DirectTransport, sock: socket) -> None:
        """From now on write to the socket at once while nothing waits: it saves a turn of the reactor."""
        self._direct = transport
        self._socket = sock

    def seal_with(self, seal: Callable[[bytes], bytes]) -> None:
        """How an `Unsealed` message becomes the bytes of a frame."""
        self._seal = seal

    def write(self, data: bytes | memoryview, feeder: Feeder | None = None) -> None:
        """Send bytes; if they must wait, `feeder`, who brought them, is not read until they have gone.

        A memoryview is used up when this returns.
        """
        if self._held is not None:
            self.send_held()
        if self.blocked:
            self._wait(feeder, data if isinstance(data, bytes) else bytes(data))
            return
        if type(data) is Unsealed:
            data = self._seal(data)
        sock = self.ready or self._emptied()
        if sock is not None:
            try:
                sent = sock.send(data)
            except OSError:
                sent = 0  # full, or broken: the transport finds out which
            if sent == len(data):
                return
            data = data[sent:]
            self.ready = None
        self._in_transport = len(data)
        self._transport.write(bytes(data))

    def hold(self, data: bytes) -> None:
        """Send bytes at the end of the turn, with what else comes for this receiver; at once, if others wait before."""
        turn = TURN
        if not turn.running or (self.ready is None and (self.blocked or self._emptied() is None)):
            self.write(data)
            return
        held = self._held
        if held is None:
            self._held = data
            turn.outboxes.append(self)
        elif isinstance(held, list):
            held.append(data)
        else:
            self._held = [held, data]
        turn.held += len(data)
        if turn.held >= MOST_HELD:
            turn.send()

    def send_held(self) -> None:
        """The turn is over, or something else is to be sent after it."""
        held, self._held = self._held, None
        if held is not None:
            self.write(b"".join(held) if isinstance(held, list) else held)

    def _emptied(self) -> socket | None:
        """The socket if it may be written, and the transport has sent all that it was given."""
        direct = self._direct
        if direct is not None and not direct.dataBuffer and not direct._tempDataLen:
            self.ready = self._socket
        return self.ready

    def write_last(self, data: bytes, *, ends: bool = False) -> None:
        """Send these bytes after everything that waits (a Close frame).

        `ends`: the connection is ended at once then, so that the kernel may put them and its FIN into one segment.
        """
        if self.blocked or self._turns:
            self._last = data
        elif ends and self.drained:
            self._say_last(data)
        else:
            self.hold(data)

    def _say_last(self, data: bytes) -> None:
        assert self.ready is not None
        try:
            sent = self.ready.send(data, _MORE)
        except OSError:
            sent = 0
        if sent < len(data):
            self.write(data[sent:])

    def _wait(self, feeder: Feeder | None, data: bytes) -> None:
        lane = self._lanes.get(feeder)
        if lane is None:
            lane = self._lanes[feeder] = _Lane(feeder)
            if feeder is not None:
                feeder.pause_reading(self)
        if not lane.chunks:
            if self._turns is None:
                self._turns = deque()
            self._turns.append(lane)
        lane.chunks.append(data)
        lane.size += len(data)
        self.queued += len(data)

    def forget(self, feeder: Feeder) -> None:
        """The feeder is gone and nobody shall wait for what it left behind."""
        lane = self._lanes.pop(feeder, None)
        if lane is not None:
            self.queued -= lane.size
            lane.chunks.clear()
            assert self._turns is not None  # as long as there are lanes
            self._turns.remove(lane)

    def let_feeders_go(self) -> None:
        """What they brought still leaves, but nobody waits for that any more: the receiver takes part no longer."""
        for feeder in tuple(self._lanes):
            if feeder is not None:
                feeder.resume_reading(self)

    @property
    def drained(self) -> bool:
        """Whether this is a plain TCP connection that has sent all that it was given."""
        return self._held is None and not self.blocked and self._emptied() is not None

    @property
    def idle(self) -> bool:
        """Whether everything has gone to the transport and its buffer is not full."""
        return not self.blocked and not self._turns and self._held is None

    # -- IPushProducer, called by the transport ------------------------------------------------------------

    def pauseProducing(self) -> None:
        self.blocked = True
        self.ready = None
        self._in_transport += HIGH_WATER

    def resumeProducing(self) -> None:
        self.blocked = False
        self._in_transport = 0
        while self._turns and not self.blocked:
            lane = self._turns.popleft()
            data = lane.chunks.popleft()
            lane.size -= len(data)
            self.queued -= len(data)
            if lane.chunks:
                self._turns.append(lane)
            else:
                del self._lanes[lane.feeder]
            if type(data) is Unsealed:
                data = self._seal(data)
            self._in_transport = len(data)
            self._transport.write(data)
            if not lane.chunks and lane.feeder is not None:
                lane.feeder.resume_reading(self)  # last: it may write at once
        if self._turns or self.blocked:
            return
        self._turns = None
        if self._last is not None:
            last, self._last = self._last, None
            self._transport.write(last)
        self._on_resume()

    def stopProducing(self) -> None:
        """The connection is lost: drop everything and let the feeders be read again."""
        lanes, self._lanes = self._lanes, {}
        self._held = None
        self._turns = None
        self._last = None
        self._socket = self._direct = self.ready = None
        self._on_resume = _nothing  # who owns us is free to go
        self._seal = bytes
        self.queued = 0
        self._in_transport = 0
        self.blocked = True
        for feeder in lanes:
            if feeder is not None:
                feeder.resume_reading(self)

    def detach(self) -> None:
        """The transport is gone for good."""
        self.stopProducing()
        self._transport.unregisterProducer()
