"""What waits for one receiver: a lane for each feeder, served round-robin."""

from __future__ import annotations

from collections import deque

from viewport_relay.wire.interfaces import Feeder


class _Lane:
    __slots__ = ("chunks", "feeder")

    def __init__(self, feeder: Feeder | None) -> None:
        self.feeder = feeder
        self.chunks: deque[bytes] = deque()


class Lanes:
    """The lanes of one receiver; each holds something. False: nothing waits."""

    __slots__ = ("_by_feeder", "_turns", "size")

    def __init__(self) -> None:
        self._by_feeder: dict[Feeder | None, _Lane] = {}
        self._turns: deque[_Lane] = deque()
        #: bytes that wait
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    @property
    def feeders(self) -> tuple[Feeder, ...]:
        """The feeders whose data wait."""
        return tuple(feeder for feeder in self._by_feeder if feeder is not None)

    def put(self, feeder: Feeder | None, data: bytes) -> bool:
        """Let data wait. True: nothing else of this feeder does."""
        lane = self._by_feeder.get(feeder)
        new = lane is None
        if lane is None:
            lane = self._by_feeder[feeder] = _Lane(feeder)
            self._turns.append(lane)
        lane.chunks.append(data)
        self.size += len(data)
        return new

    def take(self) -> tuple[bytes, Feeder | None]:
        """The next chunk, and its feeder if nothing else of it waits. Only while something waits."""
        lane = self._turns.popleft()
        data = lane.chunks.popleft()
        self.size -= len(data)
        if lane.chunks:
            self._turns.append(lane)
            return data, None
        del self._by_feeder[lane.feeder]
        return data, lane.feeder

    def drop(self, feeder: Feeder) -> None:
        """Forget what a feeder brought."""
        lane = self._by_feeder.pop(feeder, None)
        if lane is not None:
            self.size -= sum(map(len, lane.chunks))
            self._turns.remove(lane)
