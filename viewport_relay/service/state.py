"""One relay as the admin pages see it (`admin.state.StateSource`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.gate import Gate
from viewport_relay.backplane.interface import Backplane
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import Selection, TargetView
from viewport_relay.sessions.build import Relaying


class RelayState:
    """State and commands of a running relay. `now` returns seconds since the epoch, `stopping` whether the relay drains."""

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        relaying: Relaying,
        gate: Gate,
        backplane: Backplane,
        stopping: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._now = now
        self._relaying = relaying
        self._gate = gate
        self._backplane = backplane
        self._stopping = stopping

    def targets(self) -> Sequence[TargetView]:
        return self._relaying.registry.views(self._now() - self._clock.seconds())

    def connections(self) -> Mapping[str, int]:
        return {role.value: number for role, number in self._relaying.registry.joined.items()}

    def disconnect(self, selection: Selection) -> int:
        return self._relaying.sessions.disconnect(selection)

    def flush_caches(self) -> None:
        self._gate.flush()

    def readiness(self) -> tuple[bool, str]:
        if self._stopping():
            return False, Reason.RELAY_SHUTTING_DOWN.code
        ready, why = self._gate.ready()
        backplane = self._backplane.describe()
        if ready and backplane.get("up") is False:
            # Peers of this relay still reach each other: ready, with a note.
            return True, str(backplane.get("reason", Reason.BACKPLANE_UNREACHABLE.code))
        return ready, why

    def jwks_age(self) -> float | None:
        return self._gate.jwks_age_seconds

    def clock_offset(self) -> float | None:
        return self._gate.clock_offset

    def platform_age(self) -> float | None:
        answered = self._gate.platform_answered
        return None if answered is None else max(0.0, self._clock.seconds() - answered)

    def processes(self) -> Mapping[str, int]:
        return {"relay": os.getpid()}

    def backplane(self) -> Mapping[str, Any]:
        return self._backplane.describe()
