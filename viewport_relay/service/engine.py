"""The engine of a process, the part that forwards frames: its parts and its interface."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory

from viewport_relay import descriptors
from viewport_relay.admin.state import StateSource
from viewport_relay.admission.addresses import TrustedProxies
from viewport_relay.admission.limits import UpgradeLimits
from viewport_relay.config import Config, ConfigError, Reloaded
from viewport_relay.noise.keys import NoiseKeyError, RelayKeys
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.timers import WaitingService
from viewport_relay.wire.attempts import UpgradeAttempts
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.site import RelaySite
from viewport_relay.wire.tls import ServerContext


@define(eq=False)
class Parts:
    """The parts that an engine is made from. The listeners of its process share them.

    `config` holds the settings in force: a reload replaces it. `counters` counts in this process, `keys` are the link's.
    `open_files` is the limit on descriptors (0: not limited).
    """

    reactor: Any
    config: Config
    log: EventLog
    counters: Counters
    keys: RelayKeys
    address: ClientAddress
    open_files: int

    @classmethod
    def make(cls, reactor: Any, config: Config, log: EventLog, open_files: int = 0) -> Parts:
        """Load the link's keys and make the rest. Raises ConfigError when a setting or the key file cannot be used."""
        try:
            keys = RelayKeys.load(config.noise_private_key, config.noise_previous_key, config.state_dir)
        except NoiseKeyError as error:
            raise ConfigError([str(error)]) from None
        address = ClientAddress(TrustedProxies.from_config(config))
        return cls(reactor, config, log, Counters(), keys, address, open_files)

    def upgrade_limits(self) -> UpgradeLimits:
        """The limits in force. `open_files` may lower RELAY_MAX_TOTAL_CONNECTIONS."""
        config = self.config
        total = config.max_total_connections
        if self.open_files:
            total = min(total or sys.maxsize, descriptors.for_connections(self.open_files))
        return UpgradeLimits(
            config.rate_limit_per_ip, total, config.max_connections_per_ip, config.max_clients_per_workspace
        )


class Engine(WaitingService):
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
        """Apply reloaded settings, which `Parts.config` has already. Every connection stays."""
        raise NotImplementedError


#: Makes the engine of a process. Raises ConfigError.
MakeEngine = Callable[[Parts], Engine]
