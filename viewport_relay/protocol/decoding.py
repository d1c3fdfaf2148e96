"""Decoding of messages: what each role may send, checked member by member (wire protocol, section 4).

`decode_client`, `decode_daemon` and `decode_worker` give the frame that a message is, or None when the message is none of
the role's frames. `fast_e2ee` reads an e2ee frame of the usual form with one strict decode, and says nothing about any other
message. Messages are UTF-8; the caller has checked that (RFC 6455 section 8.1). A message is read twice at most: for its type, and for the members that this type has. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import randrange
from typing import Annotated, Any, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

from viewport_relay.protocol.frames import (
    CHANNEL_PREFIX,
    PRESENCE_MAX_BYTES,
    ClientFrame,
    DaemonFrame,
    E2ee,
    KeyExchangeInit,
    KeyExchangeResponse,
    KeyUpdateRequired,
    PairingRequest,
    PairingResponse,
    SessionEvent,
    Subscribe,
    Unsubscribe,
    ViewerPresence,
    WorkerRequest,
)
from viewport_relay.protocol.json import (
    JS_WHITE_SPACE,
    Composite,
    Members,
    Message,
    Text,
    as_integer,
    trimmed,
)

Frame = TypeVar("Frame")
_Object: TypeAlias = Mapping[str, Any]

_PROFILES: Final = frozenset({"noise-ik", "noise-ikpsk2"})

#: Bytes of a worker request's `headers`; those that are sent on fit into the 16 KiB of an HTTP head.
_HEADERS_MAX_BYTES: Final = 65_536

# -- the fast decode ---------------------------------------------------------------------------------------------


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

#: A longer message, bytes, is decoded as an envelope only if some of its bytes, one in so many, are ASCII, as they are
#: in every frame of today's peers: to decode wide characters in vain takes milliseconds.
_SAMPLED_BYTES: Final = 65_536
_SAMPLE_STEP: Final = 4093


def fast_e2ee(message: Message) -> Envelope | None:
    """The frame when `message` is an e2ee frame of the usual form; None says nothing about the message.

    `message` need not be known to be UTF-8: every string in it is decoded, and None is given where one is not.
    """
    if (
        len(message) > _SAMPLED_BYTES
        and not bytes(message[randrange(_SAMPLE_STEP) :: _SAMPLE_STEP]).isascii()
    ):
        return None
    try:
        frame = _envelope(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # ValidationError is a DecodeError
        return None
    # A text whose first character is plain and visible is not blank; any other is left to the rules below.
    if (
        "!" <= frame.session_id < "\x7f"
        and "!" <= frame.iv < "\x7f"
        and "!" <= frame.tag < "\x7f"
        and "!" <= frame.ciphertext < "\x7f"
    ):
        return frame
    return None


# -- checks of members -------------------------------------------------------------------------------------------


def _utf16_length(text: str) -> int:
    return len(text) + sum(ch > "\uffff" for ch in text)


def _is_text(frame: _Object, *names: str) -> bool:
    return all(type(frame.get(name)) is str for name in names)


def _is_filled(frame: _Object, *names: str) -> bool:
    return all(type(value := frame.get(name)) is str and value.strip(JS_WHITE_SPACE) for name in names)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _at_least(frame: _Object, name: str, low: int) -> bool:
    number = as_integer(frame.get(name))
    return number is not None and number >= low


def _channel(frame: _Object) -> str | None:
    channel = frame.get("channel")
    if type(channel) is not str:
        return None
    name = trimmed(channel)
    return name if name.startswith(CHANNEL_PREFIX) and len(name) > len(CHANNEL_PREFIX) else None


def _profile(frame: _Object) -> str | None:
    profile = frame.get("profile")
    return profile if type(profile) is str and profile in _PROFILES else None


# -- one rule for each type --------------------------------------------------------------------------------------


def _e2ee(frame: _Object) -> E2ee | None:
    if (
        as_integer(frame.get("version")) == 2
        and _profile(frame) is not None
        and _is_filled(frame, "sessionId", "iv", "tag", "ciphertext")
        and _at_least(frame, "epoch", 1)
        and _at_least(frame, "seq", 1)
    ):
        return E2ee(frame["profile"], frame["sessionId"])
    return None


_INIT_MEMBERS: Final = {
    3: ("requestId", "clientEphemeralPublicKey", "encryptedClientStatic"),
    2: ("requestId", "clientPublicKey", "clientNonce", "clientProof"),
}
_RESPONSE_MEMBERS: Final = {
    3: ("daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "proof"),
    2: ("daemonNonce", "proof"),
}


def _key_exchange_init(frame: _Object) -> KeyExchangeInit | None:
    version, profile = as_integer(frame.get("version")), _profile(frame)
    if version not in _INIT_MEMBERS or profile is None or not _is_text(frame, *_INIT_MEMBERS[version]):
        return None
    if profile == "noise-ikpsk2" and not _is_filled(frame, "pairingPeerId"):
        return None
    if "previousSessionId" in frame and not _is_text(frame, "previousSessionId"):
        return None
    return KeyExchangeInit(profile, trimmed(frame["requestId"]), version, frame.get("previousSessionId"))


def _key_exchange_response(frame: _Object) -> KeyExchangeResponse | None:
    version, profile = as_integer(frame.get("version")), _profile(frame)
    if version not in _RESPONSE_MEMBERS or profile is None:
        return None
    if not _is_text(frame, *_RESPONSE_MEMBERS[version]) or not _is_filled(frame, "requestId", "sessionId"):
        return None
    if not (_at_least(frame, "epoch", 1) if version == 3 else _is_number(frame.get("epoch"))):
        return None
    return KeyExchangeResponse(profile, trimmed(frame["requestId"]), frame["sessionId"], frame["epoch"])


def _key_update_required(frame: _Object) -> KeyUpdateRequired | None:
    if _is_filled(frame, "sessionId") and _is_number(frame.get("nextEpoch")):
        return KeyUpdateRequired(frame["sessionId"], frame["nextEpoch"])
    return None


def _offer_request(frame: _Object) -> PairingRequest | None:
    if not _is_filled(frame, "requestId", "clientChannelPublicKey"):
        return None
    if "ttlSeconds" in frame:
        ttl = as_integer(frame["ttlSeconds"])
        if ttl is None or not 30 <= ttl <= 3600:
            return None
    return PairingRequest(trimmed(frame["requestId"]))


def _redeem_request(frame: _Object) -> PairingRequest | None:
    if _is_filled(frame, "requestId", "offerId", "encIv", "encTag", "encCiphertext"):
        return PairingRequest(trimmed(frame["requestId"]))
    return None


def _pairing_response(frame: _Object) -> PairingResponse | None:
    ok = frame.get("ok")
    if type(ok) is not bool or not _is_filled(frame, "requestId"):
        return None
    if not ok and not _is_filled(frame, "errorCode"):
        return None
    return PairingResponse(trimmed(frame["requestId"]))


def _offer_response(frame: _Object) -> PairingResponse | None:
    if frame.get("ok") is True and not _is_filled(
        frame, "daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"
    ):
        return None
    return _pairing_response(frame)


def _subscribe(frame: _Object) -> Subscribe | None:
    channel, after = _channel(frame), as_integer(frame.get("afterSequence", 0))
    return None if channel is None or after is None or after < 0 else Subscribe(channel, after)


def _unsubscribe(frame: _Object) -> Unsubscribe | None:
    channel = _channel(frame)
    return None if channel is None else Unsubscribe(channel)


def _viewer_presence(frame: _Object) -> ViewerPresence | None:
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
    return ViewerPresence(channel, frame["userId"])


def _session_event(frame: _Object) -> SessionEvent | None:
    channel, event = _channel(frame), frame.get("event")
    if channel is None or type(event) is not Composite or not event.is_object:
        return None
    return SessionEvent(channel)


def _worker_request(frame: _Object) -> WorkerRequest | None:
    method, path, headers = frame.get("method"), frame.get("path"), frame.get("headers")
    if not _is_filled(frame, "requestId") or method not in ("GET", "POST", "PATCH"):
        return None
    if type(path) is not str or not path.startswith("/api/runtime/workspaces/"):
        return None
    if "body" in frame and not _is_text(frame, "body"):
        return None
    texts: dict[str, str] = {}
    if "headers" in frame:
        if type(headers) is not Composite or not headers.is_object or len(headers) > _HEADERS_MAX_BYTES:
            return None
        texts = headers.strings()
    return WorkerRequest(frame["requestId"], method, path, texts, frame.get("body"))


# -- messages ----------------------------------------------------------------------------------------------------

#: The members that tell what an object is.
_HEAD: Final = Members("type", "schema")
_SESSION_EVENT_SCHEMA: Final = "viewport.session_event_relay_frame/v1"
_E2EE: Final = Members("version", "profile", "sessionId", "epoch", "seq", opaque=("iv", "tag", "ciphertext"))
_CHANNEL: Final = Members("channel")


class _Rules(Generic[Frame]):
    """The frames that one role may send: type -> the members that are looked at, and the rule for them."""

    def __init__(
        self,
        by_type: Mapping[str, tuple[Members, Callable[[_Object], Frame | None]]],
        by_schema: Mapping[str, tuple[Members, Callable[[_Object], Frame | None]]] | None = None,
    ) -> None:
        self._by_type = by_type
        self._by_schema = by_schema or {}

    def decode(self, message: Message) -> Frame | None:
        """The frame that a message is, or None. The message is known to be UTF-8."""
        text = Text(bytes(message))
        head = _HEAD.of(text)
        if head is None:
            return None
        rules, kind = (
            (self._by_type, head["type"]) if "type" in head else (self._by_schema, head.get("schema"))
        )
        found = rules.get(kind) if type(kind) is str else None
        if found is None:
            return None
        members, rule = found
        frame = members.of(text)
        return None if frame is None else rule(frame)


_CLIENT: Final[_Rules[ClientFrame]] = _Rules(
    {
        "e2ee": (_E2EE, _e2ee),
        "relay_key_exchange_init": (
            Members(
                "version", "profile", "requestId", "previousSessionId",
                opaque=(
                    "pairingPeerId", "clientEphemeralPublicKey", "encryptedClientStatic",
                    "clientPublicKey", "clientNonce", "clientProof",
                ),
            ),
            _key_exchange_init,
        ),
        "relay_pairing_offer_request": (
            Members("requestId", "ttlSeconds", opaque=("clientChannelPublicKey",)),
            _offer_request,
        ),
        "relay_pairing_redeem_request": (
            Members("requestId", opaque=("offerId", "encIv", "encTag", "encCiphertext")),
            _redeem_request,
        ),
        "viewport.session_events.subscribe/v1": (Members("channel", "afterSequence"), _subscribe),
        "viewport.session_events.unsubscribe/v1": (_CHANNEL, _unsubscribe),
        "viewport.session_viewer_presence/v1": (
            Members("channel", "action", "userId", "displayName", "sentAt"),
            _viewer_presence,
        ),
    }
)  # fmt: skip
_DAEMON: Final[_Rules[DaemonFrame]] = _Rules(
    {
        "e2ee": (_E2EE, _e2ee),
        "relay_key_exchange_response": (
            Members(
                "version", "profile", "requestId", "sessionId", "epoch",
                opaque=(
                    "proof", "daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "daemonNonce",
                ),
            ),
            _key_exchange_response,
        ),
        "relay_key_update_required": (Members("sessionId", "nextEpoch"), _key_update_required),
        "relay_pairing_offer_response": (
            Members(
                "requestId", "ok",
                opaque=("errorCode", "daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"),
            ),
            _offer_response,
        ),
        "relay_pairing_redeem_response": (Members("requestId", "ok", "errorCode"), _pairing_response),
    },
    {_SESSION_EVENT_SCHEMA: (Members("channel", "event"), _session_event)},
)  # fmt: skip
_WORKER: Final[_Rules[WorkerRequest]] = _Rules(
    {
        "viewport.worker_transport.request/v1": (
            Members("requestId", "method", "path", "headers", "body"),
            _worker_request,
        )
    }
)


def decode_client(message: Message, *, fast: bool = True) -> ClientFrame | None:
    """The frame of a client's message, or None. `fast=False`: `fast_e2ee` has been asked already."""
    if fast:
        envelope = fast_e2ee(message)
        if envelope is not None:
            return E2ee(envelope.profile, envelope.session_id)
    frame = _CLIENT.decode(message)
    # A long presence frame would be copied to every viewer.
    return None if type(frame) is ViewerPresence and len(message) > PRESENCE_MAX_BYTES else frame


def decode_daemon(message: Message, *, fast: bool = True) -> DaemonFrame | None:
    """The frame of a daemon's message, or None. `fast=False`: `fast_e2ee` has been asked already."""
    if fast:
        envelope = fast_e2ee(message)
        if envelope is not None:
            return E2ee(envelope.profile, envelope.session_id)
    return _DAEMON.decode(message)


def decode_worker(message: Message) -> WorkerRequest | None:
    """The frame of a worker's message, or None."""
    return _WORKER.decode(message)
