"""The records of a link after its handshake (wire protocol, section 11). Bytes in, bytes out.

A binary message is one frame in one or more records. A record is a 2-byte big-endian length and a Noise transport message
(Noise rev 34, section 5.1).

The keys and the cipher are noiseprotocol's, from the cipher states that its handshake ends in. A cipher state's own methods
take half as long again as the cipher does for a frame of 1 KiB, so the nonces are counted here: the one rule is that a
nonce is used once, in order, and that the last one is not used at all (section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidTag
from noise.constants import MAX_NONCE

from viewport_relay.protocol.json import Message
from viewport_relay.reasons import Reason, Refusal

TAG_BYTES: Final = 16
RECORD_PLAINTEXT_MAX: Final = 65_519
_HEADER: Final = 2
_RECORD_LEAST: Final = _HEADER + TAG_BYTES

#: The nonce of ChaCha20-Poly1305 (section 12.3): four zero bytes, and the count in little-endian order.
_nonce: Final = Struct("<4xQ").pack

#: Writes the length before a record: (buffer, position, length).
_length: Final = Struct(">H").pack_into


def records_max(frame_max_bytes: int) -> int:
    """The most records that one frame may be cut into. A peer needs 17 for 1 MiB; far more would only burn CPU."""
    return 64 + frame_max_bytes // 256


def message_max_bytes(frame_max_bytes: int) -> int:
    """The longest binary message on a link whose frames have at most `frame_max_bytes` bytes of plaintext."""
    return frame_max_bytes + _RECORD_LEAST * records_max(frame_max_bytes)


class LinkRecords:
    """The records of one link after its handshake, both directions. Any Refusal is the end of the link."""

    __slots__ = (
        "_decrypt", "_decrypt_into", "_encrypt", "_encrypt_into", "_frame_max", "_records_max", "received", "sent",
    )  # fmt: skip

    def __init__(self, sending: Any, receiving: Any, frame_max_bytes: int) -> None:
        """`sending` and `receiving` are noiseprotocol's cipher states, unused so far."""
        encrypting, decrypting = sending.cipher.cipher, receiving.cipher.cipher
        self._encrypt: Callable[[bytes, Message, None], bytes] = encrypting.encrypt
        self._encrypt_into: Callable[[bytes, Message, None, memoryview], int] = encrypting.encrypt_into
        self._decrypt: Callable[[bytes, Message, None], bytes] = decrypting.decrypt
        self._decrypt_into: Callable[[bytes, Message, None, memoryview], int] = decrypting.decrypt_into
        #: Records sent and received: the next nonces.
        self.sent: int = sending.n
        self.received: int = receiving.n
        self._frame_max = frame_max_bytes
        self._records_max = records_max(frame_max_bytes)

    # -- sending -----------------------------------------------------------------------------------------------

    def encrypt_records(
        self, plaintexts: Sequence[Message], headers: Sequence[bytes], parts: list[bytes]
    ) -> None:
        """Append to `parts`, for each plaintext, the header for its length and its record. Each fits into one record.

        Raises Refusal NOISE_NONCE_EXHAUSTED; what could be encrypted before is in `parts`.
        """
        encrypt, count = self._encrypt, self.sent
        try:
            for plaintext in plaintexts:
                if count >= MAX_NONCE:
                    raise Refusal(Reason.NOISE_NONCE_EXHAUSTED, "no nonce is left for sending")
                record = encrypt(_nonce(count), plaintext, None)
                count += 1
                parts.append(headers[len(plaintext)])
                parts.append(record)
        finally:
            self.sent = count

    @staticmethod
    def message_size(length: int) -> int:
        """The length of the binary message for a frame of `length` bytes."""
        return length + _RECORD_LEAST * max(1, -(-length // RECORD_PLAINTEXT_MAX))

    def encrypt_into(self, plaintext: Message, out: memoryview) -> None:
        """Write the binary message for one frame of any size, which has `message_size` bytes.

        Raises Refusal NOISE_NONCE_EXHAUSTED.
        """
        view, at, encrypt_into = memoryview(plaintext), 0, self._encrypt_into
        for start in range(0, len(view) or 1, RECORD_PLAINTEXT_MAX):
            piece = view[start : start + RECORD_PLAINTEXT_MAX]
            size, count = len(piece) + TAG_BYTES, self.sent
            if count >= MAX_NONCE:
                raise Refusal(Reason.NOISE_NONCE_EXHAUSTED, "no nonce is left for sending")
            _length(out, at, size)
            at += _HEADER
            encrypt_into(_nonce(count), piece, None, out[at : at + size])
            at += size
            self.sent = count + 1

    # -- receiving ---------------------------------------------------------------------------------------------

    def decrypt_record(self, record: memoryview) -> bytes:
        """The frame inside a message that is one record, which is given without its length.

        Raises Refusal as `decrypt_into` does.
        """
        size = len(record) - TAG_BYTES
        if not 0 <= size <= self._frame_max:
            self._bad_size(size)
        count = self.received
        if count >= MAX_NONCE:
            raise Refusal(Reason.NOISE_NONCE_EXHAUSTED, "no nonce is left for receiving")
        self.received = count + 1
        try:
            return self._decrypt(_nonce(count), record, None)
        except InvalidTag:
            raise Refusal(Reason.NOISE_DECRYPT_FAILED, "a record does not decrypt") from None

    def decrypt_message(self, message: Message) -> bytes:
        """The frame inside one binary message. Raises Refusal as `decrypt_into` does."""
        out = memoryview(bytearray(len(message)))
        return bytes(out[: self.decrypt_into(memoryview(message), out)])

    def decrypt_into(self, message: memoryview, out: memoryview) -> int:
        """Write the frame inside one binary message, which is shorter than the message; its length.

        Raises Refusal: NOISE_DECRYPT_FAILED (no record, a bad length, bytes left over, too many records, or one
        that does not decrypt), FRAME_TOO_LARGE (more plaintext than the frame limit), NOISE_NONCE_EXHAUSTED.
        """
        records: list[memoryview] = []
        size = stop = 0
        end = len(message)
        if end < _RECORD_LEAST:
            self._bad_size(end - _RECORD_LEAST)
        while stop < end:  # every length is checked before the first byte is decrypted
            start = stop + _HEADER
            length = int.from_bytes(message[stop:start], "big")
            stop = start + length
            if length < TAG_BYTES or stop > end:
                raise Refusal(Reason.NOISE_DECRYPT_FAILED, f"record {len(records) + 1} has a bad length")
            if len(records) == self._records_max:
                raise Refusal(
                    Reason.NOISE_DECRYPT_FAILED, f"more than {self._records_max} records in a message"
                )
            size += length - TAG_BYTES
            records.append(message[start:stop])
        if size > self._frame_max:
            self._bad_size(size)
        at = 0
        for record in records:
            count, start, at = self.received, at, at + len(record) - TAG_BYTES
            if count >= MAX_NONCE:
                raise Refusal(Reason.NOISE_NONCE_EXHAUSTED, "no nonce is left for receiving")
            try:
                self._decrypt_into(_nonce(count), record, None, out[start:at])
            except InvalidTag:
                raise Refusal(Reason.NOISE_DECRYPT_FAILED, "a record does not decrypt") from None
            self.received = count + 1
        return size

    def _bad_size(self, plaintext: int) -> NoReturn:
        if plaintext < 0:
            size = plaintext + _RECORD_LEAST
            raise Refusal(Reason.NOISE_DECRYPT_FAILED, f"a message of {size} bytes holds no record")
        raise Refusal(
            Reason.FRAME_TOO_LARGE, f"a frame of {plaintext} bytes over a limit of {self._frame_max}"
        )
