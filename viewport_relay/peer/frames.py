"""The JSON of the wire as the reference peers read and write it.

Reads one text message into members and checks single members; what a frame means is decided in `daemon` and
`client`. Deliberately not shared with the relay: the peers are a second implementation of the wire protocol.
"""

from __future__ import annotations

import json

from viewport_relay.peer import base64url
from viewport_relay.peer.errors import Code, PeerError, require

Members = dict[str, object]

KEY_EXCHANGE_INIT = "relay_key_exchange_init"
KEY_EXCHANGE_RESPONSE = "relay_key_exchange_response"
KEY_UPDATE_REQUIRED = "relay_key_update_required"
ENVELOPE = "e2ee"
STATUS = "relay_status"


def compact(members: Members) -> str:
    """One JSON object without white space, members in the order given, non-ASCII text as it is."""
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False)


def _whole(digits: str) -> int | float:
    # As a double where it cannot matter: Python refuses to read integers of thousands of digits.
    return int(digits) if len(digits) <= 20 else float(digits)


def parse(text: str, what: str = "the frame") -> Members:
    """The members of one frame, or of `what`. Raises PeerError MALFORMED for anything that is not one JSON object."""
    try:
        # `int` refuses the constants that JSON does not have: NaN and Infinity.
        value = json.loads(text, parse_constant=int, parse_int=_whole)
    except (ValueError, RecursionError):
        # RecursionError: deeply nested input is malformed input, not a fault of this program.
        raise PeerError(Code.MALFORMED, f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise PeerError(Code.MALFORMED, f"{what} is not a JSON object")
    return value


def parse_payload(payload: bytes, what: str) -> Members:
    """The members of a decrypted handshake payload, as `parse`."""
    try:
        return parse(payload.decode("utf-8"), what)
    except UnicodeDecodeError:
        raise PeerError(Code.MALFORMED, f"{what} is not text") from None


def binary(frame: Members, name: str, length: int | None = None) -> bytes:
    """The member `name` as bytes, `length` of them if that is given (PeerError MALFORMED)."""
    return base64url.decode(frame.get(name), name, length)


def string(frame: Members, name: str) -> str:
    """The member `name`: a string, not blank, without lone surrogates (PeerError MALFORMED)."""
    value = frame.get(name)
    if not isinstance(value, str) or not value.strip():
        raise PeerError(Code.MALFORMED, f"{name} is missing or not a text")
    # JSON can spell a lone surrogate, UTF-8 cannot: it could be read here but never be sent back.
    surrogates = any("\ud800" <= character <= "\udfff" for character in value)
    require(not surrogates, Code.MALFORMED, f"{name} is not Unicode text")
    return value


def positive(frame: Members, name: str) -> int:
    """The member `name` as an integer >= 1, read as JavaScript reads numbers (1.0 is 1, true is not)."""
    value = frame.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value > 2**53 - 1:
        raise PeerError(Code.MALFORMED, f"{name} is not a positive integer")
    return value


def require_type(frame: Members, kind: str, version: int, what: str) -> None:
    """Raise PeerError MALFORMED unless the frame is of this type and version."""
    fits = frame.get("type") == kind and positive(frame, "version") == version
    require(fits, Code.MALFORMED, f"not {what} of version {version}")
