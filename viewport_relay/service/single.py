"""The engine of a process with a single relay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.web.resource import Resource

from viewport_relay.admin.site import AdminResource
from viewport_relay.admission.limits import ConnectionCounts, WindowCounter
from viewport_relay.config import Config, Reloaded, Reread
from viewport_relay.notify import Notifier
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.process import Process, trusted_proxies
from viewport_relay.service.relay import Relay, relay_keys, upgrade_limits
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.site import RelaySite
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlstransport import TLSFactory


class SingleRelay:
    """The engine of a process with one relay (`process.Engine`)."""

    def __init__(self, reactor: Any, relay: Relay, counters: Counters, open_files: int) -> None:
        self._reactor = reactor
        self.service = relay
        self.upgrade = relay.upgrade
        self.state = relay.state
        self.shown = counters
        self.status = relay.status
        self.connected = relay.connected
        self.cut = relay.cut
        self._open_files = open_files

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call `call` at once."""
        call()

    def pages(self, resource: AdminResource) -> Resource:
        """The admin resource without a wrapper."""
        return resource

    def over_tls(self, site: RelaySite, context: ServerContext) -> IProtocolFactory:
        """TLS ends in this process."""
        return TLSFactory(context, False, site, self._reactor, site.queue)

    def tls_reloaded(self) -> None:
        """No-op: new connections get the new context."""

    def drain(self) -> Deferred[None]:
        """Refuse upgrades and close every peer (1001)."""
        return self.service.drain()

    def apply(self, reloaded: Reloaded) -> None:
        """Apply reloaded limits and origins."""
        self.service.apply(reloaded.config, upgrade_limits(reloaded.config, self._open_files))


def single_process(
    reactor: Any,
    config: Config,
    log: EventLog,
    notifier: Notifier | None = None,
    open_files: int = 0,
    reread: Reread = Reloaded,
    now: Callable[[], float] = time.time,
) -> Process:
    """The service of a process with one relay. Raises ConfigError."""
    counters, keys = Counters(), relay_keys(config)
    address, limits = ClientAddress(trusted_proxies(config)), upgrade_limits(config, open_files)
    relay = Relay(
        reactor,
        config,
        log,
        counters,
        now,
        keys=keys,
        address=address,
        counts=ConnectionCounts(limits["total"], limits["per_ip"], limits["clients"]),
        attempts=WindowCounter(limits["attempts"]),
    )
    process = Process(
        reactor,
        config,
        log,
        counters,
        now,
        SingleRelay(reactor, relay, counters, open_files),
        keys=keys,
        address=address,
        notifier=notifier,
        open_files=open_files,
        reread=reread,
    )
    if not relay.has_own_reactor:
        process.notes.append(
            f"the reactor is {type(reactor).__name__}: frames take a slower path than with the relay's own; "
            "leave out twistd's --reactor"
        )
    return process
