"""All worker processes of one parent: polled once a second, stopped together, reported as one relay."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList

from viewport_relay.routing.views import Selection
from viewport_relay.service.timers import every
from viewport_relay.wire.heartbeat import STOOD_STILL
from viewport_relay.workers.messages import Disconnect, Disconnected, Order, Poll, Stop
from viewport_relay.workers.supervision import Supervision, Worker

#: Seconds between two polls of all workers.
LOOK: Final = 1.0

#: Seconds that a worker may take to exit after it was ordered to drop its remaining connections.
CUT: Final = 4.0


class Crew(MultiService):
    """All worker processes of one parent, as a service that starts and polls them; `stop` ends them.

    `polled` is called after each poll, `complete` when the last missing worker is up.
    """

    def __init__(
        self, supervision: Supervision, number: int, polled: Callable[[], None], complete: Callable[[], None]
    ) -> None:
        MultiService.__init__(self)
        self._supervision = supervision
        self._reactor = supervision.reactor
        self.workers = [Worker(supervision, index, self._one_is_up) for index in range(number)]
        self._polled = polled
        self._complete = complete
        self._number = 0
        self._turn = 0
        self._next_look = 0.0
        self._polling = False
        self._waiting: list[Deferred[None]] = []
        every(self, self._reactor, LOOK, self.look)

    def startService(self) -> None:
        """Start all workers."""
        self._next_look = self._reactor.seconds() + LOOK
        for worker in self.workers:
            worker.start()
        MultiService.startService(self)

    def _one_is_up(self) -> None:
        self.refresh()
        if all(worker.up for worker in self.workers):
            self._complete()

    def look(self) -> None:
        """Poll all workers and kill those that do not answer. Called every LOOK seconds."""
        if self._supervision.stopping:
            return
        now = self._reactor.seconds()
        late, self._next_look = now - self._next_look, now + LOOK
        for worker in self.workers:
            worker.look(late if late > STOOD_STILL else 0.0)
        if not self._polling:
            self.refresh()

    def refresh(self) -> Deferred[None]:
        """Fire when every worker has answered a poll that began after this call, or has timed out.

        One poll runs at a time. Calls made during a poll share the next one.
        """
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        if not self._polling:
            Deferred.fromCoroutine(self._poll())
        return waiter

    async def _poll(self) -> None:
        self._polling = True
        while self._waiting:
            waiters, self._waiting = self._waiting, []
            self._number += 1
            await DeferredList([worker.request(Poll(self._number)) for worker in self.workers])
            self._polled()
            for waiter in waiters:
                waiter.callback(None)
        self._polling = False

    def disconnect(self, selection: Selection) -> Deferred[int]:
        """Close the connections of a selection in all workers; fires with their number."""
        self._number += 1
        order = Disconnect(self._number, selection)
        asked = DeferredList([worker.request(order) for worker in self.workers])
        return asked.addCallback(
            lambda answers: sum(answer.count for _, answer in answers if isinstance(answer, Disconnected))
        )

    def send(self, order: Order) -> None:
        for worker in self.workers:
            worker.send(order)

    def end_tls(self, tcp: socket.socket, pair: socket.socket, data: bytes) -> bool:
        """Let a worker end TLS on a connection: the workers in turn, one that is up before others. False: no room."""
        self._turn += 1
        first = self._turn % len(self.workers)
        ordered = sorted(self.workers[first:] + self.workers[:first], key=lambda worker: not worker.up)
        return any(worker.end_tls(tcp, pair, data) for worker in ordered)

    def stop(self) -> Deferred[Any]:
        """Drain all workers; fires when all processes have exited."""
        self._supervision.stopping = True
        return DeferredList([worker.stop() for worker in self.workers])

    def end_at_once(self) -> None:
        """Drop the connections that still drain. A worker that does not exit within the limit is killed."""
        self.send(Stop(now=True))
        self._reactor.callLater(CUT, self.kill)

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill("it has not drained in time")
