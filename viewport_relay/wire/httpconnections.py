"""The table of open HTTP connections, bounded in total and per address.

Upgraded connections are not in it. When a bound is passed, the connection that has waited longest without a request
being answered is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import total_limit
from viewport_relay.config import BY_ATTRIBUTE
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason


class Droppable(Protocol):
    """An HTTP connection."""

    def drop(self) -> None:
        """Abort the connection."""

    def loseConnection(self) -> None:
        """Close the connection when its answers are sent."""


class _Host:
    """The connections of one address."""

    __slots__ = ("number", "waiting")

    def __init__(self) -> None:
        self.number = 0
        self.waiting: dict[Droppable, None] = {}


class HttpConnections:
    """The HTTP connections of one listener."""

    def __init__(
        self,
        most: Callable[[], int],
        log: EventSink,
        most_per_address: Callable[[], int] = lambda: 0,
        exempt: Callable[[str], bool] = lambda host: False,
    ) -> None:
        """`most` and `most_per_address` are asked at each new connection. `exempt` addresses have no limit of their own.

        `most_per_address` gives twice RELAY_MAX_CONNECTIONS_PER_IP, 0: no limit.
        """
        self._most = most
        self._most_per_address = most_per_address
        self._exempt = exempt
        self._log = log
        self._host: dict[Droppable, str] = {}  # connection -> address as it is counted
        self._hosts: dict[str, _Host] = {}
        # Connections that can be dropped, in the order in which they began to wait.
        self._waiting: dict[Droppable, None] = {}
        self._owing: set[Droppable] = set()  # without an answer to their request, which may be yet to come
        self._closed: Deferred[None] | None = None  # the listener stops

    def __len__(self) -> int:
        return len(self._host)

    def enter(self, channel: Droppable, address: str) -> None:
        """Add a new connection; where a bound is passed, drop the one that has waited longest."""
        name = counted_as(address)
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
        host.number += 1
        self._host[channel] = name
        self.waits(channel)
        self._owing.add(channel)
        most, of_address, number = self._most(), self._most_per_address(), len(self._host)
        if 0 < of_address < host.number and not self._exempt(address):
            setting = BY_ATTRIBUTE["max_connections_per_ip"].in_words(of_address // 2)
            detail = f"{host.number} connections without an upgrade, more than twice {setting}"
            self._drop(next(iter(host.waiting)), Reason.TOO_MANY_CONNECTIONS_PER_IP, detail)
        elif number > most:
            detail = f"{number} connections without an upgrade, {total_limit(most)}"
            self._drop(next(iter(self._waiting)), Reason.TOO_MANY_CONNECTIONS, detail)

    def busy(self, channel: Droppable) -> None:
        """A request is being answered: the connection is not dropped."""
        self._owing.add(channel)
        if self._waiting.pop(channel, self) is None:
            del self._hosts[self._host[channel]].waiting[channel]

    def waits(self, channel: Droppable) -> None:
        """The connection waits, for a request or for its own end: it may be dropped."""
        name = self._host.get(channel)
        if name is not None and channel not in self._waiting:
            self._waiting[channel] = self._hosts[name].waiting[channel] = None

    def settled(self, channel: Droppable) -> None:
        """Every request of the connection is answered, or its answer has no end."""
        self._owing.discard(channel)
        if self._closed is not None:
            channel.loseConnection()

    def leave(self, channel: Droppable) -> None:
        """The connection is lost, or is not HTTP any more."""
        self.busy(channel)
        self._owing.discard(channel)
        name = self._host.pop(channel, None)
        if name is not None:
            host = self._hosts[name]
            host.number -= 1
            if not host.number:
                del self._hosts[name]
            self._tell_closed()

    def unreadable(self, address: str, message: str) -> None:
        """Log a connection whose request could not be read."""
        self._log.event("http_unreadable", message=message, ip=address)

    def refused(self, address: str, message: str) -> None:
        """Log a connection that the relay has no room for."""
        self._log.event("http_dropped", reason=Reason.TOO_MANY_CONNECTIONS, message=message, ip=address)

    def close(self) -> Deferred[None]:
        """Close each connection as soon as its request is answered; fires when none is left. For the listener's stop."""
        self._closed = Deferred()
        for channel in self._host.keys() - self._owing:
            channel.loseConnection()
        self._tell_closed()
        return self._closed

    def drop(self) -> None:
        """Abort every connection."""
        for channel in tuple(self._host):
            channel.drop()

    def _tell_closed(self) -> None:
        if self._closed is not None and not self._closed.called and not self._host:
            self._closed.callback(None)

    def _drop(self, channel: Droppable, reason: Reason, detail: str) -> None:
        name = self._host[channel]
        self.leave(channel)
        self._log.event("http_dropped", reason=reason, ip=name, detail=detail)
        channel.drop()
