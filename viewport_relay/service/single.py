"""The engine of a process with a single relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocolFactory
from twisted.web.resource import Resource

from viewport_relay.admin.site import AdminResource
from viewport_relay.admission.limits import ConnectionCounts, WindowCounter
from viewport_relay.config import Config, Reloaded
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.relay import Relay, upgrade_limits
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.site import RelaySite
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlstransport import TLSFactory
from viewport_relay.wire.turn import turn_of


class SingleRelay:
    """The engine of a process with one relay (`process.Engine`)."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        log: EventLog,
        counters: Counters,
        keys: RelayKeys,
        address: ClientAddress,
        open_files: int,
    ) -> None:
        """The arguments are those of `process.MakeEngine`. Raises ConfigError."""
        self._reactor = reactor
        self._open_files = open_files
        limits = upgrade_limits(config, open_files)
        counts = ConnectionCounts(limits["total"], limits["per_ip"], limits["clients"])
        attempts = WindowCounter(limits["attempts"])
        relay = self.service = Relay(
            reactor, config, log, counters, keys=keys, address=address, counts=counts, attempts=attempts
        )
        self.upgrade = relay.upgrade
        self.state = relay.state
        self.shown = counters
        self.status = relay.status
        self.connected = relay.connected
        self.drain = relay.drain
        self.cut = relay.cut
        self.notes: list[str] = []
        if turn_of(reactor).disconnect is None:  # no `RelayReactor`, which the fast path needs
            self.notes.append(
                f"the reactor is {type(reactor).__name__}: frames take a slower path than with the relay's own; "
                "leave out twistd's --reactor"
            )

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call `call` at once."""
        call()

    def pages(self, resource: AdminResource) -> Resource:
        """The admin resource without a wrapper."""
        return resource

    def over_tls(self, site: RelaySite, context: ServerContext) -> IProtocolFactory:
        """TLS ends in this process."""
        return TLSFactory(context, site, self._reactor, site.queue)

    def tls_reloaded(self) -> None:
        """No-op: new connections get the new context."""

    def apply(self, reloaded: Reloaded) -> None:
        """Apply reloaded limits and origins."""
        self.service.apply(reloaded.config, upgrade_limits(reloaded.config, self._open_files))
