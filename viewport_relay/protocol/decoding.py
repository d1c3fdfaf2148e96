"""Decoding of messages: the frames that each role may send (wire protocol, section 4).

`decode_client`, `decode_daemon` and `decode_executor` give the frame that a message is, or None when the message is none of
the role's frames. `fast_e2ee` reads an e2ee frame of the usual form with one strict decode, and says nothing about any other
message. Messages are UTF-8; the caller has checked that (RFC 6455 section 8.1). A message is read twice at most: for its
type, and for the members that this type has. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import randrange
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from viewport_relay.protocol import rules
from viewport_relay.protocol.frames import (
    PRESENCE_MAX_BYTES,
    ClientFrame,
    DaemonFrame,
    E2ee,
    ExecutorRequest,
    ViewerPresence,
)
from viewport_relay.protocol.json import Members, Message, Text

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
    # A text whose first character is plain and visible is not blank; any other is left to `rules`.
    if (
        "!" <= frame.session_id < "\x7f"
        and "!" <= frame.iv < "\x7f"
        and "!" <= frame.tag < "\x7f"
        and "!" <= frame.ciphertext < "\x7f"
    ):
        return frame
    return None


# -- messages ----------------------------------------------------------------------------------------------------

#: The members that tell what an object is.
_HEAD: Final = Members(opaque=("type", "schema"))
_SESSION_EVENT_SCHEMA: Final = "viewport.session_event_relay_frame/v1"
_E2EE: Final = Members("version", "sessionId", "epoch", "seq", opaque=("profile", "iv", "tag", "ciphertext"))
_CHANNEL: Final = Members("channel")


#: Frames that one role may send: the member and its value that tell the kind -> members that are looked at, and their rule.
_Table: TypeAlias = Mapping[tuple[str, object], tuple[Members, Callable[[rules.Object], object]]]


def _frame(table: _Table, message: Message) -> Any:
    """The frame in a message, or None. The message is known to be UTF-8."""
    text = Text(bytes(message))
    head = _HEAD.of(text)
    if head is None:
        return None
    name = "type" if "type" in head else "schema"
    found = table.get((name, head.get(name)))
    if found is None:
        return None
    members, rule = found
    frame = members.of(text)
    return None if frame is None else rule(frame)


_CLIENT: Final[_Table] = {
    ("type", "e2ee"): (_E2EE, rules.e2ee),
    ("type", "relay_key_exchange_init"): (
        Members(
            "version", "requestId", "previousSessionId",
            opaque=(
                "profile", "pairingPeerId", "clientEphemeralPublicKey", "encryptedClientStatic",
                "clientPublicKey", "clientNonce", "clientProof",
            ),
        ),
        rules.key_exchange_init,
    ),
    ("type", "relay_pairing_offer_request"): (
        Members("requestId", "ttlSeconds", opaque=("clientChannelPublicKey",)),
        rules.offer_request,
    ),
    ("type", "relay_pairing_redeem_request"): (
        Members("requestId", opaque=("offerId", "encIv", "encTag", "encCiphertext")),
        rules.redeem_request,
    ),
    ("type", "viewport.session_events.subscribe/v1"): (Members("channel", "afterSequence"), rules.subscribe),
    ("type", "viewport.session_events.unsubscribe/v1"): (_CHANNEL, rules.unsubscribe),
    ("type", "viewport.session_viewer_presence/v1"): (
        Members("channel", opaque=("action", "userId", "displayName", "sentAt")),
        rules.viewer_presence,
    ),
}  # fmt: skip
_DAEMON: Final[_Table] = {
    ("type", "e2ee"): (_E2EE, rules.e2ee),
    ("type", "relay_key_exchange_response"): (
        Members(
            "version", "requestId", "sessionId", "epoch",
            opaque=(
                "profile", "proof", "daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "daemonNonce",
            ),
        ),
        rules.key_exchange_response,
    ),
    ("type", "relay_key_update_required"): (Members("sessionId", "nextEpoch"), rules.key_update_required),
    ("type", "relay_pairing_offer_response"): (
        Members(
            "requestId", "ok",
            opaque=("errorCode", "daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"),
        ),
        rules.offer_response,
    ),
    ("type", "relay_pairing_redeem_response"): (Members("requestId", "ok", opaque=("errorCode",)), rules.pairing_response),
    ("schema", _SESSION_EVENT_SCHEMA): (Members("channel", "event"), rules.session_event),
}  # fmt: skip
_EXECUTOR: Final[_Table] = {
    ("type", "viewport.worker_transport.request/v1"): (
        Members("requestId", "path", "headers", "body", opaque=("method",)),
        rules.executor_request,
    )
}


def _fast(message: Message) -> E2ee | None:
    envelope = fast_e2ee(message)
    return None if envelope is None else E2ee(envelope.profile, envelope.session_id)


def decode_client(message: Message, *, fast: bool = True) -> ClientFrame | None:
    """The frame of a client's message, or None. `fast=False`: `fast_e2ee` has been asked already."""
    frame: ClientFrame | None = (_fast(message) if fast else None) or _frame(_CLIENT, message)
    # A long presence frame would be copied to every viewer.
    return None if type(frame) is ViewerPresence and len(message) > PRESENCE_MAX_BYTES else frame


def decode_daemon(message: Message, *, fast: bool = True) -> DaemonFrame | None:
    """The frame of a daemon's message, or None. `fast=False`: `fast_e2ee` has been asked already."""
    frame: DaemonFrame | None = (_fast(message) if fast else None) or _frame(_DAEMON, message)
    return frame


def decode_executor(message: Message) -> ExecutorRequest | None:
    """The frame of an executor's message, or None."""
    frame: ExecutorRequest | None = _frame(_EXECUTOR, message)
    return frame
