"""The numbers of the last hour, for the charts of the dashboard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, field

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
    """The samples. `sample` is to be called every STEP seconds."""

    _counters: Counters
    _state: StateSource
    _now: Callable[[], float]
    #: when a frame was last dropped for a reason, to within STEP seconds; seconds since the epoch
    last_drop: dict[Reason, float] = field(factory=dict, init=False)
    _drops: dict[Reason, int] = field(factory=dict, init=False)
    _samples: deque[dict[str, float]] = field(factory=lambda: deque(maxlen=KEPT), init=False)

    def sample(self) -> None:
        at = self._now()
        self._samples.append({"at": round(at, 3), **numbers(self._counters, self._state)})
        for reason, count in self._counters.drops.items():
            if count != self._drops.get(reason, 0):
                self._drops[reason], self.last_drop[reason] = count, at

    def as_json(self) -> dict[str, Any]:
        """Columns rather than rows: a third of the size."""
        names = ("at", "daemons", "clients", "workers", "frames", "refused")
        return {"ok": True, **{name: [row[name] for row in self._samples] for name in names}}
