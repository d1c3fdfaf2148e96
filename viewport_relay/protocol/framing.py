"""Headers of the frames that the relay sends (RFC 6455 section 5.2): unfragmented and unmasked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Opcodes.
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

#: A frame or message of more bytes counts as long: its client's intake bounds how many are received at the same time.
LONG: Final = 65_536


def frame_header(opcode: int, length: int) -> bytes:
    """The header of a frame with a payload of `length` bytes."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65_536:
        return bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big")
    return bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big")


#: Up to here a frame is copied behind its header, so that it can leave together with others, bytes.
COPIED: Final = 32_768

#: Headers of text frames up to this length are ready-made.
USUAL: Final = 4096
TEXT_HEADERS: Final = tuple(frame_header(TEXT, length) for length in range(USUAL + 1))


def text_header(length: int) -> bytes:
    """The header of a text frame."""
    return TEXT_HEADERS[length] if length <= USUAL else frame_header(TEXT, length)


def text_frames_length(sizes: Sequence[int]) -> int:
    """The bytes of text frames with payloads of these sizes, headers included."""
    if sizes and min(sizes) >= 126 and max(sizes) < 65_536:
        return sum(sizes) + 4 * len(sizes)
    return sum([len(text_header(size)) + size for size in sizes])


#: The length before a record, and the tag behind its plaintext, bytes (wire protocol, section 11).
RECORD_LENGTH: Final = 2
RECORD_TAG: Final = 16


def _record_header(length: int) -> bytes:
    size = length + RECORD_TAG
    return frame_header(BINARY, RECORD_LENGTH + size) + size.to_bytes(RECORD_LENGTH, "big")


#: Headers of link messages that are one record, by the length of its plaintext: the frame's and the record's.
RECORD_HEADERS: Final = tuple(_record_header(length) for length in range(USUAL + 1))
