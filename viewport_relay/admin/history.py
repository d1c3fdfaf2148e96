"""The last hour in numbers, so that whoever opens the dashboard sees since when something is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from viewport_relay.admin.state import StateSource
from viewport_relay.observe.counters import Counters

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
        at,
        connections.get("workspace-daemon", 0),
        connections.get("client", 0),
        connections.get("worker", 0),
        counters.frames_client_to_daemon + counters.frames_daemon_to_clients,
        counters.refusals.total(),
    )


class History:
    """Samples every STEP seconds of `reactor` while it runs."""

    def __init__(
        self, counters: Counters, state: StateSource, reactor: IReactorTime, now: Callable[[], float]
    ) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._loop = LoopingCall(lambda: self._samples.append(take(counters, state, now())))
        self._loop.clock = reactor

    def start(self) -> None:
        self._loop.start(STEP, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def as_json(self) -> dict[str, Any]:
        """Columns rather than rows: a third of the size."""
        rows = list(self._samples)
        return {
            "ok": True,
            "at": [round(s.at, 3) for s in rows],
            "daemons": [s.daemons for s in rows],
            "clients": [s.clients for s in rows],
            "workers": [s.workers for s in rows],
            "frames": [s.frames for s in rows],
            "refused": [s.refused for s in rows],
        }
