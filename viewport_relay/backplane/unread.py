"""Bus frames that another relay has not read: taken back out of its queue, so that their loss is counted and reported.

A relay that was killed leaves presence entries that live on for up to 45 s, and frames for it would be lost without a
log entry or an answer. Each push tells the length of the queue then: of what this relay pushed, only that many
elements can still be in it. What is in it for too long is taken back, each element in one step, so that no frame is
both reported as lost and delivered. The queue is looked through in parts, for Redis answers nothing else meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from hashlib import sha1
from typing import Final

import msgspec
from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from viewport_relay.backplane.batch import MAGIC, MARK
from viewport_relay.backplane.interface import BEGINNING, BusFrame, Carrier, CarrierFailed, Parcel

#: Seconds in a queue after which an element is taken back.
SILENT_AFTER: Final = 3.0
#: Seconds between two pushes to a relay that does not read, which find out whether it reads again; each is taken back as late.
PROBE_EVERY: Final = 0.5
#: Seconds between two looks at what was pushed.
LOOK_EVERY: Final = 0.25
#: Seconds after the last push at which a relay that does not read is forgotten.
_FORGOTTEN: Final = 60.0
#: Relays, and elements for each, that are remembered.
_MOST_RELAYS: Final = 1024
_MOST_ELEMENTS: Final = 4096
#: Parts of a queue that are looked through in a row; what is not found by then is looked for again LOOK_EVERY later.
_MOST_PARTS: Final = 256


class _Pushed(msgspec.Struct, gc=False):
    """One element of a relay's queue, and the messages in it."""

    mark: bytes
    parcels: Sequence[Parcel]
    size: int  # bytes of the payloads
    at: float  # monotonic seconds


def mark_of(frame: BusFrame) -> bytes:
    """The mark of an element in a queue: a batch's tag, the SHA-1 of a signed frame, as Redis's Lua computes it too."""
    if frame[: len(MAGIC)] == MAGIC:
        return bytes(frame[MARK])
    return sha1(frame, usedforsecurity=False).hexdigest().encode()


@define(eq=False)
class _Queue:
    """The elements that may still be in the queue of one relay."""

    pushed_at: float = 0.0
    pushed: deque[_Pushed] = Factory(deque)
    size: int = 0  # bytes of `pushed`
    unread: bool = False
    asking: bool = False

    def forget_oldest(self) -> None:
        self.size -= self.pushed.popleft().size

    def forget(self, gone: Container[bytes]) -> None:
        """Forget the elements with these marks."""
        self.pushed = deque([element for element in self.pushed if element.mark not in gone])
        self.size = sum([element.size for element in self.pushed])


class UnreadQueues:
    """Elements that this relay pushed into queues of other relays, which may not have read them.

    `most_bytes` bounds the payloads that are remembered for one relay: of more, only what is trimmed is counted. `lost` gets the
    relay's id, the messages that were taken back, and whether its queue counted as read until then.
    """

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        lost: Callable[[str, Sequence[Parcel], bool], None],
        most_bytes: int,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._lost = lost
        self._most_bytes = most_bytes
        self._queues: dict[str, _Queue] = {}
        self._next_look: IDelayedCall | None = None

    def takes(self, relay_id: str) -> bool:
        """Whether to push to this relay: its queue is read, or it is time to find out."""
        queue = self._queues.get(relay_id)
        if queue is None or not queue.unread:
            return True
        return self._clock.seconds() - queue.pushed_at >= PROBE_EVERY

    def pushed(
        self, relay_id: str, elements: Sequence[tuple[BusFrame, Sequence[Parcel]]], length: int
    ) -> None:
        """Note a push, its elements with the messages in each, and the length of the queue then."""
        queue = self._queues.get(relay_id)
        if queue is None:
            if len(self._queues) >= _MOST_RELAYS:
                del self._queues[next(iter(self._queues))]
            queue = self._queues[relay_id] = _Queue()
        queue.pushed_at = now = self._clock.seconds()
        for frame, parcels in elements:
            size = sum([parcel.size for parcel in parcels])
            queue.pushed.append(_Pushed(mark_of(frame), parcels, size, now))
            queue.size += size
        if len(queue.pushed) > max(length, len(elements)):
            queue.unread = False  # what was pushed before has been read meanwhile
        length = min(length, _MOST_ELEMENTS)
        while len(queue.pushed) > length or (queue.size > self._most_bytes and len(queue.pushed) > 1):
            queue.forget_oldest()
        if self._next_look is None:
            self._next_look = self._clock.callLater(LOOK_EVERY, self._look)

    def stop(self) -> None:
        """Stop watching, and forget every element."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        self._queues.clear()

    def _look(self) -> None:
        self._next_look = None
        now = self._clock.seconds()
        for relay_id, queue in list(self._queues.items()):
            if not queue.pushed:
                if not queue.unread or now - queue.pushed_at >= _FORGOTTEN:
                    del self._queues[relay_id]
                continue
            until = now - (PROBE_EVERY if queue.unread else SILENT_AFTER)
            if queue.pushed[0].at <= until and not queue.asking:
                queue.asking = True
                Deferred.fromCoroutine(self._take_back(relay_id, queue, until))
        if self._queues:
            self._next_look = self._clock.callLater(LOOK_EVERY, self._look)

    async def _take_back(self, relay_id: str, queue: _Queue, until: float) -> None:
        """Take back the elements that were pushed before this time and are still in the queue."""
        wanted = {element.mark: element for element in queue.pushed if element.at <= until}
        was_read, lost, place = not queue.unread, list[Parcel](), BEGINNING
        try:
            for _ in range(_MOST_PARTS):
                found, following = await self._carrier.take_back(relay_id, tuple(wanted), place)
                queue.forget(found)
                lost += [parcel for mark in found for parcel in wanted.pop(mark).parcels]
                if following is None or not wanted:
                    queue.forget(wanted)  # the relay has read them
                    queue.unread = bool(lost)
                    break
                place = following
        except CarrierFailed:
            pass  # logged as an outage; the next look tries again
        finally:
            queue.asking = False
        if lost:
            queue.unread = True
            self._lost(relay_id, lost, was_read)
