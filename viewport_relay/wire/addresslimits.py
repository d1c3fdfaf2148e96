"""Limits per address and minute beside those of upgrade attempts: requests of plain HTTP, and TCP connections.

    listener -> LimitedFactory -> PROXY header | TLS | HTTP

A connection over its limit is closed before TLS and before any protocol is made: its peer gets a FIN or an RST. A TLS
handshake, or a request that is answered 429, costs twenty times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class AddressLimits:
    """Counts requests and connections of each address; one log entry of each kind for an address and minute.

    Two things end connections for the rest of the address's minute: more of them than upgrade attempts and plain HTTP requests
    are allowed together, since each of these may need a connection; and plain HTTP that goes on after `TOLERATED` answers
    429. Addresses that `exempt` names (trusted proxies) may open any number of connections.
    """

    def __init__(
        self,
        clock: IReactorTime,
        config: Config,
        log: EventSink,
        counters: Counters,
        *,
        exempt: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self._log = log
        self._counters = counters
        self._exempt = exempt
        self._requests = WindowCounter(0)
        self._connections = WindowCounter(0)
        self._told = WindowCounter(1)  # of connections
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Apply reloaded limits. Where one of the two is off, there is no limit on connections either."""
        upgrades, requests = config.rate_limit_per_ip, config.http_rate_per_ip
        self._of_requests = BY_ATTRIBUTE["http_rate_per_ip"].in_words(requests)
        self._allowed = f"{BY_ATTRIBUTE['rate_limit_per_ip'].in_words(upgrades)} and {self._of_requests}"
        self._requests.limit = requests
        self._connections.limit = upgrades + requests if upgrades and requests else 0

    def charge_request(self, address: str, details: Mapping[str, Any]) -> int:
        """Count a request of plain HTTP against RELAY_HTTP_RATE_PER_IP; `details` are for the log entry.

        Returns 0, or the seconds to wait when the address is over its budget.
        """
        now, counted = self._clock.seconds(), counted_as(address)
        wait = self._requests.hit(counted, now)
        if wait:
            self._counters.http_rate_limited += 1
            if self._requests.refused(counted, now) == 1:
                number, seconds = self._requests.tried(counted, now)
                detail = f"{number} requests within {seconds} s, {self._of_requests} a minute"
                self._log.event(
                    "http_refused",
                    reason=Reason.HTTP_RATE_LIMIT_EXCEEDED,
                    ip=address,
                    detail=detail,
                    **details,
                )
        return wait

    def refuses(self, address: str) -> bool:
        """Count a new connection of this address. True: it is to be closed."""
        if self._exempt(address):
            return False
        now, counted = self._clock.seconds(), counted_as(address)
        refusals = self._requests.refused(counted, now)
        if refusals < TOLERATED and not self._connections.hit(counted, now):
            return False
        self._counters.connections_refused += 1
        if not self._told.hit(counted, now):
            if refusals < TOLERATED:
                detail = f"over {self._connections.limit} connections within a minute, allowed by {self._allowed} together"
            else:
                detail = f"requests went on after {refusals} answers 429 HTTP_RATE_LIMIT_EXCEEDED"
            self._log.event(
                "connection_refused", reason=Reason.CONNECTION_RATE_LIMIT_EXCEEDED, ip=address, detail=detail
            )
        return True


@implementer(IProtocolFactory)
class LimitedFactory:
    """The factory of a listener: asks the `AddressLimits` first, then another factory."""

    noisy = False

    def __init__(self, behind: Any, limits: AddressLimits) -> None:
        """`behind` is the IProtocolFactory of accepted connections."""
        self._behind = behind
        self._limits = limits

    def buildProtocol(self, address: IAddress | None) -> IProtocol | None:
        """None for a refused connection, which the listener then closes. A Unix-domain socket has no address to refuse."""
        host = getattr(address, "host", None)
        if host is not None and self._limits.refuses(host):
            return None
        made: IProtocol | None = self._behind.buildProtocol(address)
        return made

    def doStart(self) -> None:
        self._behind.doStart()

    def doStop(self) -> None:
        self._behind.doStop()
