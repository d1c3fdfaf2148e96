"""One turn of the reactor: the frames that result from it are held back, and sent when all sockets were read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from viewport_relay.wire.arena import Arena

#: Most bytes that are held until the end of a turn, for all receivers together.
MOST_HELD: Final = 262_144


class Held(Protocol):
    """An outbox that holds frames back."""

    def send_held(self) -> None: ...


class Turn:
    """One turn of a reactor, and the memory that its sockets are read into.

    A receiver that several peers write to gets one `send` for all of it; and receivers that are woken up one right
    after another cost less than those that fall asleep again in between. Only `RelayReactor` knows when a turn begins and
    ends: under another reactor the turn never runs, and everything is sent at once.
    """

    __slots__ = ("arena", "calls", "disconnect", "held", "later", "look", "outboxes", "quiet", "running", "within")  # fmt: skip

    def __init__(
        self,
        disconnect: Callable[[Any], None] | None = None,
        look: Callable[[], None] = lambda: None,
        later: Callable[[Callable[[], None]], object] = lambda call: call(),
    ) -> None:
        """`disconnect` is the reactor's way to end a TCP connection at once, where that is known.

        `later` calls back once, behind the frames of this turn: for a piece of work of low priority. All such work together has a
        bounded time in each turn. `look` serves the admitted peers that have sent something meanwhile: for longer work to call.
        """
        self.later = later
        self.look = look
        # Set by the reactor, which then calls `send` if there is anything in `outboxes` or `calls`:
        self.within = False  # whether a turn runs
        self.running = False  # whether frames are held until its end
        self.outboxes: list[Held] = []
        self.held = 0  # bytes, at most MOST_HELD and a frame
        self.calls: list[Callable[[], None]] = []
        self.quiet: list[Callable[[], None]] = []  # the reactor calls them when the sockets are quiet
        self.disconnect = disconnect
        self.arena = Arena()

    def hold_frames(self) -> None:
        """Hold frames until the end of this turn: several may come of one read. Outside a turn nothing is held."""
        self.running = self.within

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
        """Make the call at the end of the turn, when what is held now has been sent: at once, outside a turn."""
        if self.within:
            self.calls.append(call)
        else:
            call()

    def when_quiet(self, call: Callable[[], None]) -> None:
        """Make the call when no socket has more to read, or `reactor.GATHER_SECONDS` later: at once, outside a turn."""
        if self.within:
            self.quiet.append(call)
        else:
            call()

    def lose(self, transport: Any) -> None:
        """End a TCP connection that has nothing left to send; `loseConnection` would come back to it in another turn."""
        if self.disconnect is not None and not self.within:
            self.disconnect(transport)
        else:
            transport.loseConnection()


def turn_of(reactor: Any) -> Turn:
    """The turn of the relay's own reactor; under another reactor, one that never runs."""
    found = getattr(reactor, "turn", None)
    return found if isinstance(found, Turn) else Turn(later=partial(reactor.callLater, 0))
