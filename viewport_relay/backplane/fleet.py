"""The backplane of one relay among several: presence and bus over one carrier, put together.

This module decides nothing: `presence` announces daemons, `lookups` finds them, `outbound` and `inbound` carry frames, `signing`
and `batch` sign and verify them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from viewport_relay import __version__
from viewport_relay.admission.http import HttpClient
from viewport_relay.backplane.batch import BatchVerifier, ParcelSigner
from viewport_relay.backplane.inbound import Inbound
from viewport_relay.backplane.instance import Instances, new_instance
from viewport_relay.backplane.interface import Carrier, Parcel, Publisher, Receiver
from viewport_relay.backplane.lookups import Lookups
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.outbound import Outbound
from viewport_relay.backplane.platform import PlatformCarrier
from viewport_relay.backplane.presence import Presence
from viewport_relay.backplane.redirect import RedirectRule
from viewport_relay.backplane.redis import RedisCarrier
from viewport_relay.backplane.replay import Freshness
from viewport_relay.backplane.signing import FrameVerifier
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink

#: A file of RELAY_STATE_DIR: unlike in Redis, an attacker on the bus cannot delete it.
_STARTED: Final = "bus-started"
#: Seconds that a stop waits for withdrawals and queued frames.
STOP_LIMIT: Final = 2.0


class Fleet:
    """Presence and bus of one relay.

    `now` gives seconds since the epoch; the reactor's clock measures everything else. `when_quiet` calls back when
    no socket has more to read, or soon. Raises ConfigError for a Redis URL that cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        config: Config,
        log: EventSink,
        counters: Counters,
        http: HttpClient,
        now: Callable[[], float],
        when_quiet: Callable[[Callable[[], None]], object],
    ) -> None:
        self._reactor = reactor
        self._mode = config.backplane_mode
        self._state_dir = config.state_dir
        self.redirects = config.client_redirect_enabled
        self._receiver: Receiver | None = None
        self._beginning: Deferred[None] | None = None
        self._services = MultiService()
        self.outage = Outage(reactor, log, counters, lambda: self._presence.tell_again())
        instance = new_instance()
        self._carrier: Carrier
        self._instances: Instances | None = None
        if config.backplane_mode == "redis":
            self._carrier = carrier = RedisCarrier(reactor, config, self.outage, counters, now)
            about = {"version": __version__, "url": config.public_ws_base_url}
            interval = config.presence_sync_interval_ms / 1000
            self._instances = Instances(reactor, carrier, config.relay_id, instance, interval, log, about)
            self._instances.setServiceParent(self._services)  # type: ignore[no-untyped-call]
        else:
            self._carrier = PlatformCarrier(reactor, config, http, self.outage)
        self._presence = Presence(
            reactor,
            self._carrier,
            self.outage,
            log,
            now,
            relay_id=config.relay_id,
            ws_base_url=config.public_ws_base_url,
            interval=config.presence_sync_interval_ms / 1000 if config.presence_sync_enabled else 0.0,
        )
        self._lookups = Lookups(
            reactor,
            self._carrier,
            self.outage,
            log,
            is_own=config.is_own,
            # Without redirects no client connects to the address: any will do.
            acceptable=RedirectRule.from_config(config).allows if self.redirects else _any_url,
        )
        self._freshness = Freshness(reactor, now, config.bus_max_skew_ms / 1000)
        self._outbound: Outbound | None = None
        self._inbound: Inbound | None = None
        if config.bus_enabled and config.bus_hmac_key is not None:
            key, relay_id, largest = config.bus_hmac_key, config.relay_id, config.frame_max_bytes
            reads_batches = _none if self._instances is None else self._instances.reads_batches
            self._outbound = Outbound(
                reactor,
                when_quiet,
                self._carrier,
                self.outage,
                ParcelSigner(key, relay_id, now, reads_batches),
                log,
                counters,
                self._lost,
                most_bytes=config.max_pending_bytes,
                most_frames=config.redis_queue_max,
            )
            self._inbound = Inbound(
                reactor,
                self._carrier,
                FrameVerifier(key, relay_id, self._freshness, largest),
                BatchVerifier(key, relay_id, instance, self._freshness, largest),
                log,
                counters,
            )

        # The methods of `interface.Backplane` that the parts implement.
        self.seat_changed = self._presence.changed
        self.known = self._lookups.known
        self.resolve = self._lookups.resolve
        self.peers_changed = self._carrier.peers_changed

    # -- the rest of Backplane -----------------------------------------------------------------------------------

    def publish(self, parcel: Parcel, publisher: Publisher | None = None) -> None:
        if self._outbound is None:
            self._lost((parcel,))
        else:
            self._outbound.publish(parcel, publisher)

    def _lost(self, parcels: Sequence[Parcel]) -> None:
        assert self._receiver is not None  # else there was no peer to send anything
        self._receiver.lost(parcels)

    def describe(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {"mode": self._mode, "up": self.outage.is_up}
        if self.outage.is_down:
            failed = self.outage.failed
            told["reason"], told["why"] = failed.reason.code, failed.why
        if self._outbound is not None:
            told["queuedBytes"] = self._outbound.queued
        if self._instances is not None:
            told["relays"] = self._instances.described()
        return told

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._carrier.start()
        self._presence.start(receiver.moved)
        self._beginning = Deferred.fromCoroutine(self._begin(receiver)).addErrback(_given_up)

    async def _begin(self, receiver: Receiver) -> None:
        """Read the bus as soon as it is known whether there was a process of this relay before."""
        restarted = _started_before(self._state_dir)
        if self._instances is not None:
            self._freshness.restarted = await self._instances.begin() or restarted
        self._services.startService()
        if self._inbound is not None:
            self._inbound.start(receiver.arrived)

    def stop(self) -> Deferred[None]:
        finishing = Deferred.fromCoroutine(self._finish())
        finishing.addTimeout(STOP_LIMIT, self._reactor, lambda result, limit: None)
        finishing.addErrback(_given_up)
        return finishing.addCallback(self._end)

    async def _finish(self) -> None:
        if self._beginning is not None:
            self._beginning.cancel()
        if self._services.running:  # not before the carrier has answered once
            stopping: Deferred[Any] = self._services.stopService()
            await stopping
        if self._instances is not None:
            await self._instances.retire()
        if self._inbound is not None:
            self._inbound.stop()
        await self._presence.settle()
        if self._outbound is not None:
            await self._outbound.flush()

    def _end(self, _: object) -> Deferred[None]:
        self._presence.stop()
        self._lookups.stop()
        if self._outbound is not None:
            self._outbound.stop()
        return Deferred.fromCoroutine(self._carrier.stop())


def _any_url(url: str) -> bool:
    return True


def _none(relay_id: str) -> None:
    """No other relay reads batches."""


def _started_before(state_dir: str | None) -> bool:
    """Whether a relay with this state folder has read the bus before; from now on one has."""
    if state_dir is None:
        return False
    try:
        (Path(state_dir) / _STARTED).touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        return False  # the folder cannot be written: `doctor` says so
    return False


def _given_up(failure: Failure) -> None:
    failure.trap(CancelledError)
