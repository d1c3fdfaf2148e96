"""Notices when two relays that run have one RELAY_ID: they would read one queue, and each would lose half of its frames.

    PREFIX:instance:RELAYID   a random value of the process that wrote last, with a TTL

Each process writes its own from time to time and looks at what was there. One foreign value is what a restart leaves
behind; two in a row are somebody who writes too.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.observe.sink import EventSink

#: Foreign values in a row that are no coincidence.
_TWICE: Final = 2


class Marker(Protocol):
    """Where the value is kept."""

    async def mark(self, value: str) -> str | None:
        """Write it; what was there before. Raises CarrierFailed."""


class InstanceWatch:
    """Looks every `interval` seconds (at least 0.02) and logs `relay_id_shared`."""

    def __init__(
        self, clock: IReactorTime, marker: Marker, relay_id: str, interval: float, log: EventSink
    ) -> None:
        self._marker = marker
        self._relay_id = relay_id
        self._interval = max(0.02, interval)
        self._log = log
        self._ours = os.urandom(12).hex()
        self._foreign = 0
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        self._loop.start(self._interval)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._compare())

    async def _compare(self) -> None:
        try:
            there = await self._marker.mark(self._ours)
        except CarrierFailed:  # an outage is told by others
            return
        self._foreign = self._foreign + 1 if there not in (None, self._ours) else 0
        if self._foreign >= _TWICE:
            self._log.event(
                "relay_id_shared",
                level="error",
                message=f"another running relay has RELAY_ID={self._relay_id} too: they take frames from each other; "
                "give each relay its own",
            )
