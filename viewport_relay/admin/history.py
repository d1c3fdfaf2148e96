"""The numbers of the last hour, for the charts of the dashboard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from viewport_relay.admin.capacity import SAMPLE, Capacity
from viewport_relay.admin.state import StateSource
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

#: Seconds between two samples, and how many are kept.
STEP = 5.0
KEPT = 720


def numbers(counters: Counters, state: StateSource) -> dict[str, int]:
    """The numbers of this moment: connections by role, and counters since the start."""
    connections = state.connections()
    return {
        "daemons": connections.get("workspace-daemon", 0),
        "clients": connections.get("client", 0),
        "workers": connections.get("worker", 0),
        "frames": counters.frames_client_to_daemon + counters.frames_daemon_to_clients,
        "refused": counters.refusals.total(),
    }


@define(eq=False)
class History:
    """Samples every STEP seconds of `reactor` while it runs, and lets `capacity` sample every SAMPLE seconds."""

    _counters: Counters
    _state: StateSource
    _reactor: IReactorTime
    _now: Callable[[], float]
    _capacity: Capacity
    #: when a frame was last dropped for a reason, to within STEP seconds; seconds since the epoch
    last_drop: dict[Reason, float] = field(factory=dict, init=False)
    _drops: dict[Reason, int] = field(factory=dict, init=False)
    _samples: deque[dict[str, float]] = field(factory=lambda: deque(maxlen=KEPT), init=False)
    _loops: list[LoopingCall] = field(factory=list, init=False)

    def _sample(self) -> None:
        at = self._now()
        self._samples.append({"at": round(at, 3), **numbers(self._counters, self._state)})
        for reason, count in self._counters.drops.items():
            if count != self._drops.get(reason, 0):
                self._drops[reason], self.last_drop[reason] = count, at

    def start(self) -> None:
        for interval, sample in ((STEP, self._sample), (SAMPLE, self._capacity.sample)):
            loop = LoopingCall(sample)
            loop.clock = self._reactor
            loop.start(interval, now=False)
            self._loops.append(loop)

    def stop(self) -> None:
        while self._loops:
            self._loops.pop().stop()

    def as_json(self) -> dict[str, Any]:
        """Columns rather than rows: a third of the size."""
        names = ("at", "daemons", "clients", "workers", "frames", "refused")
        return {"ok": True, **{name: [row[name] for row in self._samples] for name in names}}
