"""The queue of one receiver: a lane for each feeder, served round-robin."""

from __future__ import annotations

from collections import OrderedDict, deque

from viewport_relay.wire.interfaces import Feeder


class Lanes:
    """The lanes of one receiver, none of them empty. False: nothing is queued."""

    __slots__ = ("_lanes", "size")

    def __init__(self) -> None:
        self._lanes: OrderedDict[Feeder | None, deque[bytes]] = OrderedDict()  # the next one is the first
        #: bytes that wait
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    @property
    def feeders(self) -> tuple[Feeder, ...]:
        """The feeders whose data are queued."""
        return tuple(feeder for feeder in self._lanes if feeder is not None)

    def put(self, feeder: Feeder | None, data: bytes) -> bool:
        """Queue data in the feeder's lane. True: nothing else of this feeder is queued."""
        lane = self._lanes.get(feeder)
        if lane is None:
            lane = self._lanes[feeder] = deque()
        lane.append(data)
        self.size += len(data)
        return len(lane) == 1

    def take(self) -> tuple[bytes, Feeder | None]:
        """The next chunk, and its feeder if nothing else of it is queued. Not for empty lanes."""
        feeder, lane = next(iter(self._lanes.items()))
        data = lane.popleft()
        self.size -= len(data)
        if lane:
            self._lanes.move_to_end(feeder)
            return data, None
        del self._lanes[feeder]
        return data, feeder

    def drop(self, feeder: Feeder) -> None:
        """Drop a feeder's lane."""
        self.size -= sum(map(len, self._lanes.pop(feeder, ())))
