"""The batched form of bus frames, which two relays speak when both announce it in their instance records.

    bytes 0-3    b"VRB4"
    bytes 4-19   the tag: AES-256-GCM (NIST SP 800-38D) of nothing, with all that follows as additional data
    bytes 20-31  a random value of the sending process
    bytes 32-39  number of the batch, rising from 1 on; all numbers here are big-endian
    bytes 40-43  number of frames
    bytes 44-47  length of the head
    the head     msgpack array: sourceRelayId, targetRelayId, instance of the target, issuedAtMs, runs; each run an array:
                 workspaceId, runtimeTargetId, to the daemon?, profile or nil, sessionId or nil, lengths of its payloads
    the rest     the payloads in order, each behind the header of its text frame (RFC 6455 section 5.2), unmasked

The key is HMAC-SHA256 (RFC 2104) keyed RELAY_BUS_HMAC_KEY over "viewport-relay-bus-batch-v4", a newline, and the random
value; the nonce is four zero bytes and the number of the batch, which a process uses once. One tag and one head cover
all frames that leave together for one relay. A GCM tag costs a tenth of an HMAC of the same bytes. Batches for one relay
leave and arrive in the order of their numbers: a batch whose number is not above the latest is a replay.

A run is what one sender sent to one receiver in a row. Profile and sessionId are those of e2ee frames that the sending relay
has decoded and checked: they are delivered without being decoded again, a run in one piece. The tag vouches for all that. A frame
of any other kind is a run of its own. Single bus frames begin with "{". Nothing here does I/O.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import msgspec
from attrs import define
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from viewport_relay.backplane.interface import (
    CLIENT_TO_DAEMON,
    DAEMON_TO_CLIENTS,
    Arrival,
    BusFrame,
    Parcel,
)
from viewport_relay.backplane.replay import BadFrame, Freshness
from viewport_relay.backplane.signing import FrameSigner
from viewport_relay.protocol.frames import E2ee
from viewport_relay.protocol.framing import text_frames_length, text_header
from viewport_relay.protocol.grant import PROFILES
from viewport_relay.protocol.json import is_utf8
from viewport_relay.reasons import Reason

MAGIC: Final = b"VRB4"
#: The value of `batches` in the instance record of a relay that reads this form.
VERSION: Final = 4
#: Offsets of the parts: the tag, what it covers, the number of the batch, of the frames, the length of the head, the head.
_TAG, _COVERED, _NUMBER, _FRAMES, _LENGTH, _HEAD = 4, 20, 32, 40, 44, 48
#: The bytes that tell one batch from another.
MARK: Final = slice(_TAG, _COVERED)
_DOMAIN: Final = b"viewport-relay-bus-batch-v4\n"
#: Sending processes that are remembered.
_MOST_SENDERS: Final = 4096


class _Run(msgspec.Struct, array_like=True, gc=False):
    workspace_id: str
    runtime_target_id: str
    to_daemon: bool
    profile: str | None
    session_id: str | None
    sizes: list[Annotated[int, msgspec.Meta(ge=0)]]


class _Head(msgspec.Struct, array_like=True, gc=False):
    source: str
    target: str
    instance: str
    issued_at_ms: int
    runs: list[_Run]


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
        runs = [_run_of(parcel) for parcel in parcels]
        issued = int(self._now() * 1000)
        head = self._encode(_Head(self._relay_id, parcels[0].to_relay, instance, issued, runs))
        self._number += 1
        number = self._number.to_bytes(8, "big")
        payloads = [payload for parcel in parcels for payload in parcel.payloads]
        counts = len(payloads).to_bytes(4, "big") + len(head).to_bytes(4, "big")
        frames = [part for payload in payloads for part in (text_header(len(payload)), payload)]
        batch = memoryview(bytearray().join((bytes(_COVERED), self._process, number, counts, head, *frames)))
        batch[:_TAG] = MAGIC
        batch[_TAG:_COVERED] = self._key.encrypt(_nonce(number), b"", batch[_COVERED:])
        return batch


class ParcelSigner:
    """Signs the parcels for a relay in the form that it reads: all of them as one batch, or each message as a single frame.

    `reads_batches` gives the instance of a relay that reads batches, None for all others. `now` gives seconds since the epoch.
    """

    def __init__(
        self,
        key: str,
        relay_id: str,
        now: Callable[[], float],
        reads_batches: Callable[[str], str | None],
    ) -> None:
        self._frames = FrameSigner(key, relay_id, now)
        self._batches = BatchSigner(key, relay_id, now)
        self._reads_batches = reads_batches

    def sign(self, relay_id: str, parcels: Sequence[Parcel]) -> Sequence[tuple[BusFrame, Sequence[Parcel]]]:
        """Bus frames for a relay, in order, with the parcels in each."""
        instance = self._reads_batches(relay_id)
        if instance is not None:
            return ((self._batches.sign(parcels, instance), parcels),)
        singles = (single for parcel in parcels for single in parcel.singles())
        return [(self._frames.sign(single), (single,)) for single in singles]


def _run_of(parcel: Parcel) -> _Run:
    frame, sizes = parcel.frame, [len(payload) for payload in parcel.payloads]
    to_daemon = parcel.direction == CLIENT_TO_DAEMON
    # A text that is not ASCII may hold a lone surrogate, which has no UTF-8.
    if type(frame) is E2ee and frame.session_id.isascii():
        return _Run(*parcel.target, to_daemon, frame.profile, frame.session_id, sizes)
    return _Run(*parcel.target, to_daemon, None, None, sizes)


@define(eq=False)
class _Sender:
    """A process that has sent a batch with a right tag."""

    key: AESGCM
    number: int = 0  # of its latest batch


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
        self._senders: dict[bytes, _Sender] = {}  # by the random value of the process

    def verify(self, raw: bytes) -> list[Arrival | BadFrame]:
        """The arrivals in a batch, in order. Nothing is decoded before the tag is found right."""
        sender = self._sender_of(raw) if len(raw) >= _HEAD else None
        if sender is None:
            return [BadFrame(Reason.BUS_SIGNATURE_INVALID, "the tag is not this batch's")]
        at = _HEAD + int.from_bytes(raw[_LENGTH:_HEAD], "big")
        try:
            head = self._decode(raw[_HEAD:at])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [_refused("a batch of an unknown form", "")]
        source = head.source[:128]
        if head.target != self._relay_id:
            return [BadFrame(Reason.BUS_FRAME_REFUSED, "it is for another relay", source, usual=True)]
        lengths = [text_frames_length(run.sizes) for run in head.runs]
        if sum(lengths) != len(raw) - at:
            return [_refused("a batch whose parts do not fit together", source)]
        here = head.instance == self._instance
        stale = self._freshness.why_stale(head.issued_at_ms, source, for_this_process=here)
        if stale is not None:
            return [stale]
        number = int.from_bytes(raw[_NUMBER:_FRAMES], "big")
        if number <= sender.number:
            return [BadFrame(Reason.BUS_SIGNATURE_REPLAYED, "seen before", source)]
        sender.number = number
        found: list[Arrival | BadFrame] = []
        for run, length in zip(head.runs, lengths, strict=True):
            found += self._arrived(run, source, memoryview(raw)[at : at + length])
            at += length
        return found

    def _sender_of(self, raw: bytes) -> _Sender | None:
        """The process that has sent a batch; None if the tag is not the batch's."""
        process = raw[_COVERED:_NUMBER]
        sender = self._senders.get(process) or _Sender(_key_of(self._key, process))
        try:
            sender.key.decrypt(_nonce(raw[_NUMBER:_FRAMES]), raw[_TAG:_COVERED], memoryview(raw)[_COVERED:])
        except InvalidTag:
            return None
        if process not in self._senders:
            if len(self._senders) >= _MOST_SENDERS:
                del self._senders[next(iter(self._senders))]
            self._senders[process] = sender
        return sender

    def _arrived(self, run: _Run, source: str, frames: memoryview) -> Sequence[Arrival | BadFrame]:
        if not run.sizes:
            return ()
        target = run.workspace_id, run.runtime_target_id
        direction = CLIENT_TO_DAEMON if run.to_daemon else DAEMON_TO_CLIENTS
        wrong = ""
        if not all(target):
            wrong = "no workspaceId or runtimeTargetId"
        elif run.session_id and run.profile not in PROFILES:
            wrong = "an unknown profile"
        if wrong:
            return [_refused(wrong, source)] * len(run.sizes)
        frame = E2ee(str(run.profile), run.session_id) if run.session_id else None
        arrival = Arrival(target, direction, source, frames, run.sizes, frame)
        if frame is not None and max(run.sizes) <= self._frame_max_bytes:
            return (arrival,)
        return [self._single(arrival, payload) for payload in arrival.payloads]

    def _single(self, arrival: Arrival, payload: bytes) -> Arrival | BadFrame:
        if len(payload) > self._frame_max_bytes:
            return _refused(f"a payload of {len(payload)} bytes", arrival.from_relay)
        if arrival.frame is None and not is_utf8(payload):
            return _refused("a payload that is not UTF-8", arrival.from_relay)
        single = Arrival.of(arrival.target, arrival.direction, arrival.from_relay, payload)
        single.frame = arrival.frame
        return single


def _refused(detail: str, source: str) -> BadFrame:
    return BadFrame(Reason.BUS_FRAME_REFUSED, detail, source[:128])
