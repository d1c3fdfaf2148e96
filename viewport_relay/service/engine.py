"""The engine of a process, the part that forwards frames: its interface, and the engine with a single relay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.web.resource import Resource

from viewport_relay.admin.site import AdminResource
from viewport_relay.admin.state import StateSource
from viewport_relay.admission.limits import ConnectionCounts, WindowCounter
from viewport_relay.config import Config, Reloaded
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.relay import Relay, upgrade_limits
from viewport_relay.wire.attempts import UpgradeAttempts
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.site import RelaySite
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlstransport import TLSFactory
from viewport_relay.wire.turn import turn_of


class Engine(MultiService):
    """The service that forwards the frames of a process: one relay, or the parent of several workers.

    `upgrade` is the `/ws` resource, `shown` the counters that the admin pages show, `notes` warnings for the log at the start
    that do not come from settings.
    """

    upgrade: UpgradeAttempts
    state: StateSource
    shown: Counters
    notes: Sequence[str] = ()

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call `call` once connections can be served: here at once."""
        call()

    def status(self) -> str:
        """Connected peers in one line, for the service manager (sd_notify STATUS=)."""
        joined = self.state.connections()
        return ", ".join(f"{number} {role}s" for role, number in joined.items()) or "no peers"

    def connected(self) -> int:
        """The number of upgraded connections whose descriptors this process holds; workers hold theirs themselves."""
        return 0

    def pages(self, resource: AdminResource) -> Resource:
        """The admin resource, wrapped if the engine needs that."""
        return resource

    def over_tls(self, site: RelaySite, context: ServerContext) -> IProtocolFactory:
        """The factory of peers' TLS connections, in front of `site`."""
        raise NotImplementedError

    def tls_reloaded(self) -> None:
        """Certificate and key were read again. No-op: new connections get the new context."""

    def drain(self) -> Deferred[None]:
        """Refuse upgrades and close every peer (1001); fires when all have gone, or after the drain's limit."""
        raise NotImplementedError

    def cut(self) -> None:
        """Abort the remaining connections."""
        raise NotImplementedError

    def apply(self, reloaded: Reloaded) -> None:
        """Apply reloaded settings. Every connection stays."""
        raise NotImplementedError


#: Makes an engine from reactor, settings, log, counters, the link's keys, client addresses and the limit on descriptors.
MakeEngine = Callable[[Any, Config, EventLog, Counters, RelayKeys, ClientAddress, int], Engine]


class SingleRelay(Engine):
    """The engine of a process with one relay."""

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
        """The arguments are those of `MakeEngine`. Raises ConfigError."""
        MultiService.__init__(self)
        self._reactor = reactor
        self._open_files = open_files
        limits = upgrade_limits(config, open_files)
        counts = ConnectionCounts(limits["total"], limits["per_ip"], limits["clients"])
        attempts = WindowCounter(limits["attempts"])
        self._relay = Relay(
            reactor, config, log, counters, keys=keys, address=address, counts=counts, attempts=attempts
        )
        self._relay.setServiceParent(self)  # type: ignore[no-untyped-call]
        self.upgrade = self._relay.upgrade
        self.state = self._relay.state
        self.shown = counters
        if turn_of(reactor).disconnect is None:  # no `RelayReactor`, which the fast path needs
            self.notes = [
                f"the reactor is {type(reactor).__name__}: frames take a slower path than with the relay's own; "
                "leave out twistd's --reactor"
            ]

    def connected(self) -> int:
        return len(self._relay.factory.connections)

    def drain(self) -> Deferred[None]:
        return self._relay.drain()

    def cut(self) -> None:
        self._relay.cut()

    def over_tls(self, site: RelaySite, context: ServerContext) -> IProtocolFactory:
        return TLSFactory(context, site, self._reactor, site.queue)

    def apply(self, reloaded: Reloaded) -> None:
        self._relay.apply(reloaded.config, upgrade_limits(reloaded.config, self._open_files))
