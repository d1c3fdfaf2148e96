"""The end-to-end envelope, version 2: one application message in one `e2ee` frame.

AES-256-GCM (NIST SP 800-38D) under the session key, a random 12-byte iv, and the routing members as
associated data, so that the relay can route an envelope and change nothing in it. Both directions use the
same key, each with its own `seq` counter from 1. Opening refuses what was seen before and what this side
sent itself.

Keys come from `e2e`; `daemon` decides when a session needs new ones.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from viewport_relay.peer import base64url, frames
from viewport_relay.peer.e2e import SessionKeys
from viewport_relay.peer.errors import Code, PeerError, require
from viewport_relay.peer.frames import Members
from viewport_relay.peer.symmetric import profile_of

VERSION = 2
IV_BYTES = 12
TAG_BYTES = 16
REPLAY_WINDOW = 128
# Far above the 250 messages after which peers re-key; it bounds the memory of `_sent`.
MESSAGE_LIMIT = 65_536


def associated_data(profile: str, session_id: str, epoch: int, seq: int) -> bytes:
    """The associated data (AAD), which the tag covers beside the ciphertext."""
    return f"viewport-relay-envelope-v2|{profile}|{session_id}|{epoch}|{seq}".encode()


class ReplayWindow:
    """The accepted sequence numbers, in constant space: the highest one and the REPLAY_WINDOW below it."""

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0

    def fresh(self, seq: int) -> bool:
        """Whether `seq` is new; numbers below the window count as seen."""
        behind = self._highest - seq
        return behind < 0 or (behind < REPLAY_WINDOW and not self._seen >> behind & 1)

    def accept(self, seq: int) -> None:
        """Remember `seq`; only after its envelope was authenticated, or a forger could move the window."""
        ahead = seq - self._highest
        if ahead > 0:
            # A jump beyond the window empties it; shifting by a forged distance would cost memory.
            kept = self._seen << ahead if ahead < REPLAY_WINDOW else 0
            self._seen = kept & ((1 << REPLAY_WINDOW) - 1) | 1
            self._highest = seq
        else:
            self._seen |= 1 << -ahead


class Session:
    """One side of an open session: seals what it sends, opens what it receives."""

    def __init__(self, keys: SessionKeys, *, iv_source: Callable[[int], bytes] = os.urandom) -> None:
        """`iv_source` is for vectors only."""
        self.profile = keys.profile
        self.session_id = keys.session_id
        self.epoch = keys.epoch
        self.client_public = keys.client_public
        self.sealed = 0
        self.opened = 0
        self._cipher = AESGCM(keys.key)
        self._iv_source = iv_source
        self._window = ReplayWindow()
        # The associated data name no direction, so an envelope that is reflected to its sender would open.
        self._sent: set[bytes] = set()

    def seal(self, text: str) -> str:
        """The `e2ee` frame, as JSON text, that carries `text`.

        `text` must not be empty (the wire has no empty ciphertext: ValueError). Raises PeerError
        SESSION_EXHAUSTED after MESSAGE_LIMIT messages.
        """
        if not text:
            raise ValueError("an envelope carries at least one byte")
        used_up = self.sealed >= MESSAGE_LIMIT
        require(not used_up, Code.SESSION_EXHAUSTED, "the session has carried as many messages as it may")
        self.sealed += 1
        seq = self.sealed
        iv = self._iv_source(IV_BYTES)
        self._sent.add(iv)
        data = associated_data(self.profile.value, self.session_id, self.epoch, seq)
        sealed = self._cipher.encrypt(iv, text.encode("utf-8"), data)
        return frames.compact(
            {
                "type": frames.ENVELOPE,
                "version": VERSION,
                "profile": self.profile.value,
                "sessionId": self.session_id,
                "epoch": self.epoch,
                "seq": seq,
                "iv": base64url.encode(iv),
                "tag": base64url.encode(sealed[-TAG_BYTES:]),
                "ciphertext": base64url.encode(sealed[:-TAG_BYTES]),
            }
        )

    def open(self, frame: Members) -> str:
        """The text inside an `e2ee` frame of this session.

        Raises PeerError: MALFORMED, PROFILE_MISMATCH, SESSION_MISMATCH (another session or epoch), REFLECTED
        (sent by this side), REPLAYED (seen before or too old), DECRYPT_FAILED. A refused envelope changes
        nothing here.
        """
        frames.require_type(frame, frames.ENVELOPE, VERSION, "an envelope")
        same_profile = profile_of(frame) is self.profile
        require(same_profile, Code.PROFILE_MISMATCH, "the envelope names another profile than its session")
        named = frames.string(frame, "sessionId"), frames.positive(frame, "epoch")
        own = named == (self.session_id, self.epoch)
        require(own, Code.SESSION_MISMATCH, "the envelope belongs to another session or epoch")
        seq = frames.positive(frame, "seq")
        iv = frames.binary(frame, "iv", IV_BYTES)
        tag = frames.binary(frame, "tag", TAG_BYTES)
        ciphertext = frames.binary(frame, "ciphertext")
        require(iv not in self._sent, Code.REFLECTED, "the envelope was sent by this side")
        fresh = self._window.fresh(seq)
        require(fresh, Code.REPLAYED, "the envelope's sequence number was seen before or is too old")
        data = associated_data(self.profile.value, self.session_id, self.epoch, seq)
        try:
            text = self._cipher.decrypt(iv, ciphertext + tag, data).decode("utf-8")
        except InvalidTag:
            raise PeerError(Code.DECRYPT_FAILED, "the envelope does not decrypt") from None
        except UnicodeDecodeError:
            raise PeerError(Code.MALFORMED, "the envelope's content is not text") from None
        self._window.accept(seq)
        self.opened += 1
        return text

    def same_client(self, public: bytes) -> bool:
        """Whether the session was opened by the client with this static public key."""
        return hmac.compare_digest(self.client_public, public)
