"""Twisted's epoll reactor with a shorter way from the kernel's events to the sockets' handlers.

* Handlers run without Twisted's logging context, which names the connection in lines that the handler logs: the relay's
  log has its own way to name connections.
* The reactor knows where a turn ends, in which frames may be held back (`turn.Turn`), and looks at the sockets again by
  itself while no timer is due and no other work is queued.
* Frames for other relays leave when the sockets are quiet: an idle relay sends them at once, a busy one more of them together.
* Listeners make transports that read straight into the arena and notice a peer that hangs up while it is paused.
* Connections that are not admitted yet are served after the others, for a bounded time in each turn (`lowpriority`).
* The clock is monotonic: set back or forward, the wall clock would hold up or fire every time-out at once.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import tcp, unix
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import CannotListenError
from twisted.internet.main import CONNECTION_DONE, installReactor
from twisted.protocols.policies import ProtocolWrapper
from twisted.python import log

from viewport_relay.wire.lowpriority import LowPrioritySet
from viewport_relay.wire.transport import DirectTransport, TCPTransport, UnixTransport
from viewport_relay.wire.turn import Turn
from viewport_relay.wire.unixlock import drop_stale

#: Most sockets of one turn. The kernel's list is made anew each time: for as many as there are, thousands, it is large.
MOST_EVENTS: Final = 256

#: Most connections that a listener accepts in one turn; Twisted's own takes a hundred and more. Each costs 50 µs, and 20 µs
#: if it is closed at once.
MOST_ACCEPTS: Final = 8


class _FewAccepts(tcp.Port):
    """A listener that accepts few connections, at the end of a turn, and gives them low priority until they are admitted."""

    reactor: RelayReactor
    made: Any  # class of the transports

    def doRead(self) -> None:
        """Accept behind the frames of this turn; outside a turn, at once."""
        turn = self.reactor.turn
        if turn.within:
            turn.later(self._accept)
        else:
            self._accept()

    def _accept(self) -> None:
        if self.disconnecting or not self.connected:
            return
        self.numberAccepts = min(self.numberAccepts, MOST_ACCEPTS)
        super().doRead()  # type: ignore[no-untyped-call]
        self.reactor.low_priority.doRead()  # mostly the peer's first bytes follow at once

    def transport(self, *arguments: Any) -> DirectTransport:  # type: ignore[override]
        """Called for each accepted connection; the last argument is the listener's reactor."""
        self.reactor.turn.look()
        made: DirectTransport = self.made(*arguments[:-1], self.reactor.low_priority)
        return made


class _TCPPort(_FewAccepts):
    made = TCPTransport


class _UnixPort(_FewAccepts, unix.Port):  # type: ignore[misc]  # Twisted has a class where `transport` is a method
    made = UnixTransport


#: Seconds of work of low priority in one turn; the piece that passes this bound is the last. A read takes some 30 µs of CPU, over
#: TLS 65 µs.
LOW_PRIORITY_SECONDS: Final = 0.002

#: Seconds between two looks at the sockets of admitted peers while others are served. What is between two looks is sent
#: together. A look after each piece of work costs upgrades a third more: the code of one step is not in the processor's caches
#: when the next connection comes to it.
LOOK_SECONDS: Final = 0.002

#: The same while admitted peers send, and the seconds for which that is assumed after a read of one that stays open.
TALK_LOOK_SECONDS: Final = 0.0001
TALK_SECONDS: Final = 1.0

#: Seconds for which the sockets that are ready are served before what waits for quiet sockets (`Turn.when_quiet`) is called.
GATHER_SECONDS: Final = 0.001

#: Selectables that put their work off until the end of a turn.
_LAST: Final = (_FewAccepts, LowPrioritySet)


class RelayReactor(EPollReactor):
    """The relay's reactor. `turn` is shared by its connections, `low_priority` is the reactor of those that are not admitted."""

    seconds = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._jobs: dict[Callable[[], None], None] = {}  # of low priority, in order, each once
        self.turn = Turn(self.end, self._look, self._jobs.setdefault)
        self._next_look = self._talk_until = 0.0
        EPollReactor.__init__(self)
        self.low_priority = LowPrioritySet(self)
        self.watch_hang_up = self.low_priority.watch_hang_up
        self.unwatch_hang_up = self.low_priority.unwatch_hang_up
        self.addReader(self.low_priority)  # type: ignore[no-untyped-call]

    def end(self, transport: Any) -> None:
        """End a TCP connection that has nothing to send, at once. One with TLS sends close_notify first."""
        if isinstance(transport, ProtocolWrapper):
            transport.loseConnection()
            return
        self._disconnectSelectable(transport, CONNECTION_DONE, False)  # type: ignore[no-untyped-call]

    # -- events ------------------------------------------------------------------------------------------------

    def doPoll(self, timeout: float | None) -> None:
        poll = self._poller.poll
        until = None if timeout is None else self.seconds() + timeout
        while timeout is None or timeout >= 0.0:
            if self._jobs:
                timeout = 0.0
            try:
                events = poll(-1 if timeout is None else timeout, MOST_EVENTS)
            except OSError as error:
                if error.errno == errno.EINTR:
                    return
                raise
            self.serve(events, self._selectables)
            if self._jobs:
                self._work(events)
            if self.turn.quiet:
                self._gather()
            if (
                not events
                or self._newTimedCalls
                or self.threadCallQueue
                or self._justStopped
                or not self.running
            ):
                return
            # Nothing but sockets so far, and no timer is due: the reactor's own round would find nothing to do.
            pending = self._pendingTimedCalls
            until = pending[0].time if pending and (until is None or pending[0].time < until) else until
            timeout = None if until is None else until - self.seconds()

    doIteration = doPoll

    def _gather(self) -> None:
        """Serve the sockets that are ready, until none is or the time is over; then make the calls of `Turn.when_quiet`."""
        until = self.seconds() + GATHER_SECONDS
        while self.seconds() < until and (events := self._poller.poll(0, MOST_EVENTS)):
            self.serve(events, self._selectables)
        calls, self.turn.quiet = self.turn.quiet, []
        for call in calls:
            call()

    def _work(self, events: list[tuple[int, int]]) -> None:
        """Do work of low priority behind these events, piece by piece, as one turn; between two pieces admitted peers are served.

        What is left comes first in the next turn.
        """
        self._looked(events)
        turn, jobs = self.turn, self._jobs
        until = self.seconds() + LOW_PRIORITY_SECONDS
        turn.within = turn.running = True
        while jobs and self.seconds() < until:
            job = next(iter(jobs))
            del jobs[job]
            try:
                job()
            except BaseException:  # as the reactor does with timed calls
                log.err()
            self._look()
        turn.within = turn.running = False
        turn.send()

    def _look(self) -> None:
        """Serve the sockets that are ready now, except listeners and the sockets of low priority."""
        if self.seconds() < self._next_look:
            return
        turn, selectables = self.turn, self._selectables
        within, turn.within, turn.running = turn.within, False, False
        turn.send()
        events = self._poller.poll(0, MOST_EVENTS)
        urgent = [ready for ready in events if not isinstance(selectables.get(ready[0]), _LAST)]
        if urgent:
            self.serve(urgent, selectables)
        self._looked(urgent)
        turn.within = turn.running = within

    def _looked(self, events: list[tuple[int, int]]) -> None:
        """Set the time of the next look, now that these events were served."""
        now, selectables = self.seconds(), self._selectables
        for at, _ in events:
            if isinstance(selectables.get(at), DirectTransport):
                self._talk_until = now + TALK_SECONDS
                break
        self._next_look = now + (TALK_LOOK_SECONDS if now < self._talk_until else LOOK_SECONDS)

    def serve(self, events: list[tuple[int, int]], selectables: dict[int, Any]) -> None:
        """Handle events of sockets, which are found in `selectables` by descriptor, and send the frames that result."""
        # Attributes and no calls: where each turn brings one frame, this is done for each frame.
        turn = self.turn
        outer, turn.within = turn.within, True
        turn.running = outer or len(events) > 1
        try:
            for descriptor, event in events:
                selectable = selectables.get(descriptor)
                if selectable is None:  # an earlier handler has closed it
                    continue
                if event != select.EPOLLIN:
                    self._doReadOrWrite(selectable, descriptor, event)  # type: ignore[no-untyped-call]
                    continue
                # An event of nothing but input: the handler of `_doReadOrWrite`, inlined. An exception is logged and ends
                # this connection alone.
                why: Any
                try:
                    why = selectable.doRead()
                except BaseException:
                    why = sys.exc_info()[1]
                    log.err()
                if why:
                    self._disconnectSelectable(selectable, why, True)  # type: ignore[no-untyped-call]
        finally:
            turn.within = turn.running = outer
            if not outer and (turn.outboxes or turn.calls):
                turn.send()

    # -- transports --------------------------------------------------------------------------------------------

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        listener = _TCPPort(port, factory, backlog, interface, self)
        listener.startListening()
        return listener

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        if wantPID:
            drop_stale(os.fsdecode(address))
        listener = _UnixPort(address, factory, backlog, mode, self, wantPID)
        try:
            listener.startListening()  # type: ignore[no-untyped-call]
        except CannotListenError:
            lock: Any = listener.lockFile
            if lock is not None and lock.locked:  # by this process: Twisted leaves it
                lock.unlock()
            raise
        return listener

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily == socket.AF_UNIX:
            listener: Any = _UnixPort._fromListeningDescriptor(self, fileDescriptor, factory)  # type: ignore[no-untyped-call]
        else:
            listener = _TCPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)  # type: ignore[no-untyped-call]
        listener.startListening()
        return listener

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        return _adopted(fileDescriptor, addressFamily, factory, self)

    # -- IReactorFDSet, for all sockets ------------------------------------------------------------------------

    def getReaders(self) -> list[Any]:
        return [*super().getReaders(), *self.low_priority.getReaders()]  # type: ignore[no-untyped-call]

    def getWriters(self) -> list[Any]:
        return [*super().getWriters(), *self.low_priority.getWriters()]  # type: ignore[no-untyped-call]

    def removeAll(self) -> list[Any]:
        return [*self.low_priority.removeAll(), *super().removeAll()]  # type: ignore[no-untyped-call]


def _adopted(descriptor: int, family: int, factory: Any, reactor: Any) -> Any:
    """A transport in `reactor` for a connection that another process has accepted."""
    if family == socket.AF_UNIX:
        return UnixTransport._fromConnectedSocket(descriptor, factory, reactor)  # type: ignore[no-untyped-call]
    return TCPTransport._fromConnectedSocket(descriptor, family, factory, reactor)  # type: ignore[no-untyped-call]


def adopt_stranger(reactor: Any, descriptor: int, family: int, factory: Any) -> Any:
    """As `reactor.adoptStreamConnection`, for a connection that is not admitted yet."""
    if not isinstance(reactor, RelayReactor):
        return reactor.adoptStreamConnection(descriptor, family, factory)
    return _adopted(descriptor, family, factory, reactor.low_priority)


def install() -> RelayReactor:
    """Make a `RelayReactor` the process's reactor. Raises ReactorAlreadyInstalledError if there is one."""
    reactor = RelayReactor()
    installReactor(reactor)
    return reactor
