"""All worker processes of one parent: started, polled and stopped together; for the admin endpoints they are one relay."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList

from viewport_relay.observe.checks import Condition
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import Selection, TargetView
from viewport_relay.service.timers import every
from viewport_relay.wire.heartbeat import STOOD_STILL
from viewport_relay.workers.messages import Disconnect, Disconnected, Flush, Order, Poll, Snapshot, Stop
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
            await DeferredList([worker.request(Poll()) for worker in self.workers])
            self._polled()
            for waiter in waiters:
                waiter.callback(None)
        self._polling = False

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

    def cut(self) -> None:
        """Drop the connections that still drain. A worker that does not exit within the limit is killed."""
        self.send(Stop(now=True))
        self._reactor.callLater(CUT, self.kill)

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill("it has not drained in time")


# -- for the admin endpoints -------------------------------------------------------------------------------------


@frozen(eq=False)
class CrewState:
    """All workers as one relay (`admin.state.StateSource`): sums of their last reports."""

    _crew: Crew
    _stopping: Callable[[], bool]

    def snapshots(self) -> list[Snapshot]:
        """The last `Snapshot` of each worker that has sent one."""
        return [worker.snapshot for worker in self._crew.workers if worker.snapshot is not None]

    def targets(self) -> Sequence[TargetView]:
        return [target for snapshot in self.snapshots() for target in snapshot.targets]

    def connections(self) -> Mapping[str, int]:
        total: Counter[str] = Counter({"workspace-daemon": 0, "client": 0, "worker": 0})
        for snapshot in self.snapshots():
            for role, number in snapshot.connections.items():
                total[role] += number
        return total

    def disconnect(self, selection: Selection) -> Deferred[int]:
        asked = DeferredList([worker.request(Disconnect(selection)) for worker in self._crew.workers])
        return asked.addCallback(
            lambda answers: sum(answer.count for _, answer in answers if isinstance(answer, Disconnected))
        )

    def flush_caches(self) -> None:
        # The packet channel keeps order: the flush arrives before connections that are passed later.
        self._crew.send(Flush())

    def condition(self) -> Condition:
        """The workers' conditions as one: the oldest key set, the newest answer of the platform, all relays that one knows of."""
        told = [snapshot.condition for snapshot in self.snapshots()]
        ages = [one.jwks_age for one in told if one.jwks_age is not None]
        offsets = (one.clock_offset for one in told if one.clock_offset is not None)
        answered = (one.platform_age for one in told if one.platform_age is not None)
        backplanes = [one.backplane for one in told]
        down = [one for one in backplanes if one.get("up") is False]
        backplane = dict(next(iter(down or backplanes), {"mode": "single"}))
        relays = {relay["relayId"]: relay for one in backplanes for relay in one.get("relays", ())}
        if relays:
            backplane["relays"] = [relays[name] for name in sorted(relays)]
        jwks_age = max(ages) if ages and len(ages) == len(told) else None
        ready, why = self._readiness()
        return Condition(ready, why, jwks_age, backplane, next(offsets, None), min(answered, default=None))

    def _readiness(self) -> tuple[bool, str]:
        """Ready when every running worker is. A worker that is being replaced is named; its peers wait for it."""
        if self._stopping():
            return False, Reason.RELAY_SHUTTING_DOWN.code
        workers = self._crew.workers
        answering = [
            worker.snapshot.condition
            for worker in workers
            if worker.snapshot is not None and not worker.silent
        ]
        for condition in answering:
            if not condition.ready:
                return False, condition.why
        silent = sum(worker.silent for worker in workers)
        missing = len(workers) - len(answering) - silent
        if not answering:
            return False, "no worker answers" if silent else "no worker has started yet"
        if silent:
            return True, f"{silent} of {len(workers)} workers do not answer"
        if missing:
            return True, f"{missing} of {len(workers)} workers start"
        return True, next((condition.why for condition in answering if condition.why), "")

    def refresh(self) -> Deferred[None]:
        return self._crew.refresh()

    def processes(self) -> Mapping[str, int]:
        found = {"parent": os.getpid()}
        for number, worker in enumerate(self._crew.workers):
            if worker.pid is not None:
                found[f"worker-{number}"] = worker.pid
        return found
