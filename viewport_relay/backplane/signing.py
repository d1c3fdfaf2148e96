"""Single bus frames: signed and verified (wire protocol, section 12).

A frame is a JSON object. Its signature is HMAC-SHA256 (RFC 2104) over its members, joined by newlines. It covers the
time of issue, so that a frame is good for a short time and only once (see `replay`). Nothing here does I/O.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from viewport_relay.backplane.interface import (
    CLIENT_TO_DAEMON,
    DAEMON_TO_CLIENTS,
    Arrival,
    Parcel,
)
from viewport_relay.backplane.replay import BadFrame, Freshness
from viewport_relay.protocol.base64url import base64url
from viewport_relay.protocol.json import Members, Text, as_integer, is_utf8
from viewport_relay.reasons import Reason

_ISSUED_MAX: Final = 65_536


#: The members of a bus frame. Others are checked as JSON and not built: the queue may hold anything.
_MEMBERS: Final = Members(
    "workspaceId", "runtimeTargetId", "machineId", "sourceRelayId", "targetRelayId", "direction", "payload",
    "issuedAtMs", "signature",
)  # fmt: skip


class _Frame(msgspec.Struct, omit_defaults=True):
    workspaceId: str
    runtimeTargetId: str
    sourceRelayId: str
    targetRelayId: str
    direction: str
    payload: str
    issuedAtMs: int
    signature: str
    machineId: str | None = None


def signature_of(key: bytes, members: Sequence[str], payload: bytes | bytearray) -> bytes:
    """HMAC-SHA256 over members and a payload, joined by newlines: 32 bytes. Raises UnicodeEncodeError for a lone surrogate.

    The members of a bus frame are workspaceId, runtimeTargetId, machineId or nothing, sourceRelayId, targetRelayId or nothing,
    direction, issuedAtMs.
    """
    return hmac.digest(key, "\n".join((*members, "")).encode() + payload, "sha256")


class FrameSigner:
    """Makes signed frames of what this relay sends. `now` gives seconds since the epoch."""

    def __init__(self, key: str, relay_id: str, now: Callable[[], float]) -> None:
        self._key = key.encode()
        self._relay_id = relay_id
        self._now = now
        self._latest = 0
        #: signatures with a time of issue from the millisecond of `_latest` on
        self._issued: set[bytes] = set()

    def sign(self, parcel: Parcel) -> bytes:
        """A parcel of one message as a signed bus frame. Raises ValueError for a payload that is not UTF-8."""
        [payload] = parcel.payloads
        now = int(self._now() * 1000)
        if now > self._latest or len(self._issued) >= _ISSUED_MAX:
            self._latest = now
            self._issued.clear()
        signature = self._signature(parcel, now)
        if signature in self._issued:
            # The same message again would be taken for a replay. Nothing was issued for a later time than this.
            now = self._latest + 1
            signature = self._signature(parcel, now)
        self._latest = max(self._latest, now)
        self._issued.add(signature)
        return msgspec.json.encode(
            _Frame(
                *parcel.target,
                self._relay_id,
                parcel.to_relay,
                parcel.direction,
                payload.decode(),
                now,
                base64url(signature),
                parcel.machine_id,
            )
        )

    def _signature(self, parcel: Parcel, issued_at_ms: int) -> bytes:
        ends = self._relay_id, parcel.to_relay
        members = *parcel.target, parcel.machine_id or "", *ends, parcel.direction, str(issued_at_ms)
        return signature_of(self._key, members, parcel.payloads[0])


class FrameVerifier:
    """Checks single bus frames (wire protocol, section 12)."""

    def __init__(self, key: str, relay_id: str, freshness: Freshness, frame_max_bytes: int) -> None:
        self._key = key.encode()
        self._relay_id = relay_id
        self._freshness = freshness
        self._frame_max_bytes = frame_max_bytes

    def verify(self, raw: bytes | Mapping[str, object]) -> Arrival | BadFrame:
        """The arrival in a frame, or why it is refused."""
        frame = _object(raw) if isinstance(raw, bytes) else raw
        if frame is None:
            return BadFrame(Reason.BUS_FRAME_REFUSED, "not a JSON object")
        source = frame.get("sourceRelayId")
        if type(source) is not str or not source:
            return BadFrame(Reason.BUS_FRAME_REFUSED, "no sourceRelayId")
        if source == self._relay_id:
            return BadFrame(Reason.BUS_FRAME_REFUSED, "it is this relay's own", source, usual=True)
        to = frame.get("targetRelayId")
        if to is not None and to != self._relay_id:
            return BadFrame(Reason.BUS_FRAME_REFUSED, "it is for another relay", source[:128], usual=True)
        return self._checked(frame, source, to)

    def _checked(self, frame: Mapping[str, Any], source: str, to: str | None) -> Arrival | BadFrame:
        def refused(detail: str, reason: Reason = Reason.BUS_FRAME_REFUSED) -> BadFrame:
            return BadFrame(reason, detail, source[:128])

        workspace, target, machine = map(frame.get, ("workspaceId", "runtimeTargetId", "machineId"))
        payload, direction = frame.get("payload"), frame.get("direction")
        if type(workspace) is not str or not workspace or type(target) is not str or not target:
            return refused("no workspaceId or runtimeTargetId")
        if (
            direction not in (CLIENT_TO_DAEMON, DAEMON_TO_CLIENTS)
            or type(payload) is not str
            or type(machine) not in (str, type(None))
        ):
            return refused("direction, payload or machineId has a wrong form")
        issued, said = as_integer(frame.get("issuedAtMs")), frame.get("signature")
        if issued is None or type(said) is not str:
            return refused("no signature or no issuedAtMs", Reason.BUS_SIGNATURE_INVALID)
        try:
            body = payload.encode()
            members = workspace, target, machine or "", source, to or "", direction, str(issued)
            if any("\n" in member for member in members):
                return refused("an id with a line break")
            signature = signature_of(self._key, members, body)
            right = hmac.compare_digest(base64url(signature).encode(), said.encode())
        except UnicodeEncodeError:
            return refused("a lone surrogate")
        if not right:
            return refused("the signature is not this frame's", Reason.BUS_SIGNATURE_INVALID)
        stale = self._freshness.why_stale(issued, source[:128])
        if stale is not None:
            return stale
        if not self._freshness.guard.is_new(signature, issued / 1000):
            return refused("seen before", Reason.BUS_SIGNATURE_REPLAYED)
        if len(body) > self._frame_max_bytes:
            return refused(f"a payload of {len(body)} bytes")
        return Arrival.of((workspace, target), direction, source, body)


def _object(raw: bytes) -> Mapping[str, object] | None:
    return _MEMBERS.of(Text(raw)) if is_utf8(raw) else None
