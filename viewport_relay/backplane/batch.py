"""The batched form of bus frames, which two relays speak when both announce it in their instance records.

    bytes 0-3    b"VRB2"
    bytes 4-19   the tag: AES-256-GCM (NIST SP 800-38D) of nothing, with all that follows as additional data
    bytes 20-31  a random value of the sending process
    bytes 32-39  number of the batch, from 1 on; all numbers here are big-endian
    bytes 40-43  number of frames
    bytes 44-47  length of the head
    the head     msgpack array: sourceRelayId, targetRelayId, instance of the target, issuedAtMs,
                 routes: arrays of workspaceId, runtimeTargetId, machineId or nil, to the daemon?
                 frames: arrays of index of the route, length of the payload, profile or nil, sessionId or nil
    the rest     the payloads, one behind the other

The key is HMAC-SHA256 (RFC 2104) keyed RELAY_BUS_HMAC_KEY over "viewport-relay-bus-batch-v2", a newline, and the random
value; the nonce is four zero bytes and the number of the batch, which a process uses once. One tag and one head cover
all frames of one turn for one relay. A GCM tag costs a tenth of an HMAC of the same bytes.

Profile and sessionId are those of an e2ee frame that the sender has decoded and checked: such a payload is delivered
without being decoded again. The tag vouches for both. Frames of the contract begin with "{". Nothing here does I/O.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from viewport_relay.backplane.interface import (
    CLIENT_TO_DAEMON,
    DAEMON_TO_CLIENTS,
    Arrival,
    Direction,
    Parcel,
    TargetKey,
)
from viewport_relay.backplane.replay import BadFrame, Freshness
from viewport_relay.protocol.frames import E2ee
from viewport_relay.protocol.json import is_utf8
from viewport_relay.reasons import Reason

MAGIC: Final = b"VRB2"
#: What an instance record says of a relay that reads this form.
VERSION: Final = 2
#: Where the parts begin: the tag, what it covers, the number of the batch, of the frames, the length of the head, the head.
_TAG, _COVERED, _NUMBER, _FRAMES, _LENGTH, _HEAD = 4, 20, 32, 40, 44, 48
_DOMAIN: Final = b"viewport-relay-bus-batch-v2\n"
_PROFILES: Final = frozenset({"noise-ik", "noise-ikpsk2"})
#: Keys of other processes that are remembered.
_MOST_KEYS: Final = 1024


class _Route(msgspec.Struct, array_like=True, gc=False):
    workspace_id: str
    runtime_target_id: str
    machine_id: str | None
    to_daemon: bool


class _Frame(msgspec.Struct, array_like=True, gc=False):
    route: int
    size: int
    profile: str | None
    session_id: str | None


class _Head(msgspec.Struct, array_like=True, gc=False):
    source: str
    target: str
    instance: str
    issued_at_ms: int
    routes: list[_Route]
    frames: list[_Frame]


def _key_of(key: bytes, process: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, _DOMAIN + process, "sha256"))


def _nonce(number: bytes) -> bytes:
    return bytes(4) + number


class BatchSigner:
    """Makes authenticated batches of what this relay sends. `now` gives seconds since the epoch."""

    def __init__(self, key: str, relay_id: str, now: Callable[[], float]) -> None:
        self._process = os.urandom(_NUMBER - _COVERED)
        self._key = _key_of(key.encode(), self._process)
        self._relay_id = relay_id
        self._now = now
        self._number = 0
        self._encode = msgspec.msgpack.Encoder().encode

    def sign(self, parcels: Sequence[Parcel], instance: str) -> memoryview:
        """A batch of parcels for one relay, whose present process is `instance`."""
        routes, frames = _tables(parcels)
        issued = int(self._now() * 1000)
        head = self._encode(_Head(self._relay_id, parcels[0].to_relay, instance, issued, routes, frames))
        self._number += 1
        number = self._number.to_bytes(8, "big")
        fixed = (
            bytes(_COVERED),
            self._process,
            number,
            len(frames).to_bytes(4, "big"),
            len(head).to_bytes(4, "big"),
        )
        batch = memoryview(bytearray().join((*fixed, head, *[parcel.payload for parcel in parcels])))
        batch[:_TAG] = MAGIC
        batch[_TAG:_COVERED] = self._key.encrypt(_nonce(number), b"", batch[_COVERED:])
        return batch


def _tables(parcels: Sequence[Parcel]) -> tuple[list[_Route], list[_Frame]]:
    indices: dict[tuple[TargetKey, str | None, Direction], int] = {}
    routes: list[_Route] = []
    frames: list[_Frame] = []
    for parcel in parcels:
        key = parcel.target, parcel.machine_id, parcel.direction
        route = indices.get(key)
        if route is None:
            route = indices[key] = len(routes)
            routes.append(_Route(*parcel.target, parcel.machine_id, parcel.direction == CLIENT_TO_DAEMON))
        frame = parcel.frame
        # A text that is not ASCII may hold a lone surrogate, which has no UTF-8.
        if type(frame) is E2ee and frame.session_id.isascii():
            frames.append(_Frame(route, len(parcel.payload), frame.profile, frame.session_id))
        else:
            frames.append(_Frame(route, len(parcel.payload), None, None))
    return routes, frames


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
        self._decode = msgspec.msgpack.Decoder(_Head).decode
        self._keys: dict[bytes, AESGCM] = {}  # by process; only of those that have sent a right tag

    def verify(self, raw: bytes) -> list[Arrival | BadFrame]:
        """What a batch brings, in order. Nothing is decoded before the tag is found right."""
        if len(raw) < _HEAD or not self._is_authentic(raw):
            return [BadFrame(Reason.BUS_SIGNATURE_INVALID, "the tag is not this batch's")]
        at = _HEAD + int.from_bytes(raw[_LENGTH:_HEAD], "big")
        try:
            head = self._decode(raw[_HEAD:at])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [BadFrame(Reason.BUS_FRAME_REFUSED, "a batch of an unknown form")]
        source = head.source[:128]
        if head.target != self._relay_id:
            return [BadFrame(Reason.BUS_FRAME_REFUSED, "it is for another relay", source, usual=True)]
        if not _is_whole(head, len(raw) - at):
            return [BadFrame(Reason.BUS_FRAME_REFUSED, "a batch whose parts do not fit together", source)]
        stale = self._freshness.judge(
            raw[_TAG:_COVERED],
            head.issued_at_ms,
            source,
            for_this_process=head.instance == self._instance,
        )
        if stale is not None:
            return [stale]
        return self._arrivals(head, raw, at)

    def _is_authentic(self, raw: bytes) -> bool:
        process = raw[_COVERED:_NUMBER]
        key = self._keys.get(process) or _key_of(self._key, process)
        try:
            key.decrypt(_nonce(raw[_NUMBER:_FRAMES]), raw[_TAG:_COVERED], memoryview(raw)[_COVERED:])
        except InvalidTag:
            return False
        if process not in self._keys:
            if len(self._keys) >= _MOST_KEYS:
                del self._keys[next(iter(self._keys))]
            self._keys[process] = key
        return True

    def _arrivals(self, head: _Head, raw: bytes, at: int) -> list[Arrival | BadFrame]:
        source = head.source
        routes = [
            (
                (route.workspace_id, route.runtime_target_id),
                CLIENT_TO_DAEMON if route.to_daemon else DAEMON_TO_CLIENTS,
            )
            for route in head.routes
        ]
        found: list[Arrival | BadFrame] = []
        for frame in head.frames:
            begin, at = at, at + frame.size
            target, direction = routes[frame.route]
            payload, e2ee, problem = raw[begin:at], None, ""
            if frame.size > self._frame_max_bytes:
                problem = f"a payload of {frame.size} bytes"
            elif not target[0] or not target[1]:
                problem = "no workspaceId or runtimeTargetId"
            elif frame.session_id:
                if frame.profile in _PROFILES:
                    e2ee = E2ee(frame.profile, frame.session_id)
                else:
                    problem = "an unknown profile"
            elif not is_utf8(payload):
                problem = "a payload that is not UTF-8"
            if problem:
                found.append(BadFrame(Reason.BUS_FRAME_REFUSED, problem, source[:128]))
            else:
                found.append(Arrival(target, direction, source, payload, e2ee))
        return found


def _is_whole(head: _Head, payloads: int) -> bool:
    """Whether every frame has a route, and the lengths add up to the bytes of the payloads."""
    total, routes = 0, len(head.routes)
    for frame in head.frames:
        if frame.size < 0 or not 0 <= frame.route < routes:
            return False
        total += frame.size
    return total == payloads
