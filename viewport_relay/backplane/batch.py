"""The batched form of bus frames, which two relays speak when both announce it in their instance records.

    bytes 0-3    b"VRB1"
    bytes 4-35   HMAC-SHA256 (RFC 2104) keyed RELAY_BUS_HMAC_KEY over "viewport-relay-bus-batch-v1", a newline, the rest
    the rest     msgpack array: sourceRelayId, targetRelayId, instance of the target, issuedAtMs, number of the batch,
                 array of frames: workspaceId, runtimeTargetId, machineId or nil, to the daemon?, payload

One signature and one message pack cover all frames of one turn for one relay. Frames of the contract begin with "{".
Nothing here does I/O.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, DAEMON_TO_CLIENTS, Arrival, Parcel
from viewport_relay.backplane.replay import BadFrame, Freshness
from viewport_relay.protocol.json import is_utf8
from viewport_relay.reasons import Reason

MAGIC: Final = b"VRB1"
_BODY: Final = len(MAGIC) + 32
_DOMAIN: Final = b"viewport-relay-bus-batch-v1\n"


class _Frame(msgspec.Struct, array_like=True, gc=False):
    workspace_id: str
    runtime_target_id: str
    machine_id: str | None
    to_daemon: bool
    payload: bytes


class _Batch(msgspec.Struct, array_like=True, gc=False):
    source: str
    target: str
    instance: str
    issued_at_ms: int
    number: int
    frames: list[_Frame]


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, _DOMAIN + body, "sha256")


class BatchSigner:
    """Makes signed batches of what this relay sends. `now` gives seconds since the epoch."""

    def __init__(self, key: str, relay_id: str, now: Callable[[], float]) -> None:
        self._key = key.encode()
        self._relay_id = relay_id
        self._now = now
        self._number = 0  # makes each batch differ from all others

    def sign(self, parcels: Sequence[Parcel], instance: str) -> bytes:
        """A batch of parcels for one relay, whose present process is `instance`."""
        self._number += 1
        batch = _Batch(
            self._relay_id,
            parcels[0].to_relay,
            instance,
            int(self._now() * 1000),
            self._number,
            [
                _Frame(
                    *parcel.target, parcel.machine_id, parcel.direction == CLIENT_TO_DAEMON, parcel.payload
                )
                for parcel in parcels
            ],
        )
        body = msgspec.msgpack.encode(batch)
        return MAGIC + _mac(self._key, body) + body


class BatchVerifier:
    """Checks batches for this relay, whose present process is `instance`."""

    def __init__(
        self, key: str, relay_id: str, instance: str, freshness: Freshness, frame_max_bytes: int
    ) -> None:
        self._key = key.encode()
        self._relay_id = relay_id
        self._instance = instance
        self._freshness = freshness
        self._frame_max_bytes = frame_max_bytes
        self._decoder = msgspec.msgpack.Decoder(_Batch)

    def verify(self, raw: bytes) -> list[Arrival | BadFrame]:
        """What a batch brings, in order. Nothing is decoded before the signature is found right."""
        signature, body = raw[len(MAGIC) : _BODY], raw[_BODY:]
        if not hmac.compare_digest(signature, _mac(self._key, body)):
            return [BadFrame(Reason.BUS_SIGNATURE_INVALID, "the signature is not this batch's")]
        try:
            batch = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [BadFrame(Reason.BUS_FRAME_REFUSED, "a batch of an unknown form")]
        source = batch.source[:128]
        if batch.target != self._relay_id:
            return [BadFrame(Reason.BUS_FRAME_REFUSED, "it is for another relay", source, usual=True)]
        stale = self._freshness.judge(
            signature, batch.issued_at_ms, source, for_this_process=batch.instance == self._instance
        )
        if stale is not None:
            return [stale]
        return [self._frame(frame, batch.source) for frame in batch.frames]

    def _frame(self, frame: _Frame, source: str) -> Arrival | BadFrame:
        problem = ""
        if len(frame.payload) > self._frame_max_bytes:
            problem = f"a payload of {len(frame.payload)} bytes"
        elif not frame.workspace_id or not frame.runtime_target_id:
            problem = "no workspaceId or runtimeTargetId"
        elif not is_utf8(frame.payload):
            problem = "a payload that is not UTF-8"
        if problem:
            return BadFrame(Reason.BUS_FRAME_REFUSED, problem, source[:128])
        return Arrival(
            (frame.workspace_id, frame.runtime_target_id),
            CLIENT_TO_DAEMON if frame.to_daemon else DAEMON_TO_CLIENTS,
            source,
            frame.payload,
        )
