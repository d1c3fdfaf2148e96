"""The frames of the wire, as the values that routing goes by (wire protocol, section 4).

A frame has only the members that routing needs. The message is never encoded again: the bytes that are forwarded are the
bytes that were received. `decoding.py` makes these values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

CHANNEL_PREFIX: Final = "agent-session:"

#: Bytes of a viewer's presence frame, which goes to every other viewer of its channel.
PRESENCE_MAX_BYTES: Final = 16_384


class E2ee(msgspec.Struct, frozen=True, gc=False):
    """An end-to-end encrypted envelope. `session_id` is compared untrimmed."""

    profile: str
    session_id: str


class KeyExchangeInit(msgspec.Struct, frozen=True, gc=False):
    """A client's key exchange init. `request_id` is trimmed; an empty one is forwarded and not recorded."""

    profile: str
    request_id: str
    version: int
    previous_session_id: str | None = None


class KeyExchangeResponse(msgspec.Struct, frozen=True, gc=False):
    """A daemon's answer to a key exchange init. `request_id` is trimmed, `session_id` is not; neither is blank."""

    profile: str
    request_id: str
    session_id: str
    epoch: float


class KeyUpdateRequired(msgspec.Struct, frozen=True, gc=False):
    """A daemon's demand for a key exchange with the next epoch."""

    session_id: str
    next_epoch: float


class PairingRequest(msgspec.Struct, frozen=True, gc=False):
    """A client's offer or redeem request; `request_id` is trimmed."""

    request_id: str


class PairingResponse(msgspec.Struct, frozen=True, gc=False):
    """A daemon's answer to either pairing request; `request_id` is trimmed."""

    request_id: str


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    """A client's subscription to a channel. `channel` is trimmed, as in all session-event frames."""

    channel: str
    after_sequence: int


class Unsubscribe(msgspec.Struct, frozen=True, gc=False):
    """The end of a subscription."""

    channel: str


class ViewerPresence(msgspec.Struct, frozen=True, gc=False):
    """A viewer's presence: joined, left or heartbeat. `user_id` is compared untrimmed with the claim."""

    channel: str
    user_id: str


class SessionEvent(msgspec.Struct, frozen=True, gc=False):
    """A daemon's event for every subscriber of its channel."""

    channel: str


class ExecutorRequest(msgspec.Struct, frozen=True):
    """A managed executor's HTTP request. `headers` has the members whose value is a string, names as sent."""

    request_id: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: str | None


SessionEventFrame: TypeAlias = Subscribe | Unsubscribe | ViewerPresence
ClientFrame: TypeAlias = E2ee | KeyExchangeInit | PairingRequest | SessionEventFrame
DaemonFrame: TypeAlias = E2ee | KeyExchangeResponse | KeyUpdateRequired | PairingResponse | SessionEvent
