"""The engine of the parent process: it checks upgrades as far as that needs no I/O, and passes connections to workers.

The parent process listens and serves the admin endpoints; it forwards no frames. Each worker is a whole relay in a process
of its own, which gets its connections from the parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from attrs import evolve
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory

from viewport_relay.admission.limits import ConnectionCounts, UpgradeLimits
from viewport_relay.config import BY_ATTRIBUTE, Config, Reloaded, merged
from viewport_relay.observe.counters import Counters
from viewport_relay.service.engine import Engine, Parts
from viewport_relay.service.timers import with_deadline
from viewport_relay.wire.site import RelaySite
from viewport_relay.wire.tls import ServerContext
from viewport_relay.workers.crew import Crew, CrewState
from viewport_relay.workers.messages import Apply, ReloadTLS
from viewport_relay.workers.passing import PassingResource
from viewport_relay.workers.snapshots import serialised, set_to_sum
from viewport_relay.workers.supervision import Supervision
from viewport_relay.workers.tlsincoming import IncomingTLS

#: Seconds that workers may take to exit on top of RELAY_DRAIN_SECONDS.
_MARGIN: Final = 5.0

#: Seconds after which the parent accepts connections although a worker is still missing.
_FIRST_START: Final = 30.0

#: Settings of a worker that are off: the parent counts for all workers.
_COUNTED_BY_PARENT: Final = dict.fromkeys(
    ("RELAY_RATE_LIMIT_PER_IP", "RELAY_MAX_TOTAL_CONNECTIONS", "RELAY_MAX_CONNECTIONS_PER_IP"), "0"
)

#: Variables of the service manager and of socket activation, meant for the parent alone.
_NOT_INHERITED: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "RELAY_LISTEN_ENDPOINT", "RELAY_ADMIN_LISTEN", "RELAY_ADMIN_TOKEN", "RELAY_ADMIN_TOKEN_FILE",
    "RELAY_METRICS_TOKEN", "RELAY_METRICS_TOKEN_FILE", "RELAY_PROXY_PROTOCOL",
    "RELAY_SETTINGS_FILE",
)  # fmt: skip


def worker_environment(
    environ: Mapping[str, str], config: Config, overrides: Mapping[str, str], noise_key: str, index: int
) -> dict[str, str]:
    """The environment variables from which a worker loads the same settings.

    `overrides` are command line options, by attribute of `Config`. In redis and server mode every worker is a separate
    relay of the fleet: its RELAY_ID gets a suffix.
    """
    made = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
    made |= {BY_ATTRIBUTE[attribute].name: text for attribute, text in overrides.items()}
    suffix = "" if config.backplane_mode == "single" else f"-w{index}"
    made |= _COUNTED_BY_PARENT | {
        "RELAY_WORKERS": "1",
        "RELAY_MODE": config.mode,
        "RELAY_ID": config.relay_id[: 128 - len(suffix)] + suffix,
        "RELAY_NOISE_PRIVATE_KEY": noise_key,
    }
    if config.listen_port or config.sources["public_ws_base_url"] != "default":  # port 0 is in no URL
        made["RELAY_PUBLIC_WS_BASE_URL"] = config.public_ws_base_url
    made.pop("RELAY_NOISE_PRIVATE_KEY_FILE", None)
    return made


class Workers(Engine):
    """The engine of a parent process.

    `environ` and `overrides` are the environment and the command line from which workers load the same settings.
    """

    state: CrewState

    def __init__(self, parts: Parts, *, environ: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        MultiService.__init__(self)
        self._parts = parts
        reactor, config, log, counters = parts.reactor, parts.config, parts.log, parts.counters
        self._reactor = reactor
        self._environ = merged(environ)
        self._overrides = overrides
        self._ready: Deferred[None] = Deferred()
        self.shown = Counters()
        timeout = config.worker_timeout_ms / 1000
        self._supervision = Supervision(reactor, timeout, log, counters, self._worker_environment)
        self.crew = Crew(self._supervision, config.workers, self._polled, self._all_up)
        self.crew.setServiceParent(self)  # type: ignore[no-untyped-call]
        counts = ConnectionCounts(self._limits())
        self.upgrade = PassingResource(config, reactor, log, counters, address=parts.address, counts=counts)
        self.upgrade.workers = self.crew.workers
        self.state = CrewState(self.crew, lambda: self.upgrade.stopping)

    def _limits(self) -> UpgradeLimits:
        # The worker counts clients per target: all clients of a target are in one worker.
        return evolve(self._parts.upgrade_limits(), clients=0)

    def _worker_environment(self, index: int) -> dict[str, str]:
        key = self._parts.keys.current.private_text()
        return worker_environment(self._environ, self._parts.config, self._overrides, key, index)

    def _polled(self) -> None:
        snapshots = self.state.snapshots()
        ours = serialised(self._parts.counters), serialised(self._supervision.retired)
        set_to_sum(self.shown, [*ours, *(snapshot.counters for snapshot in snapshots)])
        self._parts.log.take_reports([snapshot.log for snapshot in snapshots])

    def _all_up(self) -> None:
        if not self._ready.called:
            self._ready.callback(None)

    # -- Engine --------------------------------------------------------------------------------------------

    def over_tls(self, site: RelaySite, context: ServerContext) -> IProtocolFactory:
        """The factory of TLS connections: the workers end TLS, with a context of the same files."""
        return IncomingTLS(site, self.crew.end_tls, self._reactor)

    def tls_reloaded(self) -> None:
        """Let the workers read certificate and key too."""
        self.crew.send(ReloadTLS())

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call `call` when all workers are up, or after the limit: peers of a missing worker wait for it."""
        self._ready.addTimeout(_FIRST_START, self._reactor, lambda *_: None)
        self._ready.addCallback(lambda _: call())

    def drain(self) -> Deferred[None]:
        """Drain every worker; a worker that does not exit in time is killed."""
        self._all_up()  # `when_ready` waits no longer
        limit = self._parts.config.drain_seconds + _MARGIN
        return with_deadline(self._reactor, limit, self.crew.stop(), self.crew.kill)

    def cut(self) -> None:
        """Order every worker to drop its remaining connections."""
        self.crew.cut()

    def apply(self, reloaded: Reloaded) -> None:
        """Apply reloaded settings here and in the workers."""
        self.upgrade.apply(self._parts.config, self._limits())
        self._environ |= reloaded.texts  # for workers that are started later
        self.crew.send(Apply({**reloaded.texts, **_COUNTED_BY_PARENT}))
