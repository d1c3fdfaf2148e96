"""TLS records of an established connection (RFC 8446 section 5): counted in the input, opened into memory, and sealed.

A `RecordLayer` calls OpenSSL as pyOpenSSL does, but without an exception, an allocation and a copy for each record. It only does what
succeeds at once. What does not is repeated by the caller on the `SSL.Connection`, which then says what is wrong. A pyOpenSSL that has
other private names gives no record layer: its connections are left to Twisted's transport.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL

from viewport_relay.wire.arena import Arena

#: The longest plaintext of a record (RFC 8446 section 5.1), and more than a record takes besides, bytes.
RECORD: Final = 16_384
RECORD_OVERHEAD: Final = 256

#: A record's header (RFC 8446 section 5.1): type, version, length in two bytes.
HEADER: Final = 5

#: Most plaintext that is sealed before its records are sent, bytes. A frame of 64 KiB with its header is one piece.
PIECE: Final = 5 * RECORD

#: SSL_MODE_AUTO_RETRY of OpenSSL's ssl.h, which pyOpenSSL sets: reading goes on behind a record without data.
_MODE_AUTO_RETRY: Final = 4

#: Most bytes of the records of a piece, and of the ciphertext of one read. OpenSSL's two buffers of a connection grow to about
#: this size and stay.
SEALED: Final = PIECE + RECORD_OVERHEAD * (PIECE // RECORD + 2)


class RecordCount:
    """Counts the records of a stream by their headers."""

    __slots__ = ("_head", "_left", "between")

    def __init__(self) -> None:
        self._head = b""  # the beginning of a header
        self._left = 0  # bytes to come of the record whose header has been read
        #: Whether the next byte is a record's first.
        self.between = True

    def ended(self, data: bytes | memoryview) -> int:
        """The number of records that end within `data`, the next bytes of the stream."""
        if self._head:
            data = self._head + bytes(data)
            self._head = b""
        at, end, count = self._left, len(data), 0
        if 0 < at <= end:
            count = 1
        while end - at >= HEADER:
            at += HEADER + (data[at + 3] << 8 | data[at + 4])
            if at <= end:
                count += 1
        if at > end:
            self._left = at - end
        else:
            self._left = 0
            if at < end:
                self._head = bytes(data[at:])
        self.between = at == end
        return count


class SharedMemory:
    """Memory that the TLS connections of a reactor share: for ciphertext that was read, for plaintext, and for records to send."""

    __slots__ = ("arena", "arena_at", "ciphertext", "ciphertext_at", "sealed", "sealed_at", "space")

    def __init__(self, arena: Arena) -> None:
        """Most plaintext goes into `arena`: the readers of the reactor read into it."""
        self.ciphertext = bytearray(SEALED)
        #: Memory that sockets are read into.
        self.space = memoryview(self.ciphertext)
        sealed = bytearray(SEALED)
        #: Records, until they are sent.
        self.sealed = memoryview(sealed)
        self.arena = arena.space
        # The same for OpenSSL: making a pointer takes as long as copying a small record. A pointer that is kept is
        # made of the bytearray, not of a view of it: CPython before 3.11.9 and 3.12.3 crashes when it collects a view
        # with a buffer that refers to it (gh-77894).
        self.ciphertext_at, self.sealed_at, self.arena_at = map(
            _pointer, (self.ciphertext, sealed, arena.data)
        )


try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib

    _pointer: Any = _ffi.from_buffer
    _ssl_read, _ssl_write, _ssl_pending = _lib.SSL_read, _lib.SSL_write, _lib.SSL_pending
    _bio_read, _bio_write, _bio_left = _lib.BIO_read, _lib.BIO_write, _lib.BIO_get_mem_data
    _clear_mode = _lib.SSL_clear_mode
    _no_matter_where: Any = _ffi.new("char **")
    # An error that stays in OpenSSL's queue, one for all connections, would be taken for the next connection's.
    _clear_errors = _lib.ERR_clear_error
    _available = True
except (ImportError, AttributeError):
    _pointer = memoryview
    _available = False


class RecordLayer:
    """The record layer of one established connection, in the OpenSSL that pyOpenSSL has loaded."""

    __slots__ = ("_connection", "_input", "_layer", "_memory", "_output")

    def __init__(self, connection: Any, memory: SharedMemory) -> None:
        """Raises AttributeError where pyOpenSSL keeps OpenSSL's objects under other names."""
        self._connection = connection  # keeps OpenSSL's objects alive
        self._memory = memory
        self._layer = connection._ssl
        self._input = connection._into_ssl
        self._output = connection._from_ssl

    def put(self, data: bytes) -> None:
        """Take ciphertext that was received."""
        if _bio_write(self._input, data, len(data)) != len(data):
            raise MemoryError

    def put_read(self, size: int) -> None:
        """Take the first `size` bytes of the shared memory's `space`."""
        if _bio_write(self._input, self._memory.ciphertext_at, size) != size:
            raise MemoryError

    def open_into(self, space: memoryview) -> int:
        """Decrypt the rest of a record, or the next one, as far as `space` goes; 0: there is none that has data."""
        memory = self._memory
        size: int
        if space is memory.arena:
            size = _ssl_read(self._layer, memory.arena_at, RECORD)
        else:
            size = _ssl_read(self._layer, _pointer("char[]", space, True), min(len(space), RECORD))
        if size > 0:
            return size
        _clear_errors()
        return 0

    def pending(self) -> int:
        """Bytes of the current record that are decrypted and not yet read."""
        size: int = _ssl_pending(self._layer)
        return size

    def seal(self, data: bytes | memoryview) -> memoryview | None:
        """The records of at most `PIECE` bytes, to be used up at once; None: they are not taken."""
        length, memory = len(data), self._memory
        # A pointer is made of bytes on the way; everything else needs one made first.
        taken = _ssl_write(self._layer, data if type(data) is bytes else _pointer(data), length)
        if taken > 0:
            assert taken == length, "the context must not have SSL_MODE_ENABLE_PARTIAL_WRITE"
            size = _bio_read(self._output, memory.sealed_at, SEALED)
            if size > 0:
                return memory.sealed[:size]
        _clear_errors()
        return None


def record_layer(connection: SSL.Connection, memory: SharedMemory) -> RecordLayer | None:
    """The record layer of an established connection; None: pyOpenSSL has other names, so there is none."""
    try:
        return RecordLayer(connection, memory) if _available else None
    except AttributeError:
        return None


def stop_at_records_without_data(connection: SSL.Connection) -> None:
    """Let OpenSSL stop reading behind each record without data (a new key, say), where `ciphertext_left` tells that there is more.

    It would work off thousands of them in one call: 100 ms for what one read of a socket brings.
    """
    if ciphertext_left(connection) is not None:
        _clear_mode(connection._ssl, _MODE_AUTO_RETRY)


def ciphertext_left(connection: SSL.Connection) -> int | None:
    """Bytes that OpenSSL was given and has not read; None: pyOpenSSL has other names, so it cannot be told."""
    try:
        return int(_bio_left(connection._into_ssl, _no_matter_where)) if _available else None
    except AttributeError:
        return None
