"""The workers as their parent sees them: processes in numbered places, each with what it last told.

    spawned -> Up -> takes connections -> ended -> spawned again after a while

A place's connections are counted here, so that they are given back when its worker dies.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import Ticket
from viewport_relay.observe.logs import EventLog
from viewport_relay.workers.messages import (
    MAX_LINE,
    Adopt,
    Ask,
    Disconnect,
    Disconnected,
    Left,
    Order,
    Picture,
    Said,
    Stop,
    Up,
    decode_word,
)
from viewport_relay.workers.packets import PacketSender, socket_pair

#: The worker's descriptors of its two channels.
PACKETS_FD: Final = 3
WORDS_FD: Final = 4

#: Seconds before a worker that ended is started again: doubled each time, from the start after it lived for LIVED.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
LIVED: Final = 60.0

#: Seconds without an answer after which a worker counts as standing still, and is killed.
STALLED: Final = 60.0

#: Seconds that a question to a worker may take.
PATIENCE: Final = 5.0


class _Words(LineOnlyReceiver):
    """The parent's end of a worker's words."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE

    def __init__(self, worker: Worker, life: int) -> None:
        self._worker = worker
        self._life = life

    def lineReceived(self, line: bytes) -> None:
        self._worker.heard_word(line, self._life)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._worker.kill("it said too much at once")


class _Process(ProcessProtocol):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def processEnded(self, reason: Failure) -> None:
        status, signal = getattr(reason.value, "exitCode", None), getattr(reason.value, "signal", None)
        self._worker.ended(status, signal)


class _WordsFactory:
    """What `adoptStreamConnection` asks for."""

    def __init__(self, worker: Worker, life: int) -> None:
        self._worker = worker
        self._life = life

    def buildProtocol(self, address: Any) -> _Words:
        return _Words(self._worker, self._life)


class Worker:
    """One place and the process in it."""

    def __init__(self, crew: Crew, index: int) -> None:
        self._crew = crew
        self.index = index
        self.up = False
        self.picture: Picture | None = None
        #: how many processes this place has had before
        self.life = 0
        self._process: Any = None
        # Made before its process is, so that connections can wait there.
        self._theirs: socket.socket
        self._packets: PacketSender
        self._make_channel()
        self._held: dict[str, list[Ticket]] = {}
        self._asked: dict[int, Deferred[Any]] = {}
        self._pause = FIRST_PAUSE
        self._started = 0.0
        self._heard = 0.0
        self._again: IDelayedCall | None = None
        self._gone: Deferred[None] | None = None

    # -- the process ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start its process. Connections may be given at once, they wait for it."""
        crew = self._crew
        self._again = None
        self._started = self._heard = crew.reactor.seconds()
        theirs = self._theirs
        words, their_words = socket.socketpair()
        try:
            self._process = crew.reactor.spawnProcess(
                _Process(self),
                sys.executable,
                [sys.executable, "-m", "viewport_relay.workers.worker", str(self.index)],
                env=crew.environment(self.index),
                childFDs={
                    0: crew.nothing,
                    1: 2,
                    2: 2,
                    PACKETS_FD: theirs.fileno(),
                    WORDS_FD: their_words.fileno(),
                },
            )
        finally:
            theirs.close()
            their_words.close()
        words.setblocking(False)
        crew.reactor.adoptStreamConnection(words.fileno(), socket.AF_UNIX, _WordsFactory(self, self.life))
        words.close()

    def _make_channel(self) -> None:
        ours, self._theirs = socket_pair()
        self._packets = PacketSender(ours, self._crew.reactor)

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        pid: int | None = getattr(self._process, "pid", None)
        return pid

    def kill(self, why: str) -> None:
        """End it at once; what follows is the same as when it dies by itself."""
        if self.pid is not None:
            self._crew.log.event("worker_killed", level="error", message=f"worker {self.index}: {why}")
            self._process.signalProcess("KILL")

    def ended(self, status: int | None, signal: int | None) -> None:
        """Its process is gone."""
        crew = self._crew
        self._process, self.up = None, False
        self.life += 1
        self._packets.close()
        if self.picture is not None:
            crew.retired.append(self.picture.counters)
            self.picture = None
        for tickets in self._held.values():
            for ticket in tickets:
                ticket.release()
        self._held.clear()
        for asked in list(self._asked.values()):
            asked.callback(None)
        self._asked.clear()
        if self._gone is not None:
            self._gone.callback(None)
            self._gone = None
        if crew.stopping:
            if status != 0:
                crew.log.event("worker_lost", level="error", message=self._obituary(status, signal))
            return
        lived = crew.reactor.seconds() - self._started
        self._pause = FIRST_PAUSE if lived >= LIVED else min(2 * self._pause, LONGEST_PAUSE)
        message = f"{self._obituary(status, signal)}; its peers reconnect, a new one starts"
        crew.log.event(
            "worker_lost", level="error", message=message, worker=self.index, lived=round(lived, 1)
        )
        self._make_channel()
        self._again = crew.reactor.callLater(self._pause if lived < LIVED else 0, self.start)

    def _obituary(self, status: int | None, signal: int | None) -> str:
        how = f"signal {signal}" if signal is not None else f"status {status}"
        return f"worker {self.index} ended with {how}"

    # -- to it ---------------------------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, ip: str, data: bytes, ticket: Ticket) -> bool:
        """Give it a connection. False: it takes none now."""
        if not self._packets.send(Adopt(sock.family, ip), sock, data):
            return False
        self._held.setdefault(counted_as(ip), []).append(ticket)
        return True

    def send(self, order: Order) -> None:
        self._packets.send(order)

    def ask(self, order: Ask | Disconnect) -> Deferred[Any]:
        """Its answer, or None when it does not come in time."""
        answer: Deferred[Any] = Deferred()
        if not self.up:
            answer.callback(None)
            return answer
        self._asked[order.number] = answer
        self._packets.send(order)
        answer.addTimeout(PATIENCE, self._crew.reactor, lambda failure, _: self._unanswered(order.number))
        return answer

    def _unanswered(self, number: int) -> None:
        self._asked.pop(number, None)

    def stop(self) -> Deferred[None]:
        """Let it drain; fires when it is gone."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        gone: Deferred[None] = Deferred()
        if self._process is None:
            gone.callback(None)
        else:
            self._gone = gone
            self.send(Stop())
        return gone

    def look(self) -> None:
        """Kill it when it stands still."""
        if self.pid is not None and self._crew.reactor.seconds() - self._heard > STALLED:
            self._heard = self._crew.reactor.seconds()
            self.kill(f"it has not answered for {STALLED:g} s")

    # -- from it -------------------------------------------------------------------------------------------

    def heard_word(self, line: bytes, life: int) -> None:
        word = decode_word(line)
        if isinstance(word, Said):
            self._crew.log.take_over(word.record)
            return
        if life != self.life:  # the last words of the one before: its connections are given back already
            return
        self._heard = self._crew.reactor.seconds()
        if isinstance(word, Left):
            tickets = self._held.get(word.ip)
            if tickets:
                tickets.pop().release()
                if not tickets:
                    del self._held[word.ip]
        elif isinstance(word, Up):
            self.up = True
            self._crew.log.event(
                "worker_started",
                message=f"worker {self.index} takes connections",
                worker=self.index,
                pid=self.pid,
            )
            self._crew.one_is_up()
        else:
            if isinstance(word, Picture):
                self.picture = word
            asked = self._asked.pop(word.number, None)
            if asked is not None and not asked.called:
                asked.callback(word)


class Crew:
    """All workers of one parent.

    `environment` gives the environment of the worker with a number. `heard` is called when all pictures were renewed,
    `complete` whenever the last worker that was missing has come.
    """

    def __init__(
        self,
        reactor: Any,
        number: int,
        log: EventLog,
        environment: Callable[[int], Mapping[str, str]],
        heard: Callable[[], None],
        complete: Callable[[], None],
    ) -> None:
        self.reactor = reactor
        self.log = log
        self.environment = environment
        self.workers = [Worker(self, index) for index in range(number)]
        self.stopping = False
        #: counters of workers that are gone, as they last told them
        self.retired: list[Mapping[str, Any]] = []
        self.nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._heard = heard
        self._complete = complete
        self._number = 0
        self._asking: list[Deferred[None]] | None = None
        self._next: list[Deferred[None]] = []

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    def one_is_up(self) -> None:
        """For workers."""
        self.refresh()
        if all(worker.up for worker in self.workers):
            self._complete()

    def look(self) -> None:
        """Once a second: renew the pictures, and see who stands still."""
        if self.stopping:
            return
        for worker in self.workers:
            worker.look()
        if self._asking is None:
            self.refresh()

    def refresh(self) -> Deferred[None]:
        """Fires when every worker has answered a question that was put after this call, or did not in time.

        One round at a time: whoever comes while one is under way shares the next.
        """
        waiter: Deferred[None] = Deferred()
        if self._asking is None:
            self._asking = [waiter]
            self._round()
        else:
            self._next.append(waiter)
        return waiter

    def _round(self) -> None:
        self._number += 1
        asked = DeferredList([worker.ask(Ask(self._number)) for worker in self.workers])
        asked.addCallback(self._answered)

    def _answered(self, _: object) -> None:
        self._heard()
        done, following = self._asking or [], self._next
        self._asking, self._next = following or None, []
        for waiter in done:
            waiter.callback(None)
        if following:
            self._round()

    def disconnect(
        self, workspace_id: str | None, runtime_target_id: str | None, connection_id: str | None
    ) -> Deferred[int]:
        """How many connections were closed in all."""
        self._number += 1
        order = Disconnect(self._number, workspace_id, runtime_target_id, connection_id)
        asked = DeferredList([worker.ask(order) for worker in self.workers])
        return asked.addCallback(
            lambda answers: sum(answer.count for _, answer in answers if isinstance(answer, Disconnected))
        )

    def send(self, order: Order) -> None:
        for worker in self.workers:
            worker.send(order)

    def stop(self) -> Deferred[Any]:
        """Let all drain; fires when they are gone."""
        self.stopping = True
        return DeferredList([worker.stop() for worker in self.workers])

    def end_at_once(self) -> None:
        """Whoever drains still: cut."""
        self.send(Stop(now=True))

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill("it has not drained in time")

    def close(self) -> None:
        os.close(self.nothing)
