"""base64url without padding (RFC 4648, sections 3.5 and 5), as every binary member of the wire is written.

Decoding is strict: no padding, no white space, and only the one spelling of each value, so that two different
texts never mean the same bytes and a changed character is always noticed.
"""

from __future__ import annotations

import base64
import binascii
import re

from viewport_relay.peer.errors import Code, PeerError, require

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


def encode(data: bytes) -> str:
    """The text form of `data`, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: object, what: str, length: int | None = None) -> bytes:
    """The bytes behind `text`.

    `what` names the member in errors, `length` is the exact size in bytes if known. Raises PeerError
    MALFORMED when `text` is no string, not strict base64url, or of another length.
    """
    if not isinstance(text, str) or not _ALPHABET.fullmatch(text):
        raise PeerError(Code.MALFORMED, f"{what} is not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise PeerError(Code.MALFORMED, f"{what} is not base64url") from None
    require(encode(data) == text, Code.MALFORMED, f"{what} is not in its canonical base64url form")
    if length is not None:
        require(len(data) == length, Code.MALFORMED, f"{what} has {len(data)} bytes instead of {length}")
    return data
