"""Both directions of an established TLS connection, between a TCP transport and the reader and outbox.

    socket -> shared memory -> OpenSSL -> the reader's arena
    outbox -> OpenSSL -> shared memory -> socket

The flow is an object of its own: `TLSTransport` extends a Twisted class with `__getattr__`, whose attributes are looked up slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from viewport_relay.wire.tlsrecords import (
    HEADER,
    PIECE,
    RECORD,
    SEALED,
    RecordCount,
    RecordLayer,
    SharedMemory,
)
from viewport_relay.wire.transport import DirectAccess, Sink, read_nothing

#: Records that are shorter than this on average, bytes, are tiny: a frame of the wire protocol is longer. Each costs 4 µs, so a
#: peer that has sent a longer read full of them is read in pieces of `SMALL_READ` bytes from then on.
TINY: Final = 64
SMALL_READ: Final = 4096


class TwistedTLS(Protocol):
    """The methods of Twisted's TLS transport that a flow calls for rare records."""

    def take_ciphertext(self, data: bytes) -> None:
        """Decrypt bytes that were received, and deliver them to the wrapped protocol."""

    def read_rest(self) -> None:
        """Act on records without data."""

    def without_data(self) -> bool:
        """Count a record without data that was read. False: the peer has sent too many, and the connection is aborted."""

    def send_rest(self) -> None:
        """Send records that did not fit into the shared memory."""


class TLSFlow:
    """The data path of one TLS connection: the sink of its TCP transport, and the sender of its outbox.

    Decryption gives the whole records of one read to the sink above together, as far as its space goes. Before `read_into` and
    after `end` Twisted's transport takes the ciphertext. Encryption sends the records at once, from `begin` to `end_sending`.
    """

    __slots__ = (
        "_ciphertext", "_count", "_layer", "_memory", "_receive", "_records", "_sink", "_transport", "_twisted", "begun", "space",
    )  # fmt: skip

    def __init__(self, memory: SharedMemory, twisted: TwistedTLS) -> None:
        self._memory = memory
        self._ciphertext = memory.ciphertext
        self._twisted: TwistedTLS | None = twisted  # until lost
        self._count = RecordCount()
        self._records = 0  # whole records that OpenSSL has and that are not read yet
        self._receive: Callable[[memoryview], int] = read_nothing
        self._layer: Any = None  # a RecordLayer, from `begin` on
        self._sink: Sink | None = None
        self._transport: Any = None  # a DirectTransport, while anything can be sent
        self.begun = False
        #: Memory that the TCP transport reads into.
        self.space = memory.space

    def begin(self, layer: RecordLayer, transport: Any) -> None:
        """The handshake is over: send through `transport`, the TCP transport, from now on."""
        self._layer = layer
        self._transport = transport
        self.begun = True

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        """Decrypt into the sink from now on. What is returned reads more, if there is more at once."""
        self._sink = sink
        if not isinstance(self._transport, DirectAccess):
            return read_nothing
        self._receive = self._transport.read_into(self)
        return self._read_more

    @property
    def sends(self) -> bool:
        """Whether anything can be sent."""
        return self._transport is not None

    def end_sending(self) -> None:
        """Send nothing any more."""
        self._transport = None

    def end(self) -> None:
        """Leave the rest to Twisted."""
        self._sink = self._transport = None
        self._records = 0
        self._receive = read_nothing

    def forget(self) -> None:
        """Drop every reference: the connection is lost."""
        self.end()
        self._twisted = self._layer = None

    # -- receiving -----------------------------------------------------------------------------------------------

    def received(self, size: int) -> None:
        """`size` bytes of ciphertext were read into `space`."""
        layer, sink, count, data = self._layer, self._sink, self._count, self._ciphertext
        if sink is None:
            self.take(bytes(self.space[:size]))
        elif count.between and size == HEADER + (
            data[3] << 8 | data[4]
        ):  # one whole record: nearly every read
            layer.put_read(size)
            if len(sink.space) < RECORD:
                self._records = 1
            else:
                opened = layer.open_into(sink.space)
                if opened:
                    sink.received(opened)
                else:
                    self._without_data()
                    self._read_rest()
            if self._records:
                self._open()
        else:
            self._put_read(size)
            self._open()

    def _put_read(self, size: int) -> None:
        """Give the `size` bytes that were read into `space` to OpenSSL, and count their records."""
        records = self._count.ended(self.space[:size])
        self._records += records
        self._layer.put_read(size)
        if size > SMALL_READ and size < records * TINY:
            self.space = self._memory.space[:SMALL_READ]

    def take(self, data: bytes) -> None:
        """Handle ciphertext that was read elsewhere."""
        records = self._count.ended(data)
        if self._sink is not None:
            self._layer.put(data)
            self._records += records
            self._open()
        elif self._twisted is not None:
            self._twisted.take_ciphertext(data)

    def _open(self) -> None:
        while self._records and self._sink is not None:
            size = self._fill(self._sink.space)
            if not size:
                self._read_rest()
            elif self._sink is not None:  # it may have been ended for its records without data
                self._sink.received(size)

    def _without_data(self) -> None:
        if self._twisted is not None:
            self._twisted.without_data()

    def _read_rest(self) -> None:
        """Leave a record without data (an alert, a new key), or the end, to Twisted, which meets it again."""
        self._records = 0
        if self._twisted is not None:
            self._twisted.read_rest()

    def _fill(self, space: memoryview) -> int:
        """Decrypt whole records into `space` until it is full, or the next record has no data; how many bytes."""
        layer, have, end = self._layer, 0, len(space)
        while self._records and have < end:
            size: int = layer.open_into(space[have:] if have else space)
            if not size:
                self._without_data()
                break
            if end - have >= RECORD or not layer.pending():
                self._records -= 1
            have += size
        return have

    def _read_more(self, space: memoryview) -> int:
        """Read and decrypt what has come meanwhile, as far as `space` goes; how many bytes."""
        have, most = 0, len(self._memory.space)
        size = most  # of the last read; a shorter one has emptied the socket
        while self._sink is not None and have < len(space):
            if not self._records:
                if size < most:  # a read of a peer with tiny records is always shorter
                    break
                try:
                    size = self._receive(self.space)
                except OSError:  # nothing there, or broken: the next read event tells
                    break
                self._put_read(size)
            opened = self._fill(space[have:])
            if not opened:
                break
            have += opened
        return have

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Encrypt bytes and send the records; how many of the bytes were taken. Called while nothing waits to be sent.

        No more is encrypted once the socket is full: what waits is bounded as plaintext.
        """
        layer, transport, at, end, piece = self._layer, self._transport, 0, len(data), data
        while transport is not None:
            if end > PIECE:
                piece = memoryview(data)[at : at + PIECE]
            records = layer.seal(piece)
            if records is None:  # not taken: the caller's next step, a write, finds out why
                break
            at += len(piece)
            transport.send_now(records)
            if (
                len(records) == SEALED and self._twisted is not None
            ):  # and there may be more: what was left of a handshake
                self._twisted.send_rest()
            if at == end or not transport.sent_everything:
                break
        return at
