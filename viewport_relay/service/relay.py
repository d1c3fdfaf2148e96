"""One relay as a Twisted service: admission, sessions and routing.

A relay has no listeners and no admin endpoints: those are in `listeners` and `process`. In a worker process the parent
passes connections to the relay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IReactorTime

from viewport_relay.admission.gate import Gate
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.limits import ConnectionCounts
from viewport_relay.backplane.fleet import Fleet
from viewport_relay.backplane.interface import Backplane
from viewport_relay.backplane.single import Single
from viewport_relay.config import Reloaded
from viewport_relay.observe.checks import Condition
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import Selection, TargetView
from viewport_relay.service.engine import Engine, Parts
from viewport_relay.service.timers import every
from viewport_relay.sessions.build import Relaying, build, frame_rates
from viewport_relay.sessions.join import target_of
from viewport_relay.wire.connection import ConnectionFactory
from viewport_relay.wire.drain import Drain
from viewport_relay.wire.heartbeat import Heartbeat
from viewport_relay.wire.site import RelaySite
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlstransport import TLSFactory
from viewport_relay.wire.turn import turn_of
from viewport_relay.wire.upgrade import UpgradeResource


@frozen(eq=False)
class RelayState:
    """State and commands of one running relay (`admin.state.StateSource`). `stopping` returns whether the relay drains."""

    _clock: IReactorTime
    _relaying: Relaying
    _gate: Gate
    _backplane: Backplane
    _stopping: Callable[[], bool]

    def targets(self) -> Sequence[TargetView]:
        return self._relaying.registry.views(time.time() - self._clock.seconds())

    def connections(self) -> Mapping[str, int]:
        return {role.value: number for role, number in self._relaying.registry.joined.items()}

    def disconnect(self, selection: Selection) -> int:
        return self._relaying.sessions.disconnect(selection)

    def flush_caches(self) -> None:
        self._gate.flush()

    def condition(self) -> Condition:
        ready, why = self._gate.ready()
        backplane = self._backplane.describe()
        if self._stopping():
            ready, why = False, Reason.RELAY_SHUTTING_DOWN.code
        elif ready and not why and backplane.get("up") is False:
            # Peers of this relay still reach each other: ready, with a note.
            why = str(backplane.get("reason", Reason.BACKPLANE_UNREACHABLE.code))
        clock = self._gate.platform_clock
        age = None if clock.answered_at is None else max(0.0, self._clock.seconds() - clock.answered_at)
        return Condition(ready, why, self._gate.jwks_age_seconds, dict(backplane), clock.offset(), age)

    def refresh(self) -> None:
        """No-op: the views are of the moment."""

    def processes(self) -> Mapping[str, int]:
        return {"relay": os.getpid()}


class Relay(Engine):
    """Admission, sessions and routing of one process.

    `counts`: its connections (None: counted by the relay itself). Raises ConfigError when files that the settings name
    cannot be used.
    """

    state: RelayState

    def __init__(self, parts: Parts, counts: ConnectionCounts | None = None) -> None:
        MultiService.__init__(self)
        self._parts = parts
        reactor, config, log, counters = parts.reactor, parts.config, parts.log, parts.counters
        self._clock = reactor
        self.shown = counters
        client = HttpClient.from_config(reactor, config)
        gate = self._gate = Gate.from_config(reactor, config, log, counters, time.time, client)
        self._turn = turn_of(reactor)
        self._backplane = (
            Single()
            if config.backplane_mode == "single"
            else Fleet(reactor, config, log, counters, client, time.time, self._turn.when_quiet)
        )
        self._relaying = build(config, reactor, log, counters, client, parts.keys, self._backplane)
        self.factory = ConnectionFactory(
            reactor,
            self._turn,
            counters,
            frame_max_bytes=config.frame_max_bytes,
            max_pending=config.max_pending_bytes,
            fast_path=config.fast_path,
        )
        self.upgrade = UpgradeResource(
            config,
            reactor,
            log,
            counters,
            address=parts.address,
            gate=gate,
            factory=self.factory,
            opened=self._relaying.sessions.opened,
            counts=counts or ConnectionCounts(parts.upgrade_limits()),
        )
        connections = self.factory.connections
        self._heartbeat = Heartbeat(config, reactor, lambda: connections, counters)
        self._drain = Drain(reactor, connections, config.drain_seconds, target_of)
        self.state = RelayState(reactor, self._relaying, gate, self._backplane, lambda: self.upgrade.stopping)
        if self._turn.disconnect is None:  # no `RelayReactor`, which the fast path needs
            self.notes = [
                f"the reactor is {type(reactor).__name__}: frames take a slower path than with the relay's own; "
                "leave out twistd's --reactor"
            ]
        clean_up = config.cleanup_interval_ms / 1000
        every(self, reactor, clean_up, self._clean_up)
        every(self, reactor, clean_up, gate.clean_up)
        every(self, reactor, 1.0, self._close_expired)

    def startService(self) -> None:
        super().startService()
        self._gate.start()
        self._backplane.start(self._relaying.remote)
        self._heartbeat.start()

    def connected(self) -> int:
        return len(self.factory.connections)

    def over_tls(self, site: RelaySite, context: ServerContext) -> IProtocolFactory:
        return TLSFactory(context, site, self._clock, site.queue)

    def drain(self) -> Deferred[None]:
        self.upgrade.stopping = True
        return self._drain.start()

    def cut(self) -> None:
        self._drain.cut()

    async def end(self) -> None:
        """Stop what remains after `drain`."""
        await self._backplane.stop()
        self._heartbeat.stop()
        await self._gate.stop()
        await MultiService.stopService(self)

    def apply(self, reloaded: Reloaded) -> None:
        """Apply reloaded limits, origins and times. Every connection stays."""
        config = self._parts.config
        self._heartbeat.apply(config)
        self._drain.seconds = config.drain_seconds
        self.upgrade.apply(config, self._parts.upgrade_limits())
        self._relaying.router.rates = frame_rates(config)

    def _clean_up(self) -> None:
        """Drop empty targets, expired entries and unused buffers. Called periodically."""
        seconds = self._parts.config.empty_workspace_ttl_ms / 1000
        self._relaying.registry.clean_up(self._clock.seconds(), seconds)
        self._turn.arena.buffers.clear()

    def _close_expired(self) -> None:
        if self._parts.config.token_expiry == "close":
            self._relaying.sessions.close_expired(time.time() - self._parts.config.token_clock_skew_sec)
