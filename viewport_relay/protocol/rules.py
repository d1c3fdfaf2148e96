"""The rule for each frame type: checks the members of an object and gives the frame, or None (wire protocol, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from viewport_relay.protocol.frames import (
    CHANNEL_PREFIX,
    E2ee,
    ExecutorRequest,
    KeyExchangeInit,
    KeyExchangeResponse,
    KeyUpdateRequired,
    PairingRequest,
    PairingResponse,
    SessionEvent,
    Subscribe,
    Unsubscribe,
    ViewerPresence,
)
from viewport_relay.protocol.grant import PROFILES
from viewport_relay.protocol.json import Composite, as_integer, is_blank, trimmed

#: The members of a message that its type needs, as `json.Members` reads them.
Object: TypeAlias = Mapping[str, Any]

#: Bytes of an executor request's `headers`; those that are sent on fit into the 16 KiB of an HTTP head.
_HEADERS_MAX_BYTES: Final = 65_536

# -- checks of members -------------------------------------------------------------------------------------------


def _fits(text: str, most: int) -> bool:
    """Whether a text has at most so many UTF-16 units, as JavaScript counts them."""
    return len(text) <= most and len(text.encode("utf-16-le", "surrogatepass")) <= 2 * most


def _is_text(frame: Object, *names: str) -> bool:
    return all(type(frame.get(name)) is str for name in names)


def _is_filled(frame: Object, *names: str) -> bool:
    return all(type(value := frame.get(name)) is str and not is_blank(value) for name in names)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _at_least(frame: Object, name: str, low: int) -> bool:
    number = as_integer(frame.get(name))
    return number is not None and number >= low


def _channel(frame: Object) -> str | None:
    channel = frame.get("channel")
    if type(channel) is not str:
        return None
    name = trimmed(channel)
    return name if name.startswith(CHANNEL_PREFIX) and len(name) > len(CHANNEL_PREFIX) else None


def _profile(frame: Object) -> str | None:
    profile = frame.get("profile")
    return profile if type(profile) is str and profile in PROFILES else None


# -- one rule for each type --------------------------------------------------------------------------------------


def e2ee(frame: Object) -> E2ee | None:
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


def key_exchange_init(frame: Object) -> KeyExchangeInit | None:
    version, profile = as_integer(frame.get("version")), _profile(frame)
    if version not in _INIT_MEMBERS or profile is None or not _is_text(frame, *_INIT_MEMBERS[version]):
        return None
    if profile == "noise-ikpsk2" and not _is_filled(frame, "pairingPeerId"):
        return None
    if "previousSessionId" in frame and not _is_text(frame, "previousSessionId"):
        return None
    return KeyExchangeInit(profile, trimmed(frame["requestId"]), version, frame.get("previousSessionId"))


def key_exchange_response(frame: Object) -> KeyExchangeResponse | None:
    version, profile = as_integer(frame.get("version")), _profile(frame)
    if version not in _RESPONSE_MEMBERS or profile is None:
        return None
    if not _is_text(frame, *_RESPONSE_MEMBERS[version]) or not _is_filled(frame, "requestId", "sessionId"):
        return None
    if not (_at_least(frame, "epoch", 1) if version == 3 else _is_number(frame.get("epoch"))):
        return None
    return KeyExchangeResponse(profile, trimmed(frame["requestId"]), frame["sessionId"], frame["epoch"])


def key_update_required(frame: Object) -> KeyUpdateRequired | None:
    if _is_filled(frame, "sessionId") and _is_number(frame.get("nextEpoch")):
        return KeyUpdateRequired(frame["sessionId"], frame["nextEpoch"])
    return None


def offer_request(frame: Object) -> PairingRequest | None:
    if not _is_filled(frame, "requestId", "clientChannelPublicKey"):
        return None
    if "ttlSeconds" in frame:
        ttl = as_integer(frame["ttlSeconds"])
        if ttl is None or not 30 <= ttl <= 3600:
            return None
    return PairingRequest(trimmed(frame["requestId"]))


def redeem_request(frame: Object) -> PairingRequest | None:
    if _is_filled(frame, "requestId", "offerId", "encIv", "encTag", "encCiphertext"):
        return PairingRequest(trimmed(frame["requestId"]))
    return None


def pairing_response(frame: Object) -> PairingResponse | None:
    ok = frame.get("ok")
    if type(ok) is not bool or not _is_filled(frame, "requestId"):
        return None
    if not ok and not _is_filled(frame, "errorCode"):
        return None
    return PairingResponse(trimmed(frame["requestId"]))


def offer_response(frame: Object) -> PairingResponse | None:
    if frame.get("ok") is True and not _is_filled(
        frame, "daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"
    ):
        return None
    return pairing_response(frame)


def subscribe(frame: Object) -> Subscribe | None:
    channel, after = _channel(frame), as_integer(frame.get("afterSequence", 0))
    return None if channel is None or after is None or after < 0 else Subscribe(channel, after)


def unsubscribe(frame: Object) -> Unsubscribe | None:
    channel = _channel(frame)
    return None if channel is None else Unsubscribe(channel)


def viewer_presence(frame: Object) -> ViewerPresence | None:
    channel = _channel(frame)
    if channel is None or frame.get("action") not in ("joined", "left", "heartbeat"):
        return None
    if not _is_filled(frame, "userId") or not _fits(frame["userId"], 128):
        return None
    if any(name in frame and not _is_text(frame, name) for name in ("displayName", "sentAt")):
        return None
    return ViewerPresence(channel, frame["userId"]) if _fits(frame.get("displayName", ""), 255) else None


def session_event(frame: Object) -> SessionEvent | None:
    channel, event = _channel(frame), frame.get("event")
    if channel is None or type(event) is not Composite or not event.is_object:
        return None
    return SessionEvent(channel)


def executor_request(frame: Object) -> ExecutorRequest | None:
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
    return ExecutorRequest(frame["requestId"], method, path, texts, frame.get("body"))
