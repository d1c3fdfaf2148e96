"""The parent's supervision of its workers, with a fake clock: unresponsive workers, failed starts, waits."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from viewport_relay.admission.limits import ConnectionCounts, UpgradeLimits
from viewport_relay.observe.checks import Condition
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog, LogReport
from viewport_relay.observe.problems import ProblemsReport
from viewport_relay.routing.views import Selection
from viewport_relay.workers import crew, messages, supervision
from viewport_relay.workers.snapshots import serialised

TIMEOUT = 20.0


class Process:
    """Test double of the result of `spawnProcess`: has its end of the packet channel, and ends when it is killed."""

    def __init__(self, reactor: Reactor, protocol: Any, packets: int) -> None:
        self.pid: int | None = 1000 + len(reactor.started)
        self._protocol = protocol
        self._packets = socket.socket(fileno=os.dup(packets))

    def orders(self) -> Iterator[messages.Order]:
        """The orders that have arrived since the last call."""
        while self.pid is not None and select.select([self._packets], [], [], 0)[0]:
            yield messages.decode_order(self._packets.recv(messages.MAX_PACKET).partition(b"\n")[0])

    def signalProcess(self, name: str) -> None:
        assert name == "KILL"
        self.die(signal=9)

    def die(self, *, signal: int | None = None, status: int | None = None) -> None:
        self.pid = None
        self._packets.close()
        self._protocol.processEnded(Failure(ProcessTerminated(exitCode=status, signal=signal)))


class Line:
    def __init__(self) -> None:
        self.cut = False

    def abortConnection(self) -> None:
        self.cut = True


class Reactor(Clock):
    """A clock with test doubles for processes and channels."""

    def __init__(self) -> None:
        Clock.__init__(self)
        self.started: list[Process] = []
        self.lines: list[Line] = []
        self.failures: list[OSError] = []

    def spawnProcess(self, protocol: Any, *_: object, childFDs: dict[int, Any], **__: object) -> Process:
        if self.failures:
            raise self.failures.pop()
        self.started.append(Process(self, protocol, childFDs[messages.PACKETS_FD]))
        return self.started[-1]

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> Line:
        self.lines.append(Line())
        return self.lines[-1]

    def addWriter(self, writer: Any) -> None: ...

    def removeWriter(self, writer: Any) -> None: ...

    def removeReader(self, reader: Any) -> None: ...


class Parent:
    """A parent with two workers; the workers in `alive` answer every question."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.out = io.StringIO()
        log = EventLog(self.out, max_entries=100)
        self.counters = Counters()
        shared = supervision.Supervision(self.reactor, TIMEOUT, log, self.counters, lambda index: {})
        self.crew = crew.Crew(shared, 2, lambda: None, lambda: None)
        self.state = crew.CrewState(self.crew, lambda: False)
        self.alive = {0, 1}
        self.crew.startService()
        for worker in self.crew.workers:
            self.deliver(worker, messages.Up())
        self.answer()

    def deliver(self, worker: supervision.Worker, report: messages.Report) -> None:
        worker.received(worker.life, report)

    def answer(self) -> None:
        workers = {worker.pid: worker for worker in self.crew.workers if worker.index in self.alive}
        for process in self.reactor.started:
            for order in process.orders() if process.pid in workers else ():
                worker = workers[process.pid]
                if isinstance(order, messages.Poll):
                    snapshot = messages.Snapshot(
                        Condition(True, "", None, {}),
                        {"client": 1},
                        [],
                        serialised(Counters()),
                        LogReport([], [], ProblemsReport([], (0, 0)), [], 0),
                    )
                    self.deliver(worker, snapshot)
                elif isinstance(order, messages.Disconnect):
                    self.deliver(worker, messages.Disconnected(2 + worker.index))

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.reactor.advance(crew.LOOK)
            self.answer()

    def events(self, *names: str) -> list[tuple[str, str]]:
        entries = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [(e["event"], e["message"]) for e in entries if not names or e["event"] in names]


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.reactor.advance(supervision.LONGEST_PAUSE)  # a worker that is started again has its process
    made.crew.stop()
    for process in made.reactor.started:
        if process.pid is not None:
            process.die(status=0)


def test_an_unresponsive_worker_is_logged_then_killed_and_replaced(parent: Parent) -> None:
    parent.run(5)
    parent.alive = {0}
    parent.run(int(supervision.PATIENCE) + 2)
    ((event, message),) = parent.events("worker_silent", "worker_killed", "worker_lost")
    assert event == "worker_silent" and "worker 1 does not answer" in message and "20 s" in message
    condition = parent.state.condition()
    assert (condition.ready, condition.why) == (True, "1 of 2 workers do not answer")
    parent.run(int(TIMEOUT))
    (_, _), (killed, why), (lost, what) = parent.events("worker_silent", "worker_killed", "worker_lost")
    assert (killed, why) == ("worker_killed", "worker 1: it has not answered for 20 s")
    assert lost == "worker_lost" and "was killed: it has not answered for 20 s; its peers reconnect" in what
    assert len(parent.reactor.started) == 3
    parent.alive = {0, 1}
    parent.deliver(parent.crew.workers[1], messages.Up())
    parent.run(60)
    condition = parent.state.condition()
    assert len(parent.reactor.started) == 3 and (condition.ready, condition.why) == (True, "")


def test_a_worker_that_answers_again_is_not_killed(parent: Parent) -> None:
    parent.alive = {0}
    parent.run(int(TIMEOUT) - 2)
    parent.alive = {0, 1}
    parent.run(30)
    assert [event for event, _ in parent.events("worker_silent", "worker_answers", "worker_killed")] == [
        "worker_silent",
        "worker_answers",
    ]


def test_a_starting_worker_has_a_longer_limit(parent: Parent) -> None:
    parent.reactor.started[1].die(signal=11)
    parent.run(int(supervision.STARTING) - 2)
    assert parent.events("worker_killed") == []
    parent.run(5)
    assert parent.events("worker_killed") == [("worker_killed", "worker 1: it has not answered for 60 s")]


def test_a_parent_that_was_stopped_kills_no_worker(parent: Parent) -> None:
    """After SIGSTOP or a suspend the workers were not asked, so no answer is missing."""
    parent.run(5)
    parent.reactor.advance(1000)
    assert parent.events("worker_killed", "worker_lost") == []
    parent.run(60)
    assert len(parent.reactor.started) == 2
    parent.alive = {0}  # a worker that stops later is still detected
    parent.run(int(TIMEOUT) + 4)
    assert len(parent.events("worker_killed")) == 1


def test_an_unresponsive_worker_does_not_delay_answers(parent: Parent) -> None:
    parent.run(3)
    parent.alive = {0}
    parent.run(int(supervision.PATIENCE) + 2)
    for _ in range(3):
        waits = parent.crew.refresh()  # a round in progress ends first
        for _ in range(2):
            parent.answer()
            assert not waits.called
            parent.reactor.advance(supervision.BRIEF)
            if waits.called:
                break
        assert waits.called
    assert (
        parent.state.connections()["client"] == 2
    )  # the last report still counts: the worker's peers are connected


def test_late_answers_are_not_taken_for_those_of_later_orders(parent: Parent) -> None:
    parent.run(3)
    parent.alive = {0}
    parent.run(int(supervision.PATIENCE) + 2)
    results: list[int] = []
    parent.state.disconnect(Selection(workspace_id="w")).addCallback(results.append)
    parent.alive = {0, 1}  # worker 1 answers old polls first
    parent.answer()
    assert results == [5]


def test_an_order_that_cannot_be_sent_is_not_waited_for(parent: Parent) -> None:
    parent.run(3)
    results: list[int] = []
    parent.state.disconnect(Selection(workspace_id="w" * messages.MAX_PACKET)).addCallback(results.append)
    assert results == [0]
    parent.state.disconnect(Selection(workspace_id="w")).addCallback(results.append)
    parent.answer()
    assert results == [0, 5]


@pytest.mark.parametrize(
    ("status", "number", "said"),
    [
        (None, 9, "was ended by signal 9 (Killed), which was not sent by its parent"),
        (None, 40, "was ended by signal 40"),
        (3, None, "ended with status 3"),
        (0, None, "ended with status 0"),
    ],
)
def test_the_log_entry_of_a_lost_worker(
    parent: Parent, status: int | None, number: int | None, said: str
) -> None:
    parent.reactor.started[0].die(status=status, signal=number)
    ((_, message),) = parent.events("worker_lost")
    assert message.startswith(f"worker 0 {said}") and parent.counters.worker_processes_lost == 1


def test_a_failed_start_is_repeated(parent: Parent) -> None:
    """fork fails (pids.max, memory): the start is repeated later."""
    parent.reactor.failures = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) for _ in range(3)]
    counts = ConnectionCounts(UpgradeLimits())
    near, far = socket.socketpair()
    far.close()
    assert parent.crew.workers[1].adopt(near, "192.0.2.1", b"", counts.take("192.0.2.1"))
    parent.reactor.started[1].die(signal=9)
    parent.run(30)
    messages_ = [message for _, message in parent.events("worker_lost")]
    assert len(messages_) == 4 and messages_[1].startswith(
        "worker 1 could not be started: Resource temporarily unavailable"
    )
    assert len(parent.reactor.started) == 3
    assert [line.cut for line in parent.reactor.lines] == [False, False, True, True, True, False]
    assert counts.total == 0  # the connection that the ended process held is counted no longer
    assert parent.events("worker_killed") == []


def test_no_descriptors_for_a_new_workers_channel(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failing = supervision.socket_pair, [True, True]

    def pair() -> Any:
        if failing:
            failing.pop()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    monkeypatch.setattr(supervision, "socket_pair", pair)
    parent.reactor.started[0].die(signal=9)
    parent.run(20)
    assert len(parent.reactor.started) == 3 and not failing


def test_an_unresponsive_worker_does_not_delay_a_second_signal(parent: Parent) -> None:
    stopped = parent.crew.stop()
    parent.reactor.started[0].die(status=0)
    parent.crew.cut()
    assert not stopped.called
    parent.reactor.advance(crew.CUT)
    assert stopped.called
    assert [event for event, _ in parent.events("worker_lost", "worker_killed")] == [
        "worker_killed",
        "worker_lost",
    ]
