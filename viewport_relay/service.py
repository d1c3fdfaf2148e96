"""The relay as a Twisted service: builds everything from a `Config`, starts it, drains it.

It wires and times; rules live in the rooms below it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.web.server import Request

from viewport_relay import __version__, descriptors
from viewport_relay.admin.auth import WRONG_TOKENS_PER_MINUTE, AdminAuth
from viewport_relay.admin.facts import facts_reader
from viewport_relay.admin.settings import started
from viewport_relay.admin.site import build as build_door
from viewport_relay.admin.state import StateSource
from viewport_relay.admission.addresses import TrustedProxies, counted_as
from viewport_relay.admission.gate import Gate
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.limits import ConnectionCounts, WindowCounter
from viewport_relay.backplane.fleet import backplane_for
from viewport_relay.config import (
    EX_CONFIG,
    Config,
    ConfigError,
    Reloaded,
    Reread,
    bracketed,
    configured_secrets,
    is_loopback,
)
from viewport_relay.noise.keys import NoiseKeyError, RelayKeys
from viewport_relay.notify import Notifier
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.status import StatusLine
from viewport_relay.observe.twistedlog import StdlibHandler, TwistedObserver
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import TargetView
from viewport_relay.sessions.build import build, frame_rates
from viewport_relay.sessions.join import target_of
from viewport_relay.sessions.link import WELL_KNOWN_PATH, well_known
from viewport_relay.signals import Signals
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.connection import ConnectionFactory
from viewport_relay.wire.drain import Drain
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.heartbeat import Heartbeat
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.plainhttp import HttpBudget, PlainHttp
from viewport_relay.wire.proxyprotocol import ProxyFactory
from viewport_relay.wire.site import Pages, RelaySite, Root
from viewport_relay.wire.tls import CertificateWatch, ServerContext, TLSFactory
from viewport_relay.wire.turn import turn_of
from viewport_relay.wire.upgrade import UpgradeResource

_BACKLOG: Final = 1024

#: Seconds on top of the drain that the service manager is asked for.
_STOP_MARGIN: Final = 15


def most_connections(config: Config, open_files: int) -> int:
    """RELAY_MAX_TOTAL_CONNECTIONS, or fewer where the limit on open files says so."""
    if not open_files:
        return config.max_total_connections
    return min(config.max_total_connections or sys.maxsize, descriptors.for_connections(open_files))


def relay_keys(config: Config) -> RelayKeys:
    """The link's keys. Raises ConfigError when a setting or the key file cannot be used."""
    try:
        return RelayKeys.load(config.noise_private_key, config.noise_previous_key, config.state_dir)
    except NoiseKeyError as error:
        raise ConfigError([str(error)]) from None


def cannot_listen(error: BaseException) -> str:
    """Why an endpoint cannot be listened on, with its address."""
    if not isinstance(error, CannotListenError):
        return f"cannot listen: {error}"
    where = error.port if isinstance(error.port, str) else bracketed(error.interface or "0.0.0.0", error.port)
    why = getattr(error.socketError, "strerror", None) or error.socketError
    return f"cannot listen on {where}: {why}"


def _trusted(config: Config) -> TrustedProxies:
    return TrustedProxies(config.trusted_proxies.networks, config.trusted_proxies.unix)


class RelayState:
    """The relay as the operator's door sees it (`admin.state.StateSource`)."""

    def __init__(self, service: RelayService) -> None:
        self._service = service

    def targets(self) -> Sequence[TargetView]:
        service = self._service
        return service.relaying.registry.views(service.now() - service.reactor.seconds())

    def connections(self) -> Mapping[str, int]:
        return {role.value: number for role, number in self._service.relaying.registry.joined.items()}

    def disconnect(
        self,
        *,
        workspace_id: str | None,
        runtime_target_id: str | None,
        connection_id: str | None,
        token_id: str | None,
    ) -> int:
        return self._service.relaying.sessions.disconnect(
            workspace_id=workspace_id,
            runtime_target_id=runtime_target_id,
            connection_id=connection_id,
            token_id=token_id,
        )

    def flush_caches(self) -> None:
        self._service.gate.flush()

    def readiness(self) -> tuple[bool, str]:
        if self._service.upgrade.stopping:
            return False, Reason.RELAY_SHUTTING_DOWN.code
        ready, why = self._service.gate.ready()
        backplane = self._service.backplane.describe()
        if ready and backplane.get("up") is False:
            # Peers here go on, so it is no reason to send them away.
            return True, str(backplane.get("reason", Reason.BACKPLANE_UNREACHABLE.code))
        return ready, why

    def jwks_age(self) -> float | None:
        return self._service.gate.jwks_age_seconds

    def clock_offset(self) -> float | None:
        return self._service.gate.clock_offset

    def platform_age(self) -> float | None:
        answered = self._service.gate.platform_answered
        return None if answered is None else max(0.0, self._service.reactor.seconds() - answered)

    def processes(self) -> Mapping[str, int]:
        return {"relay": os.getpid()}

    def backplane(self) -> Mapping[str, Any]:
        return self._service.backplane.describe()


class RelayService(MultiService):
    """One relay. Give it a reactor, the settings and the log; set it on an application or start it as it is.

    `open_files` is the limit on descriptors (0: not looked at), `notifier` speaks to the service manager.
    """

    #: What answers `/ws`.
    _upgrade_kind: type[UpgradeResource] = UpgradeResource

    def __init__(
        self,
        reactor: Any,
        config: Config,
        log: EventLog,
        notifier: Notifier | None = None,
        open_files: int = 0,
        reread: Reread = Reloaded,
    ) -> None:
        MultiService.__init__(self)
        self._reread = reread
        self.reactor = reactor
        self.config = config
        self.log = log
        self.now = time.time
        self.counters = Counters()
        self.client = HttpClient.from_config(reactor, config)
        self.gate = Gate.from_config(reactor, config, log, self.counters, self.now, self.client)
        self.keys = relay_keys(config)
        self.backplane = backplane_for(reactor, config, log, self.counters, self.client, self.now)
        self.relaying = build(
            config, reactor, self.now, log, self.counters, self.client, self.keys, self.backplane
        )
        self.turn = turn_of(reactor)
        self.factory = ConnectionFactory(
            reactor,
            self.turn,
            self.counters,
            frame_max_bytes=config.frame_max_bytes,
            max_pending=config.max_pending_bytes,
            fast_path=config.fast_path,
        )
        self._open_files = open_files
        self.address = ClientAddress(_trusted(config))
        self.upgrade = self._make_upgrade()
        self.state: StateSource = RelayState(self)
        #: what the operator's door shows
        self.shown = self.counters
        self.heartbeat = Heartbeat(config, reactor, lambda: self.factory.connections, self.counters)
        self.port: int | None = None
        self._notifier = Notifier({}) if notifier is None else notifier
        self._tls = ServerContext.from_config(config)
        self._certificates = None if self._tls is None else CertificateWatch(self._tls, reactor, log)
        self._http: list[HttpConnections] = []
        self._http_budget = HttpBudget(reactor, config.http_rate_per_ip, log, self.counters)
        self._http_queue = FairQueue(reactor)
        wrong_tokens = WindowCounter(WRONG_TOKENS_PER_MINUTE)
        self.admin_auth = AdminAuth(
            config.admin_tokens if config.enable_admin_http else (),
            config.metrics_tokens if config.enable_admin_http else (),
            now=self.now,
            wrong_token=lambda address: wrong_tokens.hit(counted_as(address), reactor.seconds()),
        )
        self._ports: list[IListeningPort] = []
        self._timers: list[LoopingCall] = []
        self.drain = Drain(reactor, self.factory.connections, config.drain_seconds, target_of)
        #: not installed before the process is this relay's
        self.stdlib_log = StdlibHandler(log, from_thread=reactor.callFromThread)

    def _make_upgrade(self) -> UpgradeResource:
        config, limits = self.config, self._upgrade_limits()
        return self._upgrade_kind(
            config,
            self.reactor,
            self.log,
            self.counters,
            address=self.address,
            gate=self.gate,
            factory=self.factory,
            opened=self.relaying.sessions.opened,
            attempts=WindowCounter(limits["attempts"]),
            counts=ConnectionCounts(limits["total"], limits["per_ip"], limits["clients"]),
        )

    def _upgrade_limits(self) -> dict[str, int]:
        """What this process counts of upgrades and connections, as `UpgradeResource.apply` takes it; 0: not."""
        config = self.config
        return {
            "attempts": config.rate_limit_per_ip,
            "total": most_connections(config, self._open_files),
            "per_ip": config.max_connections_per_ip,
            "clients": config.max_clients_per_workspace,
        }

    def setServiceParent(self, parent: Any) -> None:
        """On an application, the process's log becomes ours: JSON lines, Twisted's and the libraries' included."""
        if isinstance(parent, Componentized):
            observer = TwistedObserver(self.log, from_thread=self.reactor.callFromThread)
            parent.setComponent(ILogObserver, observer)
            self.stdlib_log.install()
        MultiService.setServiceParent(self, parent)

    # -- start -------------------------------------------------------------------------------------------

    def startService(self) -> None:
        MultiService.startService(self)
        for warning in (*self.config.warnings, *self.keys.warnings, *self._descriptor_warnings()):
            self.log.event("config_warning", level="warn", message=warning)
        for note in self.config.notes:
            self.log.event("config_note", message=note)
        # Only who set up the link, or needs it, pins its key.
        asked_for = self.config.sources.get("noise_link", "default") != "default"
        if self.turn.disconnect is None:
            self.log.event(
                "config_warning",
                level="warn",
                message=f"the reactor is {type(self.reactor).__name__}: frames take a slower path than with the relay's "
                "own; leave out twistd's --reactor",
            )
        if self.keys.source == "ephemeral" and asked_for and self.config.noise_link != "off":
            self.log.event(
                "config_warning",
                level="warn",
                message="the Noise link's key lives as long as this process: set RELAY_STATE_DIR or "
                "RELAY_NOISE_PRIVATE_KEY_FILE so that peers can pin it",
            )
        self._open_doors()
        self._start_rooms()
        self._every(1.0, self.log.sweep)
        self._start_status_line()
        if self._certificates is not None:
            self._certificates.start()
        self.reactor.callWhenRunning(
            Signals(self.reactor, self._asked_to_stop, self._stop_now, self.reload).take
        )
        self.reactor.callWhenRunning(self._announce)
        self._say_started()

    def _start_status_line(self) -> None:
        facts = facts_reader(self.config, self.log, self.state, self.now)
        self._every(1.0, StatusLine(self.log, facts).tick)

    def _open_doors(self) -> None:
        self._listen(self._public_endpoint(), self._public_factory(), "RELAY_LISTEN_PORT")
        if self.config.admin_listen:
            self._listen(self._tcp(*self.config.admin_listen), self._admin_factory(), "RELAY_ADMIN_LISTEN")

    def _start_rooms(self) -> None:
        self.gate.start()
        self.backplane.start(self.relaying.remote)
        self.heartbeat.start()
        self._every(self.config.cleanup_interval_ms / 1000, self._clean_up)
        self._every(self.config.cleanup_interval_ms / 1000, self.gate.clean_up)
        if self.config.token_expiry == "close":
            self._every(1.0, self._close_expired)

    def _close_expired(self) -> None:
        self.relaying.sessions.close_expired(self.config.token_clock_skew_sec)

    def _clean_up(self) -> None:
        """Forget empty targets, what has aged out, and memory that is not in use."""
        config = self.config
        self.relaying.registry.clean_up(self.reactor.seconds(), config.empty_workspace_ttl_ms / 1000)
        self.turn.arena.buffers.clear()

    def _say_started(self) -> None:
        config = self.config
        peers = config.listen_endpoint or f"{config.listen_host}:{self.port}"
        listens = {"peers": f"{'wss' if self._tls is not None else 'ws'} on {peers}"}
        if config.admin_tokens and config.enable_admin_http:
            listens["admin"] = f"http on {config.admin_listen}" if config.admin_listen else "with the peers"
        self.log.event(
            "relay_started",
            message=f"listening on {config.listen_host}:{self.port}",
            version=__version__,
            port=self.port,
            **started(config, listens),
        )

    def _announce(self) -> None:
        self._notifier.ready(self._status())
        self._notifier.start_watchdog(self.reactor, self._status)

    def _status(self) -> str:
        joined = self.relaying.registry.joined
        return ", ".join(f"{number} {role.value}s" for role, number in joined.items()) or "no peers"

    def _descriptor_warnings(self) -> list[str]:
        wanted = descriptors.wanted(self.config.max_total_connections)
        if not 0 < self._open_files < wanted:
            return []
        return [
            f"at most {self._open_files} files may be open: RELAY_MAX_TOTAL_CONNECTIONS="
            f"{self.config.max_total_connections} needs {wanted} (LimitNOFILE=, --ulimit nofile=)"
        ]

    def _http_room(self) -> int:
        """How many HTTP connections there may be just now; more than are ever upgraded is no use."""
        most = self.config.max_total_connections or sys.maxsize
        if self._open_files:
            most = min(most, descriptors.for_http(self._open_files, len(self.factory.connections)))
        return most

    def _http_connections(self, *, public: bool) -> HttpConnections:
        per_address = (
            0 if self.config.proxy_protocol or not public else 2 * self.config.max_connections_per_ip
        )
        made = HttpConnections(
            self._http_room,
            per_address,
            self.address.trusts,
            self.log,
        )
        self._http.append(made)
        return made

    def _every(self, seconds: float, call: Any) -> None:
        timer = LoopingCall(call)
        timer.clock = self.reactor
        timer.start(seconds, now=False)
        self._timers.append(timer)

    def _public_endpoint(self) -> IStreamServerEndpoint:
        config = self.config
        if config.listen_endpoint:
            return self._described_endpoint(config.listen_endpoint)
        return self._tcp(config.listen_host, config.listen_port)

    def _described_endpoint(self, description: str) -> IStreamServerEndpoint:
        """Ends with status 78 when there is no such endpoint, or systemd has passed no such socket."""
        try:
            endpoint: IStreamServerEndpoint = serverFromString(self.reactor, description)
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # as its plugins happen to fail
            what = "no such socket was passed" if isinstance(error, LookupError) else str(error)
            message = f"RELAY_LISTEN_ENDPOINT: cannot use {description!r}: {what}"
            self.log.event("listen_failed", level="error", message=message)
            raise SystemExit(EX_CONFIG) from None
        return endpoint

    def _tcp(self, host: str, port: int) -> IStreamServerEndpoint:
        kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
        name = "127.0.0.1" if host == "localhost" else host
        return kind(self.reactor, port, backlog=_BACKLOG, interface=name)

    def _public_factory(self) -> IProtocolFactory:
        own: dict[bytes, Callable[[Request], bytes | int]] = {
            WELL_KNOWN_PATH: well_known(self.config, self.keys),
            b"/ws": self.upgrade.render,
        }
        site: IProtocolFactory = RelaySite(
            Root(self.upgrade, self._plain(admin=not self.config.admin_listen, own=own)),
            self._http_connections(public=True),
            self.config.http_keep_alive,
        )
        factory = site if self._tls is None else TLSFactory(self._tls, False, site, self.reactor)
        if not self.config.proxy_protocol:
            return factory
        return ProxyFactory(factory, self.address.trusts if self.config.trusted_proxies else None, self.log)

    def _admin_factory(self) -> IProtocolFactory:
        """The admin listener's site: over the relay's TLS, unless it listens on loopback."""
        root = Root(None, self._plain(admin=True, own={}))
        site = RelaySite(root, self._http_connections(public=False), self.config.http_keep_alive)
        host = self.config.admin_listen[0] if self.config.admin_listen is not None else "127.0.0.1"
        return (
            site
            if self._tls is None or is_loopback(host)
            else TLSFactory(self._tls, False, site, self.reactor)
        )

    def _plain(self, *, admin: bool, own: Mapping[bytes, Callable[[Request], bytes | int]]) -> PlainHttp:
        """Everything but upgrades, for one listener; `own` are the wire's own pages."""
        door = self._door(admin=admin)
        return PlainHttp(
            Pages(door, own),
            self.reactor,
            self._http_budget,
            self._http_queue,
            self.address,
            self.admin_auth.admits,
        )

    def _door(self, *, admin: bool) -> Any:
        return build_door(
            self.config,
            log=self.log,
            counters=self.shown,
            state=self.state,
            reactor=self.reactor,
            started_at=self.now(),
            now=self.now,
            client_ip=self.address,
            auth=self.admin_auth,
            admin=admin,
        )

    def _listen(self, endpoint: IStreamServerEndpoint, factory: IProtocolFactory, name: str) -> None:
        """Listen now or not at all: without its port the relay ends with status 1."""

        def listening(port: IListeningPort) -> None:
            self._ports.append(port)
            if self.port is None:
                self.port = getattr(port.getHost(), "port", None)

        failures: list[BaseException] = []
        endpoint.listen(factory).addCallbacks(listening, lambda failure: failures.append(failure.value))
        for error in failures:
            self.log.event("listen_failed", level="error", message=f"{name}: {cannot_listen(error)}")
            raise SystemExit(1)

    # -- stop and reload -----------------------------------------------------------------------------------

    def _asked_to_stop(self, signal_name: str) -> None:
        self.log.event("relay_stopping", message=f"{signal_name} received")
        self.reactor.stop()

    def _stop_now(self) -> None:
        self.log.event("relay_stopping", message="asked again: the connections that are left are cut")
        self._cut_all()

    def _drain(self) -> Deferred[None]:
        return self.drain.start()

    def _cut_all(self) -> None:
        self.drain.end_at_once()

    def reload(self) -> None:
        """Read settings, secret files and TLS files again, and take up what can change while the relay runs."""
        self._notifier.reloading()
        if self._certificates is not None:
            self._certificates.reload()
        try:
            found = self._reread(self.config)
        except ConfigError as error:
            for problem in error.problems:
                self.log.event("reload_failed", level="error", message=problem)
        else:
            self.apply(found)
            self._say_reloaded(found)
        self._notifier.ready(self._status())

    def apply(self, reloaded: Reloaded) -> None:
        """Take up new limits, proxies, origins and log level. Every connection stays."""
        config = self.config = reloaded.config
        self.log.apply(config.log_level, configured_secrets(config))  # type: ignore[arg-type]  # as in tap.py
        self.address.trusted = _trusted(config)
        if config.enable_admin_http:
            self.admin_auth.set_tokens(config.admin_tokens, config.metrics_tokens)
        self.upgrade.apply(config, **self._upgrade_limits())
        self.relaying.router.rates = frame_rates(config)

    def _say_reloaded(self, reloaded: Reloaded) -> None:
        for warning in reloaded.config.warnings:
            self.log.event("config_warning", level="warn", message=warning)
        message = f"taken up: {', '.join(reloaded.taken) or 'no setting has changed'}"
        if reloaded.left:
            message += f"; needs a restart: {', '.join(reloaded.left)}"
        self.log.event(
            "reload",
            level="warn" if reloaded.left else "info",
            message=message,
            taken=reloaded.taken,
            left=reloaded.left,
        )

    def stopService(self) -> Deferred[None]:
        """Stop listening, close every peer 1001, wait for them (at most RELAY_DRAIN_SECONDS)."""
        for timer in self._timers:
            if timer.running:
                timer.stop()
        if self._certificates is not None:
            self._certificates.stop()
        self.upgrade.stopping = True
        self._notifier.stopping(
            f"draining {len(self.factory.connections)} connections", self.config.drain_seconds + _STOP_MARGIN
        )
        # The operator's own listener stays to the end, so that /ready says why.
        for port in self._ports[:1]:
            port.stopListening()
        stopped = self._drain()
        stopped.addCallback(lambda _: self.backplane.stop())
        stopped.addCallback(self._stop_the_rest)
        return stopped

    def _stop_rooms(self) -> None:
        self.heartbeat.stop()
        self.gate.stop()
        self.client.close()

    def _stop_the_rest(self, _: None) -> None:
        self._stop_rooms()
        for port in self._ports:
            port.stopListening()
        self._http_queue.stop()
        for connections in self._http:
            connections.close()
        self._notifier.stop_watchdog()
        MultiService.stopService(self)
        self._say_stopped()
        self.stdlib_log.uninstall()
        self.log.close()

    def _say_stopped(self) -> None:
        self.log.event("relay_stopped")
