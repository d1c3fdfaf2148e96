"""All workers of one parent: asked once a second, stopped together, shown as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList

from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.wire.heartbeat import STOOD_STILL
from viewport_relay.workers.messages import Ask, Disconnect, Disconnected, Order, Stop
from viewport_relay.workers.place import Supervision, Worker

#: Seconds between two questions to everybody.
LOOK: Final = 1.0

#: Seconds that workers have to end when they are told to cut whoever is left.
CUT: Final = 4.0


class Crew:
    """All workers of one parent.

    `timeout` is how long a worker may stand still, seconds. `counters` are the parent's own. `environment` gives the
    environment of the worker with a number. `heard` is called when all pictures were renewed, `complete` whenever the last
    worker that was missing has come.
    """

    def __init__(
        self,
        reactor: Any,
        number: int,
        timeout: float,
        log: EventLog,
        counters: Counters,
        environment: Callable[[int], Mapping[str, str]],
        heard: Callable[[], None],
        complete: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self.stopping = False
        #: counters of workers that are gone, as they last told them
        self.retired: list[Mapping[str, Any]] = []
        self._devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        supervision = Supervision(
            reactor,
            timeout,
            log,
            counters,
            environment,
            self._devnull,
            lambda: self.stopping,
            self.retired.append,
            self._one_is_up,
        )
        self.workers = [Worker(supervision, index) for index in range(number)]
        self._heard = heard
        self._complete = complete
        self._number = 0
        self._next_look = 0.0
        self._asking: list[Deferred[None]] | None = None
        self._next: list[Deferred[None]] = []

    def start(self) -> None:
        """Start all, and look after them: `look` is to be called every LOOK seconds."""
        self._next_look = self._reactor.seconds() + LOOK
        for worker in self.workers:
            worker.start()

    def _one_is_up(self) -> None:
        self.refresh()
        if all(worker.up for worker in self.workers):
            self._complete()

    def look(self) -> None:
        """Every LOOK seconds: renew the pictures, and see who stands still."""
        if self.stopping:
            return
        now = self._reactor.seconds()
        late, self._next_look = now - self._next_look, now + LOOK
        for worker in self.workers:
            worker.look(late if late > STOOD_STILL else 0.0)
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
        self,
        workspace_id: str | None,
        runtime_target_id: str | None,
        connection_id: str | None,
        token_id: str | None,
    ) -> Deferred[int]:
        """How many connections were closed in all."""
        self._number += 1
        order = Disconnect(self._number, workspace_id, runtime_target_id, connection_id, token_id)
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
        """Whoever drains still: cut. A worker that does not even do that is killed."""
        self.send(Stop(now=True))
        self._reactor.callLater(CUT, self.kill)

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill("it has not drained in time")

    def close(self) -> None:
        os.close(self._devnull)
