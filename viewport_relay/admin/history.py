"""The numbers of the last hour, for the charts of the dashboard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import fields_dict, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from viewport_relay.admin.capacity import SAMPLE, Capacity
from viewport_relay.admin.state import StateSource
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

#: Seconds between two samples, and how many are kept.
STEP = 5.0
KEPT = 720


@frozen
class Sample:
    """One moment: `at` in seconds since the epoch, connections by role, and counters since the start."""

    at: float
    daemons: int
    clients: int
    workers: int
    frames: int
    refused: int


def take(counters: Counters, state: StateSource, at: float) -> Sample:
    """Read the numbers now."""
    connections = state.connections()
    return Sample(
        round(at, 3),
        connections.get("workspace-daemon", 0),
        connections.get("client", 0),
        connections.get("worker", 0),
        counters.frames_client_to_daemon + counters.frames_daemon_to_clients,
        counters.refusals.total(),
    )


class History:
    """Samples every STEP seconds of `reactor` while it runs, and lets `capacity` sample every SAMPLE seconds."""

    def __init__(
        self,
        counters: Counters,
        state: StateSource,
        reactor: IReactorTime,
        now: Callable[[], float],
        capacity: Capacity,
    ) -> None:
        self._counters = counters
        self._state = state
        self._now = now
        self._capacity = capacity
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._taken = 0
        self._drops: dict[Reason, int] = {}
        #: when a frame was last dropped for a reason, to within STEP seconds; seconds since the epoch
        self.last_drop: dict[Reason, float] = {}
        self._loop = LoopingCall(self._sample)
        self._loop.clock = reactor

    def _sample(self) -> None:
        at = self._now()
        self._samples.append(take(self._counters, self._state, at))
        for reason, count in self._counters.drops.items():
            if count != self._drops.get(reason, 0):
                self._drops[reason], self.last_drop[reason] = count, at
        self._taken += 1
        if self._taken % round(SAMPLE / STEP) == 0:
            self._capacity.sample()

    def start(self) -> None:
        self._loop.start(STEP, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def as_json(self) -> dict[str, Any]:
        """Columns rather than rows: a third of the size."""
        columns = {name: [getattr(row, name) for row in self._samples] for name in fields_dict(Sample)}
        return {"ok": True, **columns}
