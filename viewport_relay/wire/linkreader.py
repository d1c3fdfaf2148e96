"""The reader of a Noise link: `fastpath` for binary messages, which are decrypted before they are judged.

    socket -> arena -> unmask in place -> decrypt -> judge -> the receiver's outbox

Messages take this path once the link is up and the peer is routed. The handshake, and all that is not common, goes through the
codec. Both paths decrypt with the same cipher state, which counts the nonces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from viewport_relay.reasons import Refusal
from viewport_relay.wire.fastpath import FastReader
from viewport_relay.wire.interfaces import Closing, Judge, LinkCipher, Pong, StreamTransport
from viewport_relay.wire.pausing import Shared

#: The first byte of an unfragmented binary message.
_BINARY: Final = 0x82

#: Bytes that records add to a message that is cut into few: at most this number, and one for each 512 of the message.
_FEW_RECORDS: Final = 64

#: Bytes in front of a decrypted message, for the longest header.
_HEAD: Final = 10


def _ignored(refusal: Refusal) -> None:
    """A no-op callback: before the link is up, and after the end."""


class LinkReader(FastReader):
    """A reader that decrypts and forwards the common messages of a Noise link without the codec."""

    __slots__ = ("_cipher", "_refuse")

    COMMON = _BINARY

    def __init__(self, shared: Shared, transport: StreamTransport, closing: Closing, pong: Pong) -> None:
        super().__init__(shared, transport, closing, pong)
        self._cipher: LinkCipher | None = None
        self._refuse: Callable[[Refusal], None] = _ignored

    def limit(self, size: int) -> None:
        super().limit(size)
        self._max = size

    def link_up(self, cipher: LinkCipher, refuse: Callable[[Refusal], None]) -> None:
        self._cipher = cipher
        self._refuse = refuse

    def stop(self) -> None:
        super().stop()
        self._refuse = _ignored  # holds no reference to the connection

    def _forward_one(self, got: int, judge: Judge, now: float) -> bool:
        """Leave even a single message to `_consume`, which costs little beside the cipher."""
        return False

    def _forward_alone(self, view: memoryview, start: int, stop: int, judge: Judge) -> bool:
        """Decrypt a message into a buffer that is used again, and forward it from there."""
        cipher = self._cipher
        assert cipher is not None  # messages are judged only while the link is up
        buffers = self._arena.buffers
        buffer = buffers.take(_HEAD + stop - start)
        try:
            size = cipher.decrypt_into(view[start:stop], buffer.view[_HEAD:])
        except Refusal as refusal:
            self._refuse(refusal)
            return False
        # Tiny records cost far more than their bytes: a message of many counts as a decision.
        few = stop - start - size <= _FEW_RECORDS + (size >> 9)
        forwarded = super()._forward_alone(buffer.view, _HEAD, _HEAD + size, judge)
        buffers.give(buffer)
        return forwarded and few
