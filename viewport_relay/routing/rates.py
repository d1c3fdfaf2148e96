"""Rates: the limits per minute of section 8 of the wire protocol, and the windows that a peer is charged to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from attrs import define, field, frozen

from viewport_relay.windows import Window, WindowTable


@frozen
class FrameRates:
    """Limits per minute, 0 for none (wire protocol, section 8). `in_words` names each one's setting, value and default, for the log."""

    key_exchange: int
    pairing: int
    runtime: int
    workspace: int
    daemon: int
    in_words: Mapping[str, str]


#: Frames that few clients send: key exchanges, pairing requests, and what is answered or dropped instead of forwarded (bytes).
Rare: TypeAlias = Literal["key_exchange", "pairing", "unforwarded"]


@define(eq=False)
class Rates:
    """The windows that a peer's frames are charged to, shared by all connections of the same key.

    `client` is the key of the client's own windows, empty for the other roles. The windows of frames that few clients send
    are found with the first such frame.
    """

    _table: WindowTable
    client: tuple[str, ...]
    runtime: Window
    workspace: Window
    daemon: Window
    _rare: dict[str, Window] | None = field(init=False, default=None)

    def rare(self, kind: Rare, now: float) -> Window:
        """The client's window of one kind of rare frames."""
        if self._rare is None:
            self._rare = {}
        window = self._rare.get(kind)
        if window is None:
            window = self._rare[kind] = self._table.window((kind, *self.client), now)
        return window
