"""The worker process: a whole relay without a listener, which gets its connections from its parent.

    python -m viewport_relay.workers.worker NUMBER      (started by `supervision.py`, with its two channels as descriptors)

It answers upgrades only. When the parent process has ended, it drains and exits.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve
from twisted.application.service import MultiService
from twisted.internet.error import ReactorNotRunning
from twisted.logger import globalLogBeginner
from twisted.web.pages import notFound

from viewport_relay import collector, hugepages
from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import ConnectionCounts, Ticket, UpgradeLimits
from viewport_relay.config import EX_CONFIG, Config, ConfigError, configured_secrets, load, reread
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.twistedlog import LibraryLog
from viewport_relay.service.engine import Parts
from viewport_relay.service.relay import Relay
from viewport_relay.service.timers import WaitingService, every
from viewport_relay.signals import Signals
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.reactor import adopt_stranger, install
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.tls import ServerContext
from viewport_relay.workers import messages
from viewport_relay.workers.channels import OneProtocol, PacketReader, ReportSender, connect
from viewport_relay.workers.snapshots import serialised
from viewport_relay.workers.tlspipe import TLSPipes

#: Seconds for the last messages to the parent at exit.
_FINISH_LIMIT: Final = 3.0


class _Nowhere:
    """A null text stream for the log: the parent writes the log lines."""

    def write(self, text: str, /) -> None:
        pass

    def flush(self) -> None:
        pass


class ReportingCounts(ConnectionCounts):
    """Counts of clients per target. The parent counts connections, and gets a `Left` for each end."""

    def __init__(self, limits: UpgradeLimits, reporter: ReportSender) -> None:
        ConnectionCounts.__init__(self, limits)
        self._reporter = reporter
        self.taken = 0

    def take(self, ip: str) -> Ticket:
        self.taken += 1
        return ConnectionCounts.take(self, ip)

    def leave(self, ip: str) -> None:
        ConnectionCounts.leave(self, ip)
        self._reporter.send(messages.Left(ip))


class WorkerService(WaitingService):
    """The service tree of a worker process: a relay whose connections come from the parent."""

    def __init__(
        self, reactor: Any, config: Config, log: EventLog, reporter: ReportSender, environ: Mapping[str, str]
    ) -> None:
        """`environ`: the variables from which `config` was loaded. Raises ConfigError."""
        MultiService.__init__(self)
        self._reactor = reactor
        self._log = log
        self._reporter = reporter
        self._environ = dict(environ)
        parts = self._parts = Parts.make(reactor, config, log)
        self._counts = ReportingCounts(parts.upgrade_limits(), reporter)
        self.relay = Relay(parts, self._counts)
        self.relay.setServiceParent(self)  # type: ignore[no-untyped-call]
        every(self, reactor, 1.0, log.sweep)
        context = ServerContext.from_config(config)
        queue = FairQueue(reactor)
        self._pipes = None if context is None else TLSPipes(reactor, context, queue, log)
        nothing: Any = notFound()  # the parent passes no plain HTTP on
        self._site = RelaySite(
            Root(self.relay.upgrade, nothing), reactor, queue, HttpConnections(lambda: sys.maxsize, log)
        )

    def startService(self) -> None:
        self._site.startFactory()
        super().startService()
        signals = Signals(
            self._reactor, lambda name: self.stop(), self._cut, lambda: None, self._unused_signal
        )
        self._reactor.callWhenRunning(signals.take)
        self._reactor.callWhenRunning(self._reporter.send, messages.Up())

    def _unused_signal(self, signal_name: str) -> None:
        self._log.event("signal_ignored", message=f"worker: {signal_name} received: ignored")

    async def end(self) -> None:
        """Drain, stop, and wait until the parent has read the last messages."""
        await self.relay.drain()
        if self._pipes is not None:
            await self._pipes.drain()
        await MultiService.stopService(self)
        self._site.stopFactory()
        self._log.close()
        await self._reporter.finish().addTimeout(_FINISH_LIMIT, self._reactor, self._unread)

    def _unread(self, *_: object) -> None:
        self._reporter.transport.abortConnection()

    # -- orders ----------------------------------------------------------------------------------------------

    def execute(self, order: messages.Order, descriptors: list[int], data: bytes) -> None:
        """Carry out an order of the parent."""
        match order:
            case messages.Adopt(ip=ip) if not descriptors:
                # MSG_CTRUNC: no descriptor was free, and the kernel closes the connection.
                self._reporter.send(messages.Left(counted_as(ip)))
            case messages.Adopt():
                self.adopt(order, descriptors[0], data)
            case messages.EndTLS():
                self._end_tls(order, descriptors, data)
            case messages.Poll():
                self._reporter.send(self._snapshot())
            case messages.Disconnect(selection=selection):
                self._reporter.send(messages.Disconnected(self.relay.state.disconnect(selection)))
            case messages.Apply(settings=texts):
                self._apply(texts)
            case messages.ReloadTLS():
                self._reload_tls()
            case messages.Flush():
                self.relay.state.flush_caches()
            case messages.Stop(now=True):
                self._cut()
            case messages.Stop():
                self.stop()

    def _snapshot(self) -> messages.Snapshot:
        state, counters = self.relay.state, serialised(self.relay.shown)
        report = self._log.report(self._reporter.lost)
        return messages.Snapshot(
            state.condition(), dict(state.connections()), list(state.targets()), counters, report
        )

    def _cut(self) -> None:
        self.relay.cut()
        if self._pipes is not None:
            self._pipes.abort()

    def _apply(self, texts: Mapping[str, str]) -> None:
        self._environ |= texts
        reloaded = reread(self._parts.config, self._environ)
        config = self._parts.config = reloaded.config
        self._log.apply(config.log_level, configured_secrets(config))
        self.relay.apply(reloaded)

    def stop(self) -> None:
        """Drain and exit. Later calls have no effect."""
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass

    def adopt(self, order: messages.Adopt, descriptor: int, data: bytes) -> None:
        """Take over a connection; `data` are the bytes that the parent has read from it."""
        taken = self._counts.taken
        channel: Any = self._site.buildProtocol(None)
        channel.given_ip = order.ip
        try:
            os.set_blocking(descriptor, False)
            adopt_stranger(self._reactor, descriptor, order.family, OneProtocol(channel))
        except OSError:  # the peer has disconnected already
            pass
        else:
            channel.dataReceived(data)
        finally:
            os.close(descriptor)
        if self._counts.taken == taken:
            self._reporter.send(messages.Left(counted_as(order.ip)))

    def _end_tls(self, order: messages.EndTLS, descriptors: list[int], data: bytes) -> None:
        if self._pipes is None or len(descriptors) < 2:  # MSG_CTRUNC, as in `execute`
            for descriptor in descriptors:
                os.close(descriptor)
            return
        tcp, pair = descriptors
        self._pipes.begin(order.family, tcp, pair, data)

    def _reload_tls(self) -> None:
        if self._pipes is None:
            return
        try:
            self._pipes.context.reload()
        except ConfigError as error:
            # They have changed since the parent read them, and it reads them again.
            self._log.event("tls_reload_failed", message=error.errors[0])


def main() -> int:
    """Run the worker process until the parent orders it to stop; returns the exit status."""
    reactor: Any = install()
    reporter = ReportSender()
    with socket.socket(fileno=messages.REPORTS_FD) as sock:
        connect(reactor, sock, reporter)
    try:
        environ = dict(os.environ)
        config = load(environ)
        parent = None if config.backplane_mode == "single" else config.relay_id.rpartition("-w")[0]
        config = evolve(config, worker_of=parent, warnings=())  # the parent has logged these
        log = EventLog(
            _Nowhere(),
            max_entries=1,
            clock=reactor.seconds,
            secrets=configured_secrets(config),
            relay_id=config.relay_id_in_log,
        )
        log.followers.append(lambda record: reporter.send(messages.Logged(record)))
        service = WorkerService(reactor, config, log, reporter, environ)
    except ConfigError as error:
        for sentence in error.errors:
            print(f"viewport-relay: worker: {sentence}", file=sys.stderr)
        return EX_CONFIG
    library_log = LibraryLog(log, from_thread=reactor.callFromThread)
    globalLogBeginner.beginLoggingTo([library_log], redirectStandardIO=False)
    library_log.install()
    PacketReader(socket.socket(fileno=messages.PACKETS_FD), reactor, service.execute, service.stop)
    service.startService()
    collector.settle(reactor)
    hugepages.collapse()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    library_log.uninstall()
    return 0


if __name__ == "__main__":
    sys.exit(main())
