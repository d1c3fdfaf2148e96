"""Both ways of an established TLS connection, between a TCP transport and the reader and outbox.

    socket -> shared memory -> OpenSSL -> the reader's arena          (`Decryption`)
    outbox -> OpenSSL -> shared memory -> socket                      (`Encryption`)

Two objects of their own: `TLSTransport` extends a Twisted class whose attributes are looked up slowly, for it has `__getattr__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from viewport_relay.wire.tlsrecords import (
    HEADER,
    LAST_PIECE,
    PIECE,
    RECORD,
    SEALED,
    RecordCount,
    RecordLayer,
    SharedMemory,
)
from viewport_relay.wire.transport import Sink


def _nothing() -> None:
    """A no-op callback, after the end."""


def _dropped(data: bytes | memoryview) -> None:
    """Drops what comes after the end."""


class Decryption:
    """Decrypts the records that are whole, and gives those of one read to a sink together, as far as its space goes.

    Before `begin` and after `end` ciphertext goes Twisted's way.
    """

    __slots__ = ("_ciphertext", "_count", "_layer", "_memory", "_rest", "_sink", "_twisted", "space")

    def __init__(
        self, memory: SharedMemory, twisted: Callable[[bytes], None], rest: Callable[[], None]
    ) -> None:
        """`twisted` takes ciphertext, `rest` handles records without data: both are Twisted's ways."""
        self._memory = memory
        self._ciphertext = memory.ciphertext
        self._twisted = twisted
        self._rest = rest
        self._count = RecordCount()
        self._layer: RecordLayer | None = None
        self._sink: Sink | None = None
        #: Where the TCP transport reads to.
        self.space = memory.space

    def begin(self, layer: RecordLayer, sink: Sink) -> None:
        """Decrypt into the sink from now on."""
        self._layer = layer
        self._sink = sink
        self._memory.learn(sink.space)

    def end(self) -> None:
        """Leave the rest to Twisted."""
        self._layer = self._sink = None

    def forget(self) -> None:
        """Drop every reference: the connection is lost."""
        self.end()
        self._twisted, self._rest = _dropped, _nothing

    def received(self, size: int) -> None:
        """`size` bytes of ciphertext were read into `space`."""
        layer, count, data = self._layer, self._count, self._ciphertext
        if layer is None:
            self.take(bytes(self.space[:size]))
        elif count.between and size == HEADER + (
            data[3] << 8 | data[4]
        ):  # one whole record: nearly every read
            layer.put_read(size)
            sink = self._sink
            if sink is None or len(sink.space) < RECORD:
                self._open(layer, 1)
                return
            opened = layer.open_into(sink.space)
            if opened:
                sink.received(opened)
            else:
                self._rest()
        else:
            records = count.ended(self.space[:size])
            layer.put_read(size)
            self._open(layer, records)

    def take(self, data: bytes) -> None:
        """Handle ciphertext that was read elsewhere."""
        records, layer = self._count.ended(data), self._layer
        if layer is None:
            self._twisted(data)
        else:
            layer.put(data)
            self._open(layer, records)

    def _open(self, layer: RecordLayer, records: int) -> None:
        sink = self._sink
        assert sink is not None
        space, have, rest = sink.space, 0, False
        while records:
            room = len(space) - have
            size = layer.open_into(space[have:] if have else space)
            if not size:
                # A record without data (an alert, a new key), or the end: Twisted meets it again, and acts on it.
                rest = True
                break
            have += size
            if room >= RECORD or not layer.pending():
                records -= 1
            if size == room:
                sink.received(have)
                if self._layer is None:
                    return
                space, have = sink.space, 0
        if have:
            sink.received(have)
        if rest:
            self._rest()


class Encryption:
    """Encrypts what is sent, and sends the records at once: what a socket's `send` is to an outbox."""

    __slots__ = ("_flush", "_layer", "_transport")

    def __init__(self, flush: Callable[[], None]) -> None:
        """`flush` sends records that did not fit into the shared memory."""
        self._flush = flush
        self._layer: RecordLayer | None = None
        self._transport: Any = None

    def begin(self, layer: RecordLayer, transport: Any) -> None:
        """Send from now on, through a DirectTransport."""
        self._layer = layer
        self._transport = transport

    @property
    def open(self) -> bool:
        """Whether anything can be sent."""
        return self._layer is not None

    def end(self) -> None:
        """Take nothing any more."""
        self._layer = self._transport = None

    def forget(self) -> None:
        """Drop every reference: the connection is lost."""
        self.end()
        self._flush = _nothing

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Encrypt bytes and send the records; how many of the bytes were taken. Called while nothing waits to be sent.

        No more is encrypted once the socket is full: what waits is bounded as plaintext.
        """
        layer, transport, at, end, piece = self._layer, self._transport, 0, len(data), data
        while layer is not None:
            if end > LAST_PIECE:
                piece = memoryview(data)[at:] if end - at <= LAST_PIECE else memoryview(data)[at : at + PIECE]
            records = layer.seal(piece)
            if records is None:  # not taken: the caller's next step, a write, finds out why
                break
            at += len(piece)
            transport.send_now(records)
            if len(records) == SEALED:  # and there may be more: what was left of a handshake
                self._flush()
            if at == end or not transport.sent_everything:
                break
        return at
