"""Builds the routing and sessions of one relay from its settings."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.http import HttpClient
from viewport_relay.backplane.interface import Backplane
from viewport_relay.config import BY_ATTRIBUTE, Config
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Role
from viewport_relay.routing.rates import FrameRates
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.sessions.arrivals import Arrivals, BusFeeder
from viewport_relay.sessions.contest import Contests
from viewport_relay.sessions.executor import ExecutorRole
from viewport_relay.sessions.join import Sessions
from viewport_relay.sessions.link import Links
from viewport_relay.sessions.outcomes import Outcomes
from viewport_relay.sessions.remote import RemoteRelays
from viewport_relay.sessions.roles import ClientRole, DaemonRole
from viewport_relay.windows import WindowTable
from viewport_relay.wire.intake import Intakes
from viewport_relay.wire.turn import turn_of


@frozen
class Relaying:
    """The parts of routing and sessions that the service uses."""

    registry: Registry
    router: Router
    remote: RemoteRelays
    sessions: Sessions


#: Rates of frames, and the settings that give them.
_RATES: Final = {
    "key_exchange": "kex_rate",
    "pairing": "pairing_rate",
    "runtime": "runtime_rate",
    "workspace": "runtime_rate_workspace",
    "daemon": "daemon_rate",
}


def frame_rates(config: Config) -> FrameRates:
    """The limits of frames per minute."""
    limits: dict[str, Any] = {rate: getattr(config, attribute) for rate, attribute in _RATES.items()}
    words = {rate: BY_ATTRIBUTE[attribute].in_words(limits[rate]) for rate, attribute in _RATES.items()}
    return FrameRates(**limits, in_words=words)


def build(
    config: Config,
    clock: IReactorTime,
    log: EventSink,
    counters: Counters,
    client: HttpClient,
    keys: RelayKeys,
    backplane: Backplane,
) -> Relaying:
    """Build the routing and sessions of one relay. `clock` is the reactor, `client` the HTTP client for the platform."""
    registry = Registry(most_requests=config.request_track_max, most_sessions=config.session_owner_track_max)
    router, windows = Router(frame_rates(config)), WindowTable()
    outcomes = Outcomes(router, log, counters)
    feeder, turn = BusFeeder(), turn_of(clock)
    arrivals = Arrivals(clock, registry, router, windows, outcomes, config.max_pending_bytes, turn, feeder)
    remote = RemoteRelays(clock, backplane, registry, router, outcomes, arrivals.arrived, feeder)
    client_role = ClientRole(router, outcomes, remote, Intakes(clock), config.max_pending_bytes)
    executor_role = ExecutorRole(router, outcomes, client, config.server_url, config.frame_max_bytes)
    sessions = Sessions(
        clock,
        log,
        counters,
        registry,
        windows,
        Links(clock, log, counters, keys, config),
        Contests(clock, counters, config.pong_timeout_ms / 1000),
        remote,
        {
            Role.CLIENT: client_role.begin,
            Role.DAEMON: DaemonRole(router, outcomes, remote).begin,
            Role.WORKER: executor_role.begin,
        },
        config.max_pending_bytes,
    )
    return Relaying(registry, router, remote, sessions)
