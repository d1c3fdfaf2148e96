"""The frames of the wire: what each role may send, decoded into small typed values.

`decode_client`, `decode_daemon` and `decode_worker` read one message and give the routing fields of the frame
it is, or None when it is none of the role's (wire contract, section 3). The message itself is never encoded
again: what is forwarded are the bytes that came. Pure: no I/O, no clock, no limits.

JSON is read as JavaScript reads it. `fast_e2ee` reads an e2ee frame of the usual form with one strict msgspec decode;
whatever that refuses goes through `json` and the rules below, so it may only ever say "yes" or "ask".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

import msgspec

#: What String.prototype.trim removes (ECMAScript WhiteSpace and LineTerminator).
JS_WHITE_SPACE: Final = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000\ufeff"
)

CHANNEL_PREFIX: Final = "agent-session:"

_PROFILES: Final = frozenset({"noise-ik", "noise-ikpsk2"})
_JsonObject: TypeAlias = Mapping[str, Any]

#: A message as it came.
Message: TypeAlias = bytes | bytearray | memoryview


class E2ee(msgspec.Struct, frozen=True, gc=False):
    """An end-to-end encrypted envelope. `session_id` is compared as it is."""

    profile: str
    session_id: str


class KeyExchangeInit(msgspec.Struct, frozen=True, gc=False):
    """`request_id` is trimmed; empty means: forward, do not record."""

    profile: str
    request_id: str
    version: int
    previous_session_id: str | None = None


class KeyExchangeResponse(msgspec.Struct, frozen=True, gc=False):
    """`request_id` is trimmed, `session_id` is as it came; neither is blank."""

    profile: str
    request_id: str
    session_id: str
    epoch: float


class KeyUpdateRequired(msgspec.Struct, frozen=True, gc=False):
    session_id: str
    next_epoch: float


class PairingRequest(msgspec.Struct, frozen=True, gc=False):
    request_id: str  # trimmed


class PairingResponse(msgspec.Struct, frozen=True, gc=False):
    request_id: str  # trimmed


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    """`channel` is as it came (compare it trimmed)."""

    channel: str
    after_sequence: int


class Unsubscribe(msgspec.Struct, frozen=True, gc=False):
    channel: str


class ViewerPresence(msgspec.Struct, frozen=True, gc=False):
    channel: str


class SessionEvent(msgspec.Struct, frozen=True, gc=False):
    channel: str


class WorkerRequest(msgspec.Struct, frozen=True):
    """A managed executor's HTTP request. `headers` has only members whose value is a string, names as they came."""

    request_id: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: str | None


SessionEventFrame: TypeAlias = Subscribe | Unsubscribe | ViewerPresence
ClientFrame: TypeAlias = E2ee | KeyExchangeInit | PairingRequest | SessionEventFrame
DaemonFrame: TypeAlias = E2ee | KeyExchangeResponse | KeyUpdateRequired | PairingResponse | SessionEvent

# -- the fast decode ------------------------------------------------------------------------------------


class Envelope(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The members of an e2ee frame of the usual form, and no others."""

    type: Literal["e2ee"]
    version: Literal[2]
    profile: Literal["noise-ik", "noise-ikpsk2"]
    session_id: str = msgspec.field(name="sessionId")
    epoch: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    iv: str
    tag: str
    ciphertext: str


_envelope: Final = msgspec.json.Decoder(Envelope).decode


def fast_e2ee(message: Message) -> Envelope | None:
    """The frame when `message` is an e2ee frame of the usual form; None says nothing about it.

    `message` need not be known to be UTF-8: where it is not, this gives None, for every string in it is decoded.
    """
    try:
        frame = _envelope(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # ValidationError is a DecodeError
        return None
    # A text whose first character is plain and visible is not blank; anything else is the full validator's.
    if (
        "!" <= frame.session_id < "\x7f"
        and "!" <= frame.iv < "\x7f"
        and "!" <= frame.tag < "\x7f"
        and "!" <= frame.ciphertext < "\x7f"
    ):
        return frame
    return None


def is_utf8(message: Message) -> bool:
    """Whether a message is text (RFC 6455 section 8.1)."""
    if not isinstance(message, memoryview) and message.isascii():
        return True
    try:
        str(message, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


# -- JSON as JavaScript reads it --------------------------------------------------------------------------


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


#: The least integer that a double rounds to infinity (IEEE 754, round half to even).
_BEYOND_DOUBLE: Final = 2**1024 - 2**970


def _integer(digits: str) -> int | float:
    # A double ends at 1.8e308; more digits are no integer, and int() of very many would be slow.
    return int(digits) if len(digits) <= 309 else float("inf")


_json: Final = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)


def parse_json(text: str) -> Any:
    """Any JSON value. Raises ValueError for what is not JSON, RecursionError for what nests too deep."""
    return _json.decode(text)


def as_integer(value: object) -> int | None:
    """The integer that JavaScript's Number.isInteger would see, or None (True, "1", 1.5 and 1e999 are none)."""
    if type(value) is int:
        return value if -_BEYOND_DOUBLE < value < _BEYOND_DOUBLE else None
    if type(value) is float and value.is_integer():
        return int(value)
    return None


def trimmed(text: str) -> str:
    """`text.trim()` of JavaScript."""
    return text.strip(JS_WHITE_SPACE)


def _utf16_length(text: str) -> int:
    return len(text) + sum(ch > "\uffff" for ch in text)


def _is_text(frame: _JsonObject, *names: str) -> bool:
    return all(type(frame.get(name)) is str for name in names)


def _is_filled(frame: _JsonObject, *names: str) -> bool:
    return all(type(value := frame.get(name)) is str and value.strip(JS_WHITE_SPACE) for name in names)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _at_least(frame: _JsonObject, name: str, low: int) -> bool:
    number = as_integer(frame.get(name))
    return number is not None and number >= low


def _channel(frame: _JsonObject) -> str | None:
    channel = frame.get("channel")
    if type(channel) is not str:
        return None
    name = trimmed(channel)
    return channel if name.startswith(CHANNEL_PREFIX) and len(name) > len(CHANNEL_PREFIX) else None


# -- one rule for each type ----------------------------------------------------------------------------------


def _e2ee(frame: _JsonObject) -> E2ee | None:
    if (
        as_integer(frame.get("version")) == 2
        and _profile(frame) is not None
        and _is_filled(frame, "sessionId", "iv", "tag", "ciphertext")
        and _at_least(frame, "epoch", 1)
        and _at_least(frame, "seq", 1)
    ):
        return E2ee(frame["profile"], frame["sessionId"])
    return None


def _profile(frame: _JsonObject) -> str | None:
    profile = frame.get("profile")
    return profile if type(profile) is str and profile in _PROFILES else None


_INIT_MEMBERS: Final = {
    3: ("requestId", "clientEphemeralPublicKey", "encryptedClientStatic"),
    2: ("requestId", "clientPublicKey", "clientNonce", "clientProof"),
}
_RESPONSE_MEMBERS: Final = {
    3: ("daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "proof"),
    2: ("daemonNonce", "proof"),
}


def _key_exchange_init(frame: _JsonObject) -> KeyExchangeInit | None:
    version, profile = as_integer(frame.get("version")), _profile(frame)
    if version not in _INIT_MEMBERS or profile is None or not _is_text(frame, *_INIT_MEMBERS[version]):
        return None
    if profile == "noise-ikpsk2" and not _is_filled(frame, "pairingPeerId"):
        return None
    if "previousSessionId" in frame and not _is_text(frame, "previousSessionId"):
        return None
    return KeyExchangeInit(profile, trimmed(frame["requestId"]), version, frame.get("previousSessionId"))


def _key_exchange_response(frame: _JsonObject) -> KeyExchangeResponse | None:
    version, profile = as_integer(frame.get("version")), _profile(frame)
    if (
        version not in _RESPONSE_MEMBERS
        or profile is None
        or not _is_text(frame, *_RESPONSE_MEMBERS[version])
    ):
        return None
    if not _is_filled(frame, "requestId", "sessionId"):
        return None
    if not (_at_least(frame, "epoch", 1) if version == 3 else _is_number(frame.get("epoch"))):
        return None
    return KeyExchangeResponse(profile, trimmed(frame["requestId"]), frame["sessionId"], frame["epoch"])


def _key_update_required(frame: _JsonObject) -> KeyUpdateRequired | None:
    if _is_filled(frame, "sessionId") and _is_number(frame.get("nextEpoch")):
        return KeyUpdateRequired(frame["sessionId"], frame["nextEpoch"])
    return None


def _offer_request(frame: _JsonObject) -> PairingRequest | None:
    if not _is_filled(frame, "requestId", "clientChannelPublicKey"):
        return None
    if "ttlSeconds" in frame:
        ttl = as_integer(frame["ttlSeconds"])
        if ttl is None or not 30 <= ttl <= 3600:
            return None
    return PairingRequest(trimmed(frame["requestId"]))


def _redeem_request(frame: _JsonObject) -> PairingRequest | None:
    if _is_filled(frame, "requestId", "offerId", "encIv", "encTag", "encCiphertext"):
        return PairingRequest(trimmed(frame["requestId"]))
    return None


def _pairing_response(frame: _JsonObject) -> PairingResponse | None:
    ok = frame.get("ok")
    if type(ok) is not bool or not _is_filled(frame, "requestId"):
        return None
    if not ok and not _is_filled(frame, "errorCode"):
        return None
    return PairingResponse(trimmed(frame["requestId"]))


def _offer_response(frame: _JsonObject) -> PairingResponse | None:
    if frame.get("ok") is True and not _is_filled(
        frame, "daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"
    ):
        return None
    return _pairing_response(frame)


def _subscribe(frame: _JsonObject) -> Subscribe | None:
    channel, after = _channel(frame), as_integer(frame.get("afterSequence", 0))
    return None if channel is None or after is None or after < 0 else Subscribe(channel, after)


def _unsubscribe(frame: _JsonObject) -> Unsubscribe | None:
    channel = _channel(frame)
    return None if channel is None else Unsubscribe(channel)


def _viewer_presence(frame: _JsonObject) -> ViewerPresence | None:
    channel = _channel(frame)
    if channel is None or frame.get("action") not in ("joined", "left", "heartbeat"):
        return None
    if not _is_filled(frame, "userId") or _utf16_length(frame["userId"]) > 128:
        return None
    for name, most in (("displayName", 255), ("sentAt", None)):
        if name in frame:
            value = frame[name]
            if type(value) is not str or (most is not None and _utf16_length(value) > most):
                return None
    return ViewerPresence(channel)


def _session_event(frame: _JsonObject) -> SessionEvent | None:
    channel = _channel(frame)
    if channel is None or type(frame.get("event")) is not dict:
        return None
    return SessionEvent(channel)


def _worker_request(frame: _JsonObject) -> WorkerRequest | None:
    method, path = frame.get("method"), frame.get("path")
    headers, body = frame.get("headers", {}), frame.get("body")
    if not _is_filled(frame, "requestId") or method not in ("GET", "POST", "PATCH"):
        return None
    if type(path) is not str or not path.startswith("/api/runtime/workspaces/"):
        return None
    if type(headers) is not dict or ("body" in frame and type(body) is not str):
        return None
    texts = {name: value for name, value in headers.items() if type(value) is str}
    return WorkerRequest(frame["requestId"], method, path, texts, body)


_CLIENT_RULES: Final[Mapping[str, Callable[[_JsonObject], ClientFrame | None]]] = {
    "e2ee": _e2ee,
    "relay_key_exchange_init": _key_exchange_init,
    "relay_pairing_offer_request": _offer_request,
    "relay_pairing_redeem_request": _redeem_request,
    "viewport.session_events.subscribe/v1": _subscribe,
    "viewport.session_events.unsubscribe/v1": _unsubscribe,
    "viewport.session_viewer_presence/v1": _viewer_presence,
}
_DAEMON_RULES: Final[Mapping[str, Callable[[_JsonObject], DaemonFrame | None]]] = {
    "e2ee": _e2ee,
    "relay_key_exchange_response": _key_exchange_response,
    "relay_key_update_required": _key_update_required,
    "relay_pairing_offer_response": _offer_response,
    "relay_pairing_redeem_response": _pairing_response,
}
_WORKER_RULES: Final[Mapping[str, Callable[[_JsonObject], WorkerRequest | None]]] = {
    "viewport.worker_transport.request/v1": _worker_request,
}
_SESSION_EVENT_SCHEMA: Final = "viewport.session_event_relay_frame/v1"


def _object(message: Message) -> _JsonObject | None:
    try:
        value = parse_json(str(message, "utf-8"))
    except (ValueError, RecursionError):
        return None
    return cast(_JsonObject, value) if type(value) is dict else None


def _by_type(frame: _JsonObject, rules: Mapping[str, Callable[[_JsonObject], Any]]) -> Any:
    kind = frame.get("type")
    rule = rules.get(kind) if type(kind) is str else None
    return None if rule is None else rule(frame)


def decode_client(message: Message) -> ClientFrame | None:
    """The frame of a client's message (UTF-8), or None."""
    fast = fast_e2ee(message)
    if fast is not None:
        return E2ee(fast.profile, fast.session_id)
    frame = _object(message)
    return None if frame is None else cast("ClientFrame | None", _by_type(frame, _CLIENT_RULES))


def decode_daemon(message: Message) -> DaemonFrame | None:
    """The frame of a daemon's message (UTF-8), or None."""
    fast = fast_e2ee(message)
    if fast is not None:
        return E2ee(fast.profile, fast.session_id)
    frame = _object(message)
    if frame is None:
        return None
    if "type" not in frame and frame.get("schema") == _SESSION_EVENT_SCHEMA:
        return _session_event(frame)
    return cast("DaemonFrame | None", _by_type(frame, _DAEMON_RULES))


def decode_worker(message: bytes) -> WorkerRequest | None:
    """The frame of a worker's message (UTF-8), or None."""
    frame = _object(message)
    return None if frame is None else cast("WorkerRequest | None", _by_type(frame, _WORKER_RULES))
