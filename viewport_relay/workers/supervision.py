"""One worker as the parent sees it: a number, its current process, and the last report of that process.

    spawned -> Up -> takes connections -> ended -> spawned again after a back-off
                  -> silent (a poll unanswered) -> answers again, or is killed: ended

Connections of a worker are counted here, so that their tickets are released when the process dies.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import Ticket
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.workers import messages
from viewport_relay.workers.channels import PacketSender, ReportReader, connect, socket_pair
from viewport_relay.workers.snapshots import add

#: Seconds before an ended worker is started again: doubled each time, reset after a process ran for LIVED seconds.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
LIVED: Final = 60.0

#: Seconds that a worker may take to start, where RELAY_WORKER_TIMEOUT_MS is shorter.
STARTING: Final = 60.0

#: Seconds that a poll of a worker may take, and a poll of a silent worker, whose last poll was
#: left unanswered: the admin endpoints must not wait for that worker each time.
PATIENCE: Final = 3.0
BRIEF: Final = 0.2


@define(eq=False)
class Supervision:
    """Settings and state that the workers of one parent share.

    `timeout`: seconds without an answer after which a worker is killed. `counters`: the parent's own. `environment` maps a
    worker's number to its environment variables. `stopping`: ended workers are not started again. `retired` holds the sum
    of the last counters of ended processes.
    """

    reactor: Any
    timeout: float
    log: EventLog
    counters: Counters
    environment: Callable[[int], Mapping[str, str]]
    stopping: bool = False
    retired: Counters = Factory(Counters)


class Worker(ProcessProtocol):
    """One numbered worker and its current process. `came_up` is called when it is ready for connections."""

    transport: Any

    def __init__(self, supervision: Supervision, index: int, came_up: Callable[[], None]) -> None:
        self._supervision = supervision
        self._came_up = came_up
        self.index = index
        self.up = False
        #: whether the last poll was left unanswered
        self.silent = False
        self.snapshot: messages.Snapshot | None = None
        #: number of earlier processes of this worker
        self.life = 0
        self._process: Any = None
        # Created before the process, so that connections can queue in it. None: not created yet, or the process has it.
        self._theirs: socket.socket | None = None
        self._packets: PacketSender
        self._make_channel()
        self._held: dict[str, list[Ticket]] = {}
        self._asked: deque[Deferred[Any]] = deque()  # orders that wait for their answers, which come in order
        self._pause = FIRST_PAUSE
        self._killed = ""
        self._started = 0.0
        self._last_report = 0.0
        self._again: IDelayedCall | None = None
        self._gone: Deferred[None] | None = None

    # -- the process ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process. Connections may be passed at once; they are queued until it is up."""
        self._again = None
        self._started = self._last_report = self._supervision.reactor.seconds()
        try:
            packets = self._make_channel() if self._theirs is None else self._theirs
            self._spawn(packets)
            packets.close()
            self._theirs = None
        except OSError as error:  # out of processes, memory or descriptors; the next attempt may succeed
            self._over(f"worker {self.index} could not be started: {error.strerror}")

    def _spawn(self, packets: socket.socket) -> None:
        """Start the process, with its ends of the two channels as descriptors. Raises OSError."""
        reactor, (ours, theirs) = self._supervision.reactor, socket.socketpair()
        with ours, theirs:
            channel = connect(reactor, ours, ReportReader(partial(self.received, self.life), self.kill))
            try:
                self._process = reactor.spawnProcess(
                    self,
                    sys.executable,
                    [sys.executable, "-m", "viewport_relay.workers.worker", str(self.index)],
                    env=self._supervision.environment(self.index),
                    childFDs={
                        0: "w", 1: 2, 2: 2,
                        messages.PACKETS_FD: packets.fileno(), messages.REPORTS_FD: theirs.fileno(),
                    },
                )  # fmt: skip
            except OSError:
                channel.abortConnection()
                raise

    def _make_channel(self) -> socket.socket:
        ours, theirs = socket_pair()
        self._packets, self._theirs = PacketSender(ours, self._supervision.reactor), theirs
        return theirs

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process."""
        pid: int | None = getattr(self._process, "pid", None)
        return pid

    @property
    def exited(self) -> bool:
        """Whether the process reads no more, and its end has not been handled yet."""
        return bool(self._packets.disconnected)

    def kill(self, why: str) -> None:
        """Kill the process (SIGKILL). `processEnded` then runs as after any other end."""
        if self.pid is not None:
            self._killed = why
            self._event("worker_killed", f"worker {self.index}: {why}", pid=self.pid)
            self._process.signalProcess("KILL")

    def connectionMade(self) -> None:
        """Give the process that was started an empty standard input."""
        self.transport.closeStdin()

    def processEnded(self, reason: Failure) -> None:
        """Handle the end of the process, by exit status or by signal number."""
        assert isinstance(reason.value, ProcessDone | ProcessTerminated)
        status, number = reason.value.exitCode, reason.value.signal
        how = f"ended with status {status}"
        if self._killed:
            how = f"was killed: {self._killed}"
        elif number is not None:
            name = signal.strsignal(number)
            how = f"was ended by signal {number} ({name}), which was not sent by its parent"
        self._process = None
        self._over(f"worker {self.index} {how}", expected=self._supervision.stopping and status == 0)

    def _over(self, what: str, *, expected: bool = False) -> None:
        """Clean up after a process, and schedule the next one unless the parent stops."""
        self._clean_up()
        if not self._supervision.stopping:
            self._start_again(what)
        elif not expected:
            self._event("worker_lost", what)

    def _clean_up(self) -> None:
        """Forget the process: its channel and connections are gone, and no answer of it will come."""
        self.up, self.silent, self._killed = False, False, ""
        self.life += 1
        self._packets.close()
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None
        if self.snapshot is not None:
            add(self._supervision.retired, self.snapshot.counters)
            self.snapshot = None
        for tickets in self._held.values():
            for ticket in tickets:
                ticket.release()
        self._held.clear()
        while self._asked:
            self._asked.popleft().callback(None)
        if self._gone is not None:
            self._gone.callback(None)
            self._gone = None

    def _start_again(self, what: str) -> None:
        """Schedule the next process, at once if the last one ran for long."""
        supervision = self._supervision
        supervision.counters.worker_processes_lost += 1
        lived = supervision.reactor.seconds() - self._started
        self._pause = FIRST_PAUSE if lived >= LIVED else min(2 * self._pause, LONGEST_PAUSE)
        self._event("worker_lost", f"{what}; its peers reconnect, a new one starts", lived=round(lived, 1))
        with contextlib.suppress(OSError):  # out of descriptors: the next start tries again
            self._make_channel()
        self._again = supervision.reactor.callLater(self._pause if lived < LIVED else 0, self.start)

    def _event(self, event: str, message: str, **details: Any) -> None:
        self._supervision.log.event(event, message=message, worker=self.index, **details)

    # -- to the process ---------------------------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, ip: str, data: bytes, ticket: Ticket) -> bool:
        """Pass a connection to the process. False: its queue is full, or it has exited."""
        if not self._packets.send(messages.Adopt(sock.family, ip), [sock], data):
            return False
        self._held.setdefault(counted_as(ip), []).append(ticket)
        return True

    def end_tls(self, tcp: socket.socket, pair: socket.socket, data: bytes) -> bool:
        """Let the process end TLS on a connection. False: its queue is full, or it has exited."""
        return self._packets.send(messages.EndTLS(tcp.family), [tcp, pair], data)

    def send(self, order: messages.Order) -> None:
        self._packets.send(order)

    def request(self, order: messages.Poll | messages.Disconnect) -> Deferred[Any]:
        """Send an order; fires with the answer, or with None after the time limit."""
        answer: Deferred[Any] = Deferred()
        if not self.up or not self._packets.send(order):
            answer.callback(None)
            return answer
        self._asked.append(answer)  # also after the time limit: a late answer is still the next one
        patience = BRIEF if self.silent else PATIENCE
        return answer.addTimeout(patience, self._supervision.reactor, self._unanswered)

    def _unanswered(self, *_: object) -> None:
        if not self.silent:
            self.silent = True
            message = (
                f"worker {self.index} does not answer; its peers wait, and it is killed and replaced after "
                f"{self._supervision.timeout:g} s without an answer"
            )
            self._event("worker_silent", message, pid=self.pid)

    def stop(self) -> Deferred[None]:
        """Drain the process; fires when it has exited."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        gone: Deferred[None] = Deferred()
        if self._process is None:
            gone.callback(None)
        else:
            self._gone = gone
            self.send(messages.Stop())
        return gone

    def look(self, late: float) -> None:
        """Kill the process when it no longer answers. `late`: seconds that the parent itself was blocked, which do not count."""
        now = self._supervision.reactor.seconds()
        self._last_report = min(now, self._last_report + late)
        allowed = self._supervision.timeout if self.up else max(self._supervision.timeout, STARTING)
        if self.pid is not None and now - self._last_report > allowed:
            self._last_report = now
            self.kill(f"it has not answered for {allowed:g} s")

    # -- from the process -------------------------------------------------------------------------------------------

    def received(self, life: int, report: messages.Report) -> None:
        """Handle a report of process number `life`."""
        if isinstance(report, messages.Logged):
            self._supervision.log.take_over(report.record)
            return
        if life != self.life:  # a late message of the previous process
            return
        self._last_report = self._supervision.reactor.seconds()
        if self.silent:
            self.silent = False
            self._event("worker_answers", f"worker {self.index} answers again", pid=self.pid)
        match report:
            case messages.Left(ip=ip):
                self._left(ip)
            case messages.Up():
                self.up = True
                self._event("worker_started", f"worker {self.index} takes connections", pid=self.pid)
                self._came_up()
            case messages.Snapshot():
                self.snapshot = report
                self._answer(report)
            case messages.Disconnected():
                self._answer(report)

    def _left(self, ip: str) -> None:
        """Release the ticket of a connection from this address; which one does not matter."""
        if tickets := self._held.get(ip):
            tickets.pop().release()
            if not tickets:
                del self._held[ip]

    def _answer(self, report: messages.Snapshot | messages.Disconnected) -> None:
        """Give the answer to the order that has waited longest."""
        if self._asked:
            self._asked.popleft().callback(report)
