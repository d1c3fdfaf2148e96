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
from viewport_relay.wire.transport import DirectAccess, Sink, read_nothing


def _nothing(*dropped: object) -> None:
    """A no-op callback, after the end."""


class Decryption:
    """Decrypts the records that are whole, and gives those of one read to a sink together, as far as its space goes.

    Before `begin` and after `end` ciphertext goes Twisted's way.
    """

    __slots__ = (
        "_ciphertext",
        "_count",
        "_layer",
        "_memory",
        "_receive",
        "_records",
        "_rest",
        "_sink",
        "_twisted",
        "space",
    )

    def __init__(
        self, memory: SharedMemory, twisted: Callable[[bytes], None], rest: Callable[[], None]
    ) -> None:
        """`twisted` takes ciphertext, `rest` handles records without data: both are Twisted's ways."""
        self._memory = memory
        self._ciphertext = memory.ciphertext
        self._twisted = twisted
        self._rest = rest
        self._count = RecordCount()
        self._records = 0  # whole records that OpenSSL has and that are not read yet
        self._receive: Callable[[memoryview], int] = read_nothing
        self._layer: RecordLayer | None = None
        self._sink: Sink | None = None
        #: Where the TCP transport reads to.
        self.space = memory.space

    def begin(self, layer: RecordLayer, sink: Sink, transport: object) -> Callable[[memoryview], int]:
        """Decrypt into the sink from now on. What is returned reads more, if there is more at once."""
        self._layer = layer
        self._sink = sink
        if not isinstance(transport, DirectAccess):
            return read_nothing
        self._receive = transport.read_into(self)
        return self._read_more

    def end(self) -> None:
        """Leave the rest to Twisted."""
        self._layer = self._sink = None
        self._records = 0
        self._receive = read_nothing

    def forget(self) -> None:
        """Drop every reference: the connection is lost."""
        self.end()
        self._twisted = self._rest = _nothing

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
                self._records = 1
            else:
                opened = layer.open_into(sink.space)
                if opened:
                    sink.received(opened)
                else:
                    self._rest()
            if self._records:
                self._open(layer)
        else:
            self._records += count.ended(self.space[:size])
            layer.put_read(size)
            self._open(layer)

    def take(self, data: bytes) -> None:
        """Handle ciphertext that was read elsewhere."""
        records, layer = self._count.ended(data), self._layer
        if layer is None:
            self._twisted(data)
        else:
            layer.put(data)
            self._records += records
            self._open(layer)

    def _open(self, layer: RecordLayer) -> None:
        while self._records and self._sink is not None:
            size = self._fill(layer, self._sink.space)
            if size:
                self._sink.received(size)
            else:
                # A record without data (an alert, a new key), or the end: Twisted meets it again, and acts on it.
                self._records = 0
                self._rest()

    def _fill(self, layer: RecordLayer, space: memoryview) -> int:
        """Decrypt whole records into `space` until it is full, or the next record has no data; how many bytes."""
        have, end = 0, len(space)
        while self._records and have < end:
            size = layer.open_into(space[have:] if have else space)
            if not size:
                break
            if end - have >= RECORD or not layer.pending():
                self._records -= 1
            have += size
        return have

    def _read_more(self, space: memoryview) -> int:
        """Read and decrypt what has come meanwhile, as far as `space` goes; how many bytes."""
        layer, most, have = self._layer, len(self.space), 0
        size = most  # of the last read; a shorter one has emptied the socket
        while layer is not None and have < len(space):
            if not self._records:
                if size < most:
                    break
                try:
                    size = self._receive(self.space)
                except OSError:  # nothing there, or broken: the next read event tells
                    break
                self._records = self._count.ended(self.space[:size])
                layer.put_read(size)
            opened = self._fill(layer, space[have:])
            if not opened:
                break
            have += opened
        return have


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
