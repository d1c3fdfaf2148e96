"""Queues that are not read: told from the lengths that pushes give, without asking Redis anything more.

A relay that reads its queue shortens it between two pushes. One that was killed leaves presence entries that live on for up to
45 s, and frames for it would go nowhere without a word.
"""

from __future__ import annotations

from typing import Final

from attrs import define
from twisted.internet.interfaces import IReactorTime

#: Seconds, and pushes, during which a queue only grows before its relay counts as one that does not read.
SILENT_AFTER: Final = 3.0
SILENT_PUSHES: Final = 4
#: Seconds between two pushes to such a relay, which find out whether it reads again.
PROBE_EVERY: Final = 1.0
#: Relays that are remembered.
_MOST_RELAYS: Final = 1024


@define(eq=False)
class _Queue:
    length: int
    pushed_at: float
    grows_since: float
    grown: int = 0  # pushes in a row that found nothing taken

    def is_unread(self, now: float) -> bool:
        return self.grown >= SILENT_PUSHES and now - self.grows_since >= SILENT_AFTER


class UnreadQueues:
    """The queues of other relays as the latest pushes left them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queues: dict[str, _Queue] = {}

    def pushed(self, relay_id: str, elements: int, length: int, *, trimmed: bool = False) -> bool:
        """Note a push of so many elements and the length of the queue then; whether the queue is read, as far as is known.

        `trimmed`: the queue was full, so that it did not grow.
        """
        now = self._clock.seconds()
        queue = self._queues.get(relay_id)
        if queue is None:
            if len(self._queues) >= _MOST_RELAYS:
                del self._queues[next(iter(self._queues))]
            self._queues[relay_id] = _Queue(length, now, now)
            return True
        if trimmed or length >= queue.length + elements:
            if not queue.grown:  # not before: between two pushes there may have been an outage
                queue.grows_since = now
            queue.grown += 1
        else:
            queue.grown = 0
        queue.length, queue.pushed_at = length, now
        return not queue.is_unread(now)

    def takes(self, relay_id: str) -> bool:
        """Whether to push to this relay: its queue is read, or it is time to find out."""
        queue = self._queues.get(relay_id)
        now = self._clock.seconds()
        return queue is None or not queue.is_unread(now) or now - queue.pushed_at >= PROBE_EVERY

    def length(self, relay_id: str) -> int:
        """The length that the latest push left; 0 for a relay that was not pushed to."""
        queue = self._queues.get(relay_id)
        return 0 if queue is None else queue.length
