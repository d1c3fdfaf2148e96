"""The pauses of one connection's reader: fair turns, the intake of long messages, and back-pressure.

A connection is read while no cause pauses it. What was received and has to wait for a turn is kept, and nothing more is read
meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen

from viewport_relay.wire.codec import CodecFactory
from viewport_relay.wire.intake import Intake
from viewport_relay.wire.interfaces import StreamTransport
from viewport_relay.wire.turn import Turn
from viewport_relay.wire.turnqueue import TurnQueue

#: A read of more bytes, on a connection that has ended, is followed by a pause.
_PACED: Final = 4096

#: The cause of a pause until a later turn.
_TURN: Final = object()

#: The causes of most connections: none. A set for each would be 200 bytes.
_BY_NONE: Final[frozenset[object]] = frozenset()


@frozen
class Shared:
    """The objects that the readers of one reactor share. `seconds` is a monotonic clock, `max_message` the longest message in bytes.

    `observe` is told how long some reads took, in seconds from the socket to the receivers' sockets.
    """

    seconds: Callable[[], float]
    queue: TurnQueue
    codecs: CodecFactory
    turn: Turn
    max_message: int
    observe: Callable[[float], None]


class PausableReader:
    """Reads one connection while it is not paused. `feed` is the subclass's. Times are monotonic seconds."""

    __slots__ = (
        "_ended", "_intake", "_paused_by", "_postponed", "_queue", "_seconds", "_transport", "_waiting", "_when_handled",
        "last_seen", "pinged_at", "unanswered_since",
    )  # fmt: skip

    def __init__(self, shared: Shared, transport: StreamTransport) -> None:
        self._queue = shared.queue
        self._seconds = shared.seconds
        self._transport = transport
        self._paused_by: frozenset[object] = _BY_NONE
        self._intake: Intake | None = None
        self._waiting = False  # for a turn, or for the intake: then nothing is read
        self._postponed = b""  # received, and left to a later turn
        self._when_handled: Callable[[], None] | None = None  # to be called behind what was postponed
        self._ended = False
        #: When anything was received; when a ping was sent; the first ping without a sign of life after it.
        self.last_seen = self.pinged_at = self._seconds()
        self.unanswered_since: float | None = None

    def feed(self, data: bytes) -> None:
        """Handle bytes that the transport has read."""
        raise NotImplementedError

    def begin(self) -> None:
        """Read, unless the connection is paused already."""
        if not self._paused_by:
            self._transport.resumeProducing()

    def end(self) -> None:
        """Read on without a pause: further input is discarded."""
        self._ended = True
        self._leave_intake()
        self._intake = None
        if self._paused_by:
            self._read_on()

    def forget(self) -> None:
        """The connection is lost: drop every reference, so that it is freed at once."""
        self._leave_intake()
        self._waiting = False
        self._postponed = b""
        self._paused_by = _BY_NONE
        self._when_handled = None

    # -- turns -------------------------------------------------------------------------------------------------

    def _postpone(self, data: bytes) -> None:
        """Handle `data` in a later turn: the other connections come first. Until then nothing is read."""
        self._postponed += data
        if not self._waiting:
            self._wait()
            self._queue.add(self._next_turn)

    def _must_keep(self) -> bool:
        """Whether what comes is kept for later. A peer that has hung up is read nevertheless."""
        return self._waiting and (bool(self._postponed) or not self._ended)

    def _wait(self) -> None:
        self._waiting = True
        self._paused_by |= {_TURN}
        self._transport.pauseProducing()

    def _pace(self, size: int) -> None:
        """Pause after a large read of discarded input: a flooding peer costs little, and still receives the Close frame."""
        if size > _PACED and not self._waiting:
            self._wait()
            self._queue.add_later(self._next_turn)

    def _next_turn(self) -> None:
        if not self._waiting:  # lost meanwhile
            return
        self._waiting = False
        data, self._postponed = self._postponed, b""
        self.feed(data)
        if self._waiting or not self._paused_by:  # once more, or lost meanwhile
            return
        if self._when_handled is not None:
            call, self._when_handled = self._when_handled, None
            call()
        self._paused_by -= {_TURN}
        if not self._paused_by or self._ended:
            self._read_on()

    def when_handled(self, call: Callable[[], None]) -> None:
        """Make the call when everything that was received has been handled."""
        if self._waiting:
            self._when_handled = call
        else:
            call()

    # -- long messages -----------------------------------------------------------------------------------------

    def let_in(self) -> None:
        """For the intake: the long message may be received now."""
        if self._waiting:
            self._queue.add(self._next_turn)

    def _may_receive(self, size: int) -> bool:
        """Whether a long message of so many bytes may be received now. False: the connection waits, and is not read."""
        if self._intake is None or self._ended or self._intake.enter(self, size):
            return True
        self._wait()
        return False

    def _leave_intake(self) -> None:
        if self._intake is not None and self._intake.leave(self):
            self._queue.add(self._next_turn)

    # -- back-pressure -----------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the connection is not read just now."""
        return bool(self._paused_by) and not self._ended

    def pause_reading(self, cause: object) -> None:
        """Add a cause of the pause: nothing is read until every cause is gone."""
        if not self._paused_by and not self._ended:
            self._transport.pauseProducing()
        self._paused_by |= {cause}

    def resume_reading(self, cause: object) -> None:
        """Remove a cause of the pause; with the last one, read on."""
        if cause not in self._paused_by:
            return
        self._paused_by -= {cause}
        if not self._paused_by:
            self._read_on()

    def _read_on(self) -> None:
        if not self._waiting:
            # While the peer was not read, no time limit ran against it.
            self.last_seen = self.pinged_at = self._seconds()
            self.unanswered_since = None
            self._transport.resumeProducing()
