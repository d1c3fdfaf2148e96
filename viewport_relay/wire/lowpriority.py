"""An epoll set of low priority: sockets that are served behind those of admitted peers, for a bounded time in each turn.

In the set are the connections that are not admitted yet, and paused ones of peers, which are watched for a hang-up. The set's
own descriptor is one member of the reactor's set. One event is one piece of the reactor's work of low priority (`Turn.later`), so
hundreds of its sockets that become readable at once delay the frames of admitted peers little, and are served in turn.
"""

from __future__ import annotations

import select
from typing import Any, Final

from twisted.internet.interfaces import IReactorFDSet
from zope.interface import implementer

#: Most events of one poll; the next poll comes when they have been served.
MOST_POLLED: Final = 64

_HANG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@implementer(IReactorFDSet)
class LowPrioritySet:
    """The set: the `reactor` of its transports, and a reader of the real reactor."""

    def __init__(self, reactor: Any) -> None:
        """`reactor` is a `RelayReactor`."""
        self.seconds = reactor.seconds
        self.callLater = reactor.callLater
        self._reactor = reactor
        self._set = select.epoll()
        self._members: dict[int, Any] = {}  # by descriptor
        self._interests: dict[int, int] = {}  # epoll events by descriptor, never 0
        self._ready: list[
            tuple[Any, int, int]
        ] = []  # what was polled and is not served yet, the first at the end

    def promote(self, transport: Any) -> Any:
        """Move the socket of a peer that was admitted to the reactor's own set. Returns that reactor."""
        reactor, interests = self._reactor, self._interests.get(transport.fileno(), 0)
        self._remove(transport, select.EPOLLIN | select.EPOLLOUT)
        if interests & select.EPOLLIN:
            reactor.addReader(transport)
        if interests & select.EPOLLOUT:
            reactor.addWriter(transport)
        return reactor

    def watch_hang_up(self, transport: Any) -> None:
        """Call `transport.hung_up()` when its peer sends FIN or RST, although it is not read."""
        self._add(transport, select.EPOLLRDHUP)

    def unwatch_hang_up(self, transport: Any) -> None:
        """Stop watching."""
        self._remove(transport, select.EPOLLRDHUP)

    # -- IReactorFDSet -----------------------------------------------------------------------------------------

    def addReader(self, reader: Any) -> None:
        self._add(reader, select.EPOLLIN)

    def addWriter(self, writer: Any) -> None:
        self._add(writer, select.EPOLLOUT)

    def removeReader(self, reader: Any) -> None:
        self._remove(reader, select.EPOLLIN)

    def removeWriter(self, writer: Any) -> None:
        self._remove(writer, select.EPOLLOUT)

    def removeAll(self) -> list[Any]:
        found = list({*self.getReaders(), *self.getWriters()})
        for member in tuple(self._members.values()):
            self._remove(member, -1)
        return found

    def getReaders(self) -> list[Any]:
        return self._interested(select.EPOLLIN)

    def getWriters(self) -> list[Any]:
        return self._interested(select.EPOLLOUT)

    def _interested(self, event: int) -> list[Any]:
        return [member for at, member in self._members.items() if self._interests[at] & event]

    def _add(self, member: Any, event: int) -> None:
        descriptor = member.fileno()
        before = self._interests.get(descriptor, 0)
        if before & event:
            return
        if before:
            self._set.modify(descriptor, before | event)
        else:
            self._set.register(descriptor, event)
            self._members[descriptor] = member
        self._interests[descriptor] = before | event

    def _remove(self, member: Any, events: int) -> None:
        descriptor = member.fileno()
        before = self._interests.get(descriptor, 0)
        left = before & ~events
        if left == before:
            return
        if left:
            self._set.modify(descriptor, left)
            self._interests[descriptor] = left
            return
        self._set.unregister(descriptor)
        del self._interests[descriptor], self._members[descriptor]

    # -- a reader of the reactor -------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._set.fileno()

    def logPrefix(self) -> str:
        return "low priority"

    def doRead(self) -> None:
        """Serve the members behind the frames of this turn."""
        self._reactor.turn.later(self._serve)

    def connectionLost(self, reason: object) -> None:
        """No-op: the reactor has stopped, and ends the members one by one."""

    def _serve(self) -> None:
        """Handle the next event."""
        ready, members = self._ready, self._members
        if not ready:
            ready += [(members[at], at, event) for at, event in reversed(self._set.poll(0, MOST_POLLED))]
        while ready:
            member, descriptor, event = ready.pop()
            if descriptor not in members or members[descriptor] is not member:  # closed or promoted meanwhile
                continue
            if ready:
                self._reactor.turn.later(self._serve)
            interests = self._interests[descriptor]  # may have changed
            if event & _HANG_UP and interests & select.EPOLLRDHUP:
                member.hung_up()
            else:
                self._reactor.serve([(descriptor, event & (interests | _HANG_UP))], members)
            return
