"""Finding the Redis master through Sentinels: an endpoint that asks them at each connection.

A master that was demoted meanwhile is left when it refuses to write (see `redisline`), and then they are asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisline import RedisAddress, ask_once


@implementer(IStreamClientEndpoint)
class SentinelEndpoint:
    """`make` gives the endpoint of a host and port; `limit` is seconds for one Sentinel's answer."""

    def __init__(
        self,
        reactor: Any,
        sentinels: Sequence[tuple[str, int]],
        master: str,
        make: Callable[[str, int], IStreamClientEndpoint],
        limit: float,
    ) -> None:
        self._reactor = reactor
        self._sentinels = list(sentinels)
        self._master = master
        self._make = make
        self._limit = limit

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """A connection to the master. Fails with CarrierFailed when no Sentinel knows it."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        why = "no Sentinel is configured"
        for host, port in tuple(self._sentinels):
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master)
            nobody = RedisAddress(host, port, False, None, None, None)
            try:
                found = await ask_once(self._reactor, self._make(host, port), nobody, question, self._limit)
            except CarrierFailed as error:
                why = f"Sentinel {host}:{port}: {error.why}"
                continue
            if isinstance(found, list) and len(found) == 2 and all(isinstance(part, bytes) for part in found):
                # Whoever answers is asked first the next time.
                self._sentinels.remove((host, port))
                self._sentinels.insert(0, (host, port))
                return await self._make(found[0].decode(), int(found[1])).connect(factory)
            why = f"Sentinel {host}:{port} does not know {self._master}"
        raise CarrierFailed(why)
