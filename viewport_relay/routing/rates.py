"""Rates: the limits per minute of section 8 of the wire protocol, and the windows that a peer is charged to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal, Protocol, TypeAlias

from attrs import define, field, frozen


@frozen
class FrameRates:
    """Limits per minute, 0 for none (wire protocol, section 8). `in_words` names each one's setting, value and default, for the log."""

    key_exchange: int
    pairing: int
    runtime: int
    workspace: int
    daemon: int
    in_words: Mapping[str, str]


class RateWindow(Protocol):
    """One key's current minute. `now` is monotonic seconds. `admission.limits.Window` is the implementation."""

    def hit(self, now: float, limit: int) -> bool:
        """Charge one event; False when it is over the limit, and then not charged. A limit of 0 is none."""
        ...

    def spend(self, now: float, amount: int, limit: int) -> bool:
        """Charge an event of this size; False when the sum would be over the limit, and then not charged."""
        ...

    def retry_after_ms(self, now: float) -> int:
        """Milliseconds until the window ends, at least 1."""
        ...


#: Frames that few clients send: key exchanges, pairing requests, and what is answered or dropped instead of forwarded (bytes).
Rare: TypeAlias = Literal["kex", "pairing", "unforwarded"]

#: Gives the one window of a key at a time, shared by all peers that go by this key.
FindWindow: TypeAlias = Callable[[Hashable, float], RateWindow]


@define(eq=False)
class Rates:
    """The windows that a peer's frames are charged to, shared by all connections of the same key.

    `client` is the key of the client's own windows, empty for the other roles. The windows of frames that few clients send
    are found with the first such frame.
    """

    _find: FindWindow
    client: tuple[str, ...]
    runtime: RateWindow
    workspace: RateWindow
    daemon: RateWindow
    _rare: dict[str, RateWindow] | None = field(init=False, default=None)

    def rare(self, kind: Rare, now: float) -> RateWindow:
        """The client's window of one kind of rare frames."""
        if self._rare is None:
            self._rare = {}
        window = self._rare.get(kind)
        if window is None:
            window = self._rare[kind] = self._find((kind, *self.client), now)
        return window
