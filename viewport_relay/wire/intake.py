"""The intake: a bound on the bytes of long messages that one client's connections receive at the same time."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol
from weakref import WeakValueDictionary

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Bytes of long messages that are being received for one client, over all its connections; one message may be longer.
MOST_BYTES: Final = 2 * 1024 * 1024

#: Seconds after which one more connection may receive although the others have not finished: their network may be lost.
PATIENCE: Final = 1.0


class IntakeReader(Protocol):
    """The reader of a connection."""

    def let_in(self) -> None:
        """The long message may be received now."""


class Intake:
    """Lets connections of one client receive long messages in the order in which they ask, within `MOST_BYTES`.

    A connection that has to wait is not read meanwhile, so what its peer sends stays in the kernels' buffers.
    """

    __slots__ = ("__weakref__", "_bytes", "_clock", "_receiving", "_timer", "_waiting")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._receiving: dict[IntakeReader, int] = {}  # -> bytes
        self._waiting: dict[IntakeReader, int] = {}
        self._bytes = 0
        self._timer: IDelayedCall | None = None

    def enter(self, receiver: IntakeReader, size: int) -> bool:
        """Whether a message of `size` bytes may be received now; if not, `receiver.let_in()` is called when it may.

        True for a receiver that was let in and has not left.
        """
        if receiver in self._receiving:
            return True
        if self._waiting or not self._fits(size):
            self._waiting[receiver] = size
            if self._timer is None:
                self._timer = self._clock.callLater(PATIENCE, self._patience_is_over)
            return False
        self._let_in(receiver, size)
        return True

    def leave(self, receiver: IntakeReader) -> bool:
        """The receiver's message is complete, or is not waited for any more. True: the receiver was not let in yet."""
        if not self._receiving:  # then none waits either
            return False
        self._bytes -= self._receiving.pop(receiver, 0)
        waited = self._waiting.pop(receiver, None) is not None
        while self._waiting and self._fits(next(iter(self._waiting.values()))):
            self._let_first_in()
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return waited

    def _fits(self, size: int) -> bool:
        return not self._receiving or self._bytes + size <= MOST_BYTES

    def _let_in(self, receiver: IntakeReader, size: int) -> None:
        self._receiving[receiver] = size
        self._bytes += size

    def _let_first_in(self) -> None:
        receiver = next(iter(self._waiting))
        self._let_in(receiver, self._waiting.pop(receiver))
        receiver.let_in()

    def _patience_is_over(self) -> None:
        self._timer = None
        self._let_first_in()
        if self._waiting:
            self._timer = self._clock.callLater(PATIENCE, self._patience_is_over)


class Intakes:
    """The intake of each client that has connections, found by the key that the client's rates go by."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._intakes: WeakValueDictionary[Hashable, Intake] = WeakValueDictionary()

    def of(self, key: Hashable) -> Intake:
        """The one intake of this key, as long as a connection holds it."""
        intake = self._intakes.get(key)
        if intake is None:
            intake = self._intakes[key] = Intake(self._clock)
        return intake
