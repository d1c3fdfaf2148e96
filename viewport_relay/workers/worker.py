"""One worker: a whole relay that listens nowhere and gets its connections from its parent.

    python -m viewport_relay.workers.worker NUMBER      (started by `place.py`, with its two channels as descriptors)

It answers no HTTP beside upgrades and refusals. When its parent is gone it drains and ends.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, Final

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Protocol
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay import collector, descriptors
from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import ConnectionCounts, Ticket, WindowCounter
from viewport_relay.config import EX_CONFIG, Config, ConfigError, configured_secrets, load, reread
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.ring import Record
from viewport_relay.observe.twistedlog import TwistedObserver
from viewport_relay.service import RelayService
from viewport_relay.wire.reactor import install
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.upgrade import UpgradeResource
from viewport_relay.workers.messages import (
    PACKETS_FD,
    WORDS_FD,
    Adopt,
    Apply,
    Ask,
    Disconnect,
    Disconnected,
    Flush,
    Left,
    OpenFold,
    Order,
    Picture,
    Said,
    Up,
    Word,
    encode,
)
from viewport_relay.workers.packets import PacketReader
from viewport_relay.workers.tally import written

#: Entries of the log that are dropped when the parent does not read: those over so many bytes that wait.
_MOST_UNREAD: Final = 8_388_608

#: Seconds for what is left to be said at the end.
_LAST_WORDS: Final = 3.0


class _Nowhere:
    """The log's stream: the parent writes."""

    def write(self, text: str, /) -> None:
        pass

    def flush(self) -> None:
        pass


@implementer(IPushProducer)
class Reporter(Protocol):
    """Says words to the parent. Log entries are lost, and counted, while the parent reads nothing for long."""

    transport: Any

    def __init__(self) -> None:
        self._unread = 0
        #: log entries that were lost since the start
        self.lost = 0
        self._paused = False
        self._over: Deferred[None] | None = Deferred()

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    def say(self, word: Word) -> None:
        if self._over is None:
            return
        line = encode(word) + b"\n"
        if self._paused:
            if isinstance(word, Said) and self._unread > _MOST_UNREAD:
                self.lost += 1
                return
            self._unread += len(line)
        self.transport.write(line)

    def say_logged(self, record: Record) -> None:
        self.say(Said(record))

    def finish(self) -> Deferred[None]:
        """Fires when everything was said, or cannot be."""
        if self._over is None:
            return succeed(None)
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        return self._over

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        over, self._over = self._over, None
        if over is not None:
            over.callback(None)

    # -- IPushProducer -------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused, self._unread = False, 0

    def stopProducing(self) -> None:
        """The parent is gone, which the packets tell too."""


class ReportingCounts(ConnectionCounts):
    """Counts clients per target; the rest is the parent's, which is told of every end."""

    def __init__(self, max_clients: int, reporter: Reporter) -> None:
        ConnectionCounts.__init__(self, 0, 0, max_clients)
        self._reporter = reporter
        self.taken = 0

    def take(self, ip: str) -> Ticket:
        self.taken += 1
        return ConnectionCounts.take(self, ip)

    def leave(self, ip: str) -> None:
        ConnectionCounts.leave(self, ip)
        self._reporter.say(Left(ip))


class WorkerService(RelayService):
    """A relay whose connections come from a parent."""

    def __init__(
        self, reactor: Any, config: Config, log: EventLog, reporter: Reporter, open_files: int
    ) -> None:
        self._reporter = reporter
        self._environ = dict(os.environ)
        self._counts = ReportingCounts(config.max_clients_per_workspace, reporter)
        RelayService.__init__(self, reactor, evolve(config, warnings=()), log, None, open_files)

    def _upgrade_limits(self) -> dict[str, int]:
        # The rest is the parent's.
        return {"attempts": 0, "total": 0, "per_ip": 0, "clients": self.config.max_clients_per_workspace}

    def _make_upgrade(self) -> UpgradeResource:
        return UpgradeResource(
            self.config,
            self.reactor,
            self.log,
            self.counters,
            address=self.address,
            gate=self.gate,
            factory=self.factory,
            opened=self.relaying.sessions.opened,
            attempts=WindowCounter(0),
            counts=self._counts,
        )

    def _open_doors(self) -> None:
        self._site = RelaySite(Root(self.upgrade, self._door(admin=False)))
        self._site.startFactory()

    def _start_status_line(self) -> None:
        """The parent writes it, for all workers."""

    def _say_started(self) -> None:
        """The parent does, when it hears of us."""

    def _announce(self) -> None:
        self._reporter.say(Up())

    def reload(self) -> None:
        """The parent says what has changed."""

    def stopService(self) -> Deferred[None]:
        return RelayService.stopService(self).addCallback(self._last_words)

    def _say_stopped(self) -> None:
        """The parent does."""

    def _last_words(self, _: None) -> Deferred[None]:
        late = self.reactor.callLater(_LAST_WORDS, self._reporter.transport.abortConnection)
        return self._reporter.finish().addCallback(lambda _: late.cancel() if late.active() else None)

    # -- orders ----------------------------------------------------------------------------------------------

    def obey(self, order: Order, descriptor: int | None, data: bytes) -> None:
        """Do what the parent says."""
        if isinstance(order, Adopt):
            if descriptor is None:  # this process had no room for it (MSG_CTRUNC): the peer sees an end
                self._reporter.say(Left(counted_as(order.ip)))
            else:
                self.adopt(order, descriptor, data)
        elif isinstance(order, Ask):
            self._reporter.say(self._picture(order.number))
        elif isinstance(order, Disconnect):
            count = self.state.disconnect(
                workspace_id=order.workspace_id,
                runtime_target_id=order.runtime_target_id,
                connection_id=order.connection_id,
                token_id=order.token_id,
            )
            assert isinstance(count, int)
            self._reporter.say(Disconnected(order.number, count))
        elif isinstance(order, Apply):
            self._environ |= order.settings
            self.apply(reread(self.config, self._environ))
        elif isinstance(order, Flush):
            self.state.flush_caches()
        elif order.now:
            self._cut_all()
        else:
            self.stop()

    def _asked_to_stop(self, signal_name: str) -> None:
        """A signal that came to this process too: a terminal's and a service manager's go to all at once."""
        self.stop()

    def stop(self) -> None:
        """Drain and end; asking again does nothing."""
        try:
            self.reactor.stop()
        except ReactorNotRunning:
            pass

    def adopt(self, order: Adopt, descriptor: int, data: bytes) -> None:
        """Take a connection over, and read what the parent has read of it."""
        taken = self._counts.taken
        adoption = _Adoption(self._site, order.ip)
        try:
            os.set_blocking(descriptor, False)
            self.reactor.adoptStreamConnection(descriptor, order.family, adoption)
        except OSError:  # the peer is gone already
            pass
        finally:
            os.close(descriptor)
        if adoption.channel is not None:
            adoption.channel.dataReceived(data)
        if self._counts.taken == taken:
            self._reporter.say(Left(counted_as(order.ip)))

    def _picture(self, number: int) -> Picture:
        ready, why = self.state.readiness()
        return Picture(
            number,
            ready,
            why,
            self.state.jwks_age(),
            dict(self.state.backplane()),
            dict(self.state.connections()),
            list(self.state.targets()),
            written(self.counters),
            [
                OpenFold(
                    fold.source.event, fold.source.code, fold.source.ip, fold.source.workspace_id, fold.source.role,
                    fold.source.message, fold.level, fold.opened, fold.count, fold.first, fold.last, fold.detail,
                )
                for fold in self.log.folds()
            ],
            [
                (event, None if reason is None else reason.code, at)
                for (event, reason), at in self.log.last_seen.items()
            ],
            self._reporter.lost,
            self.log.problems.rows(self.now()),
            self.log.problems.recent(self.now()),
            self.state.clock_offset(),
            self.state.platform_age(),
            self.log.untold_folded(),
        )  # fmt: skip


class _Adoption:
    """The factory for one connection."""

    def __init__(self, site: RelaySite, ip: str) -> None:
        self._site = site
        self._ip = ip
        self.channel: Any = None

    def buildProtocol(self, address: IAddress | None) -> Any:
        self.channel = self._site.buildProtocol(address)
        self.channel.given_ip = self._ip
        return self.channel


class _ReporterFactory:
    """What `adoptStreamConnection` asks for."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def buildProtocol(self, address: IAddress | None) -> Reporter:
        return self._reporter


def main() -> int:
    """Until the parent says stop."""
    reactor: Any = install()
    words = socket.socket(fileno=WORDS_FD)
    words.setblocking(False)
    reporter = Reporter()
    reactor.adoptStreamConnection(words.fileno(), socket.AF_UNIX, _ReporterFactory(reporter))
    words.close()
    try:
        config = load(os.environ)
        log = EventLog(
            _Nowhere(), max_entries=1, secrets=configured_secrets(config), relay_id=config.relay_id_in_log
        )
        log.follow(reporter.say_logged)
        limit = descriptors.raise_limit(descriptors.wanted(config.max_total_connections))
        service = WorkerService(reactor, config, log, reporter, limit)
    except ConfigError as error:
        for problem in error.problems:
            print(f"viewport-relay: worker: {problem}", file=sys.stderr)
        return EX_CONFIG
    globalLogBeginner.beginLoggingTo(
        [TwistedObserver(log, from_thread=reactor.callFromThread)], redirectStandardIO=False
    )
    service.stdlib_log.install()
    PacketReader(socket.socket(fileno=PACKETS_FD), reactor, service.obey, service.stop)
    service.startService()
    collector.settle()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
