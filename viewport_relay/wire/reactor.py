"""Twisted's epoll reactor with a shorter way from the kernel's events to the sockets' handlers.

* Handlers run without Twisted's logging context, which names the connection in lines that the handler logs: the relay's
  log has its own way to name connections.
* The reactor knows where a turn ends, in which frames may be held back (`turn.Turn`), and looks at the sockets again by
  itself while no timer is due and no other work is queued.
* Listeners make transports that read straight into the arena and notice a peer that hangs up while it is paused.
* The clock is monotonic: set back or forward, the wall clock would hold up or fire every time-out at once.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from typing import Any, Final

from twisted.internet import tcp, unix
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import CONNECTION_DONE, installReactor
from twisted.protocols.policies import ProtocolWrapper
from twisted.python import log

from viewport_relay.wire.transport import DirectTransport, TCPTransport, UnixTransport
from viewport_relay.wire.turn import Turn

#: Most sockets of one turn. The kernel's list is made anew each time: for as many as there are, thousands, it is large.
MOST_EVENTS: Final = 256


#: Most connections that a listener accepts in one turn; Twisted's own takes a hundred and more. With TLS each costs
#: half a millisecond.
MOST_ACCEPTS: Final = 8


class _AcceptsFew(tcp.Port):
    """A listener that lets the connections that are open already have their turn between a few accepts."""

    def doRead(self) -> None:
        self.numberAccepts = min(self.numberAccepts, MOST_ACCEPTS)
        super().doRead()  # type: ignore[no-untyped-call]


class _TCPPort(_AcceptsFew):
    transport = TCPTransport


class _UnixPort(_AcceptsFew, unix.Port):
    transport = UnixTransport


class RelayReactor(EPollReactor):
    """The relay's reactor. `turn` is what its connections share."""

    seconds = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.turn = Turn(self.end)
        self._hang_ups: _HangUps | None = None
        EPollReactor.__init__(self)

    def end(self, transport: Any) -> None:
        """End a connection that has nothing to send now, in order; TLS has to say so first."""
        if isinstance(transport, ProtocolWrapper):
            transport.loseConnection()
            return
        self._disconnectSelectable(transport, CONNECTION_DONE, False)  # type: ignore[no-untyped-call]

    # -- events ------------------------------------------------------------------------------------------------

    def doPoll(self, timeout: float | None) -> None:
        poll = self._poller.poll
        until = None if timeout is None else self.seconds() + timeout
        while timeout is None or timeout >= 0.0:
            try:
                events = poll(-1 if timeout is None else timeout, MOST_EVENTS)
            except OSError as error:
                if error.errno == errno.EINTR:
                    return
                raise
            self._handle(events)
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

    def _handle(self, events: list[tuple[int, int]]) -> None:
        # Attributes and no calls: where each turn brings one frame, this is done for each frame.
        turn, selectables = self.turn, self._selectables
        turn.within = True
        turn.running = len(events) > 1
        try:
            for descriptor, event in events:
                selectable = selectables.get(descriptor)
                if selectable is None:  # an earlier handler has closed it
                    continue
                if event != select.EPOLLIN:
                    self._doReadOrWrite(selectable, descriptor, event)  # type: ignore[no-untyped-call]
                    continue
                # What the handler does for nothing but input. As with Twisted's, whatever is raised is logged and ends
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
            turn.within = turn.running = False
            if turn.outboxes or turn.calls:
                turn.send()

    # -- transports --------------------------------------------------------------------------------------------

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        listener = _TCPPort(port, factory, backlog, interface, self)
        listener.startListening()
        return listener

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        listener = _UnixPort(address, factory, backlog, mode, self, wantPID)
        listener.startListening()  # type: ignore[no-untyped-call]
        return listener

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily == socket.AF_UNIX:
            listener: Any = _UnixPort._fromListeningDescriptor(self, fileDescriptor, factory)  # type: ignore[no-untyped-call]
        else:
            listener = _TCPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)  # type: ignore[no-untyped-call]
        listener.startListening()
        return listener

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily == socket.AF_UNIX:
            return UnixTransport._fromConnectedSocket(fileDescriptor, factory, self)  # type: ignore[no-untyped-call]
        return TCPTransport._fromConnectedSocket(fileDescriptor, addressFamily, factory, self)  # type: ignore[no-untyped-call]

    def watch_hang_up(self, transport: DirectTransport) -> None:
        """Call `transport.hung_up()` when its peer sends FIN or RST, although it is not read."""
        if self._hang_ups is None:
            self._hang_ups = _HangUps(self)
        self._hang_ups.watch(transport)

    def unwatch_hang_up(self, transport: DirectTransport) -> None:
        """Stop watching."""
        if self._hang_ups is not None:
            self._hang_ups.unwatch(transport)


class _HangUps:
    """An epoll set within the reactor's, of sockets that are not read, for nothing but hang-ups."""

    def __init__(self, reactor: RelayReactor) -> None:
        self._set = select.epoll()
        self._transports: dict[int, DirectTransport] = {}
        self._reactor = reactor

    def fileno(self) -> int:
        return self._set.fileno()

    def logPrefix(self) -> str:
        return "hang-ups"

    def watch(self, transport: DirectTransport) -> None:
        descriptor = transport.socket.fileno()
        if descriptor not in self._transports:
            if not self._transports:
                self._reactor.addReader(self)  # type: ignore[no-untyped-call]
            self._set.register(descriptor, select.EPOLLRDHUP)
            self._transports[descriptor] = transport

    def unwatch(self, transport: DirectTransport) -> None:
        descriptor = transport.socket.fileno()
        if self._transports.pop(descriptor, None) is not None:
            self._set.unregister(descriptor)
            if not self._transports:
                self._reactor.removeReader(self)  # type: ignore[no-untyped-call]

    def doRead(self) -> None:
        for descriptor, _ in self._set.poll(0):
            transport = self._transports.get(descriptor)
            if transport is not None:
                transport.hung_up()

    def connectionLost(self, reason: object) -> None:
        """The reactor has stopped."""
        self._set.close()


def install() -> RelayReactor:
    """Make a `RelayReactor` the process's reactor. Raises ReactorAlreadyInstalledError if there is one."""
    reactor = RelayReactor()
    installReactor(reactor)
    return reactor
