"""The platform's side of server mode: the bus, and presence. Both are in memory and bounded.

The bus is one queue of frames that relays publish for each other and pull with a long poll. Frames are carried as they
came; signatures are checked by the relays. The queue is bounded in frames, bytes and age, the oldest frames go first.
Presence says which relay holds a target's daemon. The newest report wins; an entry that is not renewed for 45 s is gone.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

MAX_FRAMES = 10_000
MAX_BYTES = 64 * 1_048_576
MAX_AGE_SECONDS = 60.0
MAX_WAITING = 256
MAX_WAIT_SECONDS = 2.0
MAX_LIMIT = 1000
ANSWER_BYTES = 192 * 1024
"""Frames per answer stop here, since relays read 256 KiB; a single larger frame still goes out alone."""
ENTRY_TTL_SECONDS = 45.0
MAX_ENTRIES = 4096


@frozen
class QueuedFrame:
    """A frame on the bus; `size` is its length as JSON, `queued_at` monotonic seconds."""

    frame_id: int
    frame: Mapping[str, object] = field(repr=False)
    size: int
    queued_at: float

    def concerns(self, relay_id: str) -> bool:
        """Whether the frame is for this relay: addressed to it, or to any."""
        addressee = self.frame.get("targetRelayId")
        return addressee is None or addressee == relay_id


class Bus:
    """The frame queue and the pending pulls. `now` gives Unix seconds."""

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        self._clock = clock
        self._queue: deque[QueuedFrame] = deque()
        self._bytes = 0
        # Relays remember the highest id they saw. Starting at the time in milliseconds keeps the ids of a
        # restarted platform above those of the one before.
        self._last_id = int(now() * 1000)
        self._waiting: list[Deferred[None]] = []

    def publish(self, frame: Mapping[str, object]) -> int:
        """Queue any JSON object, unchecked, and wake pending pulls; returns the frame's id."""
        self._last_id += 1
        size = len(json.dumps(frame))
        self._queue.append(QueuedFrame(self._last_id, frame, size, self._clock.seconds()))
        self._bytes += size
        while len(self._queue) > MAX_FRAMES or self._bytes > MAX_BYTES:
            self._drop_oldest()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)
        return self._last_id

    async def pull(
        self, relay_id: str, since_id: float, limit: float, wait: float
    ) -> list[dict[str, object]]:
        """Frames for `relay_id` with an id above `since_id`, each with its `id`, in order.

        `limit` is cut to 1..1000, `wait` to 0..2 s; the list is empty if nothing came within it.
        """
        deadline = self._clock.seconds() + min(max(wait, 0.0), MAX_WAIT_SECONDS)
        while True:
            frames = self._after(relay_id, since_id, min(max(limit, 1), MAX_LIMIT))
            left = deadline - self._clock.seconds()
            if frames or left <= 0 or len(self._waiting) >= MAX_WAITING:
                return frames
            await self._next_frame(left)

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def waiting(self) -> int:
        """The number of pulls that wait."""
        return len(self._waiting)

    async def _next_frame(self, most_seconds: float) -> None:
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        timer = self._clock.callLater(most_seconds, waiter.callback, None)
        try:
            await waiter
        finally:
            # Also reached when the puller has gone and the wait was cancelled.
            if timer.active():
                timer.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _after(self, relay_id: str, since_id: float, limit: float) -> list[dict[str, object]]:
        while self._queue and self._clock.seconds() - self._queue[0].queued_at > MAX_AGE_SECONDS:
            self._drop_oldest()
        found: list[dict[str, object]] = []
        size = 0
        for queued in self._queue:
            if queued.frame_id <= since_id or not queued.concerns(relay_id):
                continue
            size += queued.size
            if found and size > ANSWER_BYTES:
                break
            found.append({**queued.frame, "id": queued.frame_id})
            if len(found) == limit:
                break
        return found

    def _drop_oldest(self) -> None:
        self._bytes -= self._queue.popleft().size


class PresenceTable:
    """Entries by (workspace, target); over MAX_ENTRIES the entry that was renewed longest ago goes.

    An entry has the member names of the wire protocol (section 12). `updatedAtMs` is Unix milliseconds, of `now`.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        #: target -> entry, and when it ends
        self._entries: dict[tuple[str, str], tuple[Mapping[str, Any], float]] = {}

    def announce(
        self,
        workspace_id: str,
        runtime_target_id: str,
        relay_id: str,
        relay_ws_base_url: str,
        machine_id: str | None = None,
    ) -> None:
        """Record that a relay holds the daemon; replaces the entry of another relay."""
        key = (workspace_id, runtime_target_id)
        # Taken out first so that the table stays ordered by renewal.
        self._entries.pop(key, None)
        entry = {
            "relayId": relay_id,
            "relayWsBaseUrl": relay_ws_base_url,
            "daemonConnected": True,
            "runtimeTargetId": runtime_target_id,
            "updatedAtMs": int(self._now() * 1000),
            **({} if machine_id is None else {"machineId": machine_id}),
        }
        self._entries[key] = entry, self._clock.seconds() + ENTRY_TTL_SECONDS
        while len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def withdraw(self, workspace_id: str, runtime_target_id: str, relay_id: str) -> None:
        """A relay lost the daemon. An entry that is another relay's by now stays."""
        entry = self.resolve(workspace_id, runtime_target_id)
        if entry is not None and entry["relayId"] == relay_id:
            del self._entries[workspace_id, runtime_target_id]

    def resolve(self, workspace_id: str, runtime_target_id: str) -> Mapping[str, Any] | None:
        """The live entry of a target, or None."""
        entry, ends = self._entries.get((workspace_id, runtime_target_id), (None, 0.0))
        if entry is not None and self._clock.seconds() > ends:
            del self._entries[workspace_id, runtime_target_id]
            return None
        return entry

    def __len__(self) -> int:
        return len(self._entries)
