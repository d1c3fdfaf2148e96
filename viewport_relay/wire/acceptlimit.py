"""Refuses TCP connections of addresses that are over their budget, before TLS and before any protocol is made.

    listener -> LimitedFactory -> PROXY header | TLS | HTTP

A TLS handshake, or a request that is answered 429, costs twenty times as much as a connection that is closed at once. A
refused peer gets a FIN or an RST.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IReactorTime
from zope.interface import implementer

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import WindowCounter
from viewport_relay.config import BY_ATTRIBUTE, Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason

#: Answers 429 to plain HTTP that an address gets within its minute before new connections of it are refused.
TOLERATED: Final = 20


class AcceptLimit:
    """Tells which addresses may open a connection now; one log entry for each address and minute.

    Two things end that for the rest of the address's minute: more connections than upgrade attempts and plain HTTP requests
    are allowed together, since each of these may need a connection; and plain HTTP that goes on after `TOLERATED` answers
    429. Addresses that `exempt` names (trusted proxies) have no limit.
    """

    def __init__(
        self,
        clock: IReactorTime,
        config: Config,
        log: EventSink,
        counters: Counters,
        *,
        http_refusals: Callable[[str], int],
        exempt: Callable[[str], bool],
    ) -> None:
        """`http_refusals` tells how often plain HTTP of an address, as limits count it, was answered 429 in its minute."""
        self._clock = clock
        self._log = log
        self._counters = counters
        self._http_refusals = http_refusals
        self._exempt = exempt
        self._connections = WindowCounter(0)
        self._told = WindowCounter(1)
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take up reloaded limits. Where one of the two is off, there is no limit on connections either."""
        upgrades, requests = config.rate_limit_per_ip, config.http_rate_per_ip
        settings = (("rate_limit_per_ip", upgrades), ("http_rate_per_ip", requests))
        self._allowed = " and ".join(BY_ATTRIBUTE[name].in_words(limit) for name, limit in settings)
        self._connections.limit = upgrades + requests if upgrades and requests else 0

    def refuses(self, address: str) -> bool:
        """Count a new connection of this address. True: it is to be closed."""
        if self._exempt(address):
            return False
        now, counted = self._clock.seconds(), counted_as(address)
        refusals = self._http_refusals(counted)
        if refusals < TOLERATED and not self._connections.hit(counted, now):
            return False
        self._counters.connections_refused += 1
        if not self._told.hit(counted, now):
            if refusals < TOLERATED:
                detail = f"over {self._connections.limit} connections within a minute, what {self._allowed} allow together"
            else:
                detail = f"requests went on after {refusals} answers 429 HTTP_RATE_LIMIT_EXCEEDED"
            self._log.event(
                "connection_refused", reason=Reason.CONNECTION_RATE_LIMIT_EXCEEDED, ip=address, detail=detail
            )
        return True


@implementer(IProtocolFactory)
class LimitedFactory:
    """The factory of a listener: asks an `AcceptLimit` first, then another factory."""

    noisy = False

    def __init__(self, behind: Any, limit: AcceptLimit) -> None:
        """`behind` is the IProtocolFactory of accepted connections."""
        self._behind = behind
        self._limit = limit

    def buildProtocol(self, address: IAddress | None) -> IProtocol | None:
        """None for a refused connection, which the listener then closes. A Unix-domain socket has no address to refuse."""
        host = getattr(address, "host", None)
        if host is not None and self._limit.refuses(host):
            return None
        made: IProtocol | None = self._behind.buildProtocol(address)
        return made

    def doStart(self) -> None:
        self._behind.doStart()

    def doStop(self) -> None:
        self._behind.doStop()
