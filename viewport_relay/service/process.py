"""The process that twistd runs: log, listeners, signals and the service manager around an engine.

The engine is one `Relay`, or with RELAY_WORKERS several worker processes. The process connects its parts and starts their
timers. The rules are in the packages that it imports.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.web.resource import Resource

from viewport_relay.admin.auth import WRONG_TOKENS_PER_MINUTE, AdminAuth
from viewport_relay.admin.site import Page, build
from viewport_relay.admin.state import facts_reader
from viewport_relay.admission.addresses import TrustedProxies, counted_as
from viewport_relay.admission.limits import WindowCounter
from viewport_relay.config import Config, ConfigError, Reloaded, Reread, configured_secrets
from viewport_relay.notify import Notifier
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.status import StatusLine
from viewport_relay.observe.twistedlog import LibraryLog
from viewport_relay.service.engine import MakeEngine, Parts
from viewport_relay.service.listeners import Listeners
from viewport_relay.service.startup import log_started, start_warnings
from viewport_relay.service.timers import WaitingService, every
from viewport_relay.signals import Signals
from viewport_relay.wire.tls import CertificateWatch, ServerContext

#: Seconds on top of the drain that the service manager is asked for.
_STOP_MARGIN: Final = 15


class Process(WaitingService):
    """The service tree of a relay process. Set it on an application, or start it alone.

    `notifier` notifies the service manager. `open_files`: the limit on descriptors (0: not limited). `reread` loads the settings
    again. Raises ConfigError when files that the settings name cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        config: Config,
        log: EventLog,
        make_engine: MakeEngine,
        notifier: Notifier | None = None,
        open_files: int = 0,
        reread: Reread = Reloaded,
    ) -> None:
        MultiService.__init__(self)
        self._reactor = reactor
        self._began = reactor.seconds()
        self._log = log
        self._notifier = Notifier({}) if notifier is None else notifier
        self._reread = reread
        parts = self._parts = Parts.make(reactor, config, log, open_files)
        engine = self._engine = make_engine(parts)
        self._library_log = LibraryLog(log, from_thread=reactor.callFromThread)
        self._tls = ServerContext.from_config(config)
        self._certificates = None
        if self._tls is not None:
            self._certificates = CertificateWatch(self._tls, reactor, log, engine.tls_reloaded)
        wrong_tokens = WindowCounter(WRONG_TOKENS_PER_MINUTE)
        self._auth = AdminAuth(
            config.admin_tokens if config.enable_admin_http else (),
            config.metrics_tokens if config.enable_admin_http else (),
            now=time.time,
            clock=reactor.seconds,
            wrong_token=lambda client: wrong_tokens.hit(counted_as(client), reactor.seconds()),
        )
        self._listeners = Listeners(parts, engine, auth=self._auth, tls=self._tls, pages=self._pages)
        self._listeners.setServiceParent(self)  # type: ignore[no-untyped-call]
        engine.setServiceParent(self)  # type: ignore[no-untyped-call]
        every(self, reactor, 1.0, log.sweep)
        facts = facts_reader(config, log, engine.state)
        self._status_line = every(self, reactor, 1.0, StatusLine(log, facts).tick)

    def setServiceParent(self, parent: Any) -> None:
        """Join an application: log lines of Twisted and of libraries then go through this process's log."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._library_log)
            self._library_log.install()
        MultiService.setServiceParent(self, parent)

    def _pages(self, *, admin: bool, others: Mapping[bytes, Page]) -> Resource:
        return build(
            lambda: self._parts.config,
            log=self._log,
            counters=self._engine.shown,
            state=self._engine.state,
            reactor=self._reactor,
            periodically=partial(every, self, self._reactor),
            uptime=lambda: self._reactor.seconds() - self._began,
            client_ip=self._parts.address,
            auth=self._auth,
            admin=admin,
            others=others,
        )

    # -- start ---------------------------------------------------------------------------------------------

    def startService(self) -> None:
        keys, open_files = self._parts.keys, self._parts.open_files
        warnings = start_warnings(self._parts.config, keys, open_files)
        for warning in (*self._parts.config.warnings, *keys.warnings, *self._engine.notes, *warnings):
            self._log.event("config_warning", message=warning)
        for note in self._parts.config.notes:
            self._log.event("config_note", message=note)
        super().startService()
        self._listeners.pause()
        if self._certificates is not None:
            self._certificates.start()
        self._reactor.callWhenRunning(
            Signals(self._reactor, self._asked_to_stop, self._stop_now, self.reload, self._unused_signal).take
        )
        self._reactor.callWhenRunning(self._engine.when_ready, self._accept)
        log_started(self._log, self._parts.config, self._listeners.port, tls=self._tls is not None)

    def _accept(self) -> None:
        if self._engine.upgrade.stopping:
            return
        self._listeners.resume()
        self._notifier.ready(self._engine.status())
        self._notifier.start_watchdog(self._reactor, self._engine.status)

    # -- reload --------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Load settings, secret files and TLS files again, and apply what can change while the relay runs."""
        self._notifier.reloading()
        if self._certificates is not None:
            self._certificates.reload()
        try:
            found = self._reread(self._parts.config)
        except ConfigError as error:
            for sentence in error.errors:
                self._log.event("reload_failed", message=sentence)
        else:
            self._apply(found)
            self._say_reloaded(found)
        self._notifier.ready(self._engine.status())

    def _apply(self, reloaded: Reloaded) -> None:
        """Apply limits, times, proxies, origins, tokens and log level. Every connection stays."""
        config = self._parts.config = reloaded.config
        self._log.apply(config.log_level, configured_secrets(config))
        self._parts.address.trusted = TrustedProxies.from_config(config)
        if config.enable_admin_http:
            self._auth.set_tokens(config.admin_tokens, config.metrics_tokens)
        self._listeners.apply(config)
        self._engine.apply(reloaded)

    def _say_reloaded(self, reloaded: Reloaded) -> None:
        for warning in reloaded.config.warnings:
            self._log.event("config_warning", message=warning)
        message = f"settings applied: {', '.join(reloaded.taken) or 'no setting has changed'}"
        if reloaded.left:
            message += f"; needs a restart: {', '.join(reloaded.left)}"
        self._log.event(
            "reload",
            level="warn" if reloaded.left else "info",
            message=message,
            taken=reloaded.taken,
            left=reloaded.left,
        )

    def _unused_signal(self, signal_name: str) -> None:
        self._log.event("signal_ignored", message=f"{signal_name} received: ignored")

    # -- stop ----------------------------------------------------------------------------------------------

    def _asked_to_stop(self, signal_name: str) -> None:
        self._log.event("relay_stopping", message=f"{signal_name} received")
        self._reactor.stop()

    def _stop_now(self) -> None:
        self._log.event("relay_stopping", message="a second signal: the remaining connections are cut")
        self._engine.cut()

    async def end(self) -> None:
        """Stop listening, close every peer 1001, wait for them (at most RELAY_DRAIN_SECONDS), then stop the rest."""
        if self._certificates is not None:
            self._certificates.stop()
        await self._status_line.disownServiceParent()
        self._engine.upgrade.stopping = True
        self._notifier.stopping(
            f"draining {self._engine.connected()} connections",
            self._parts.config.drain_seconds + _STOP_MARGIN,
        )
        await self._listeners.close_public()
        await self._engine.drain()
        await MultiService.stopService(self)
        # Aborted connections are lost, and report their end, in the next turn.
        await deferLater(self._reactor, 0)
        self._notifier.stop_watchdog()
        self._log.event("relay_stopped")
        self._library_log.uninstall()
        self._log.close()
