"""Noise v3 end to end: the key exchange between a client (initiator) and a daemon (responder).

Implements `Noise_IK_P256_AESGCM_SHA256` and `Noise_IKpsk2_P256_AESGCM_SHA256` as deployed peers use them:
the framework of Noise rev 34 (sections 5 and 9) with four differences that the wire fixes. The first message
has no payload, the ephemeral key is not mixed into the key in psk mode, AESGCM counts little-endian, and the
session key is derived from both halves of Split. No sockets, no clock: values in, values out.

    client                                                daemon
      | -- relay_key_exchange_init (e, es, s, ss) ----------> |
      | <- relay_key_exchange_response (e, ee, se, [psk]) --- |
      |        both: session key, epoch                       |

Messages are carried by `envelope`, sessions are kept by `daemon` and `client`.
"""

from __future__ import annotations

import hmac

from attrs import define, field, frozen

from viewport_relay.peer import base64url, frames
from viewport_relay.peer.errors import Code, require
from viewport_relay.peer.frames import Members
from viewport_relay.peer.symmetric import (
    POINT_BYTES,
    SECRET_BYTES,
    TAG_BYTES,
    KeyPair,
    Profile,
    SymmetricState,
    profile_of,
)

VERSION = 3


@frozen(repr=False)
class SessionKeys:
    """The result of a key exchange. No repr: it holds the session key."""

    profile: Profile
    session_id: str
    epoch: int
    key: bytes
    client_public: bytes


def _check_psk(profile: Profile, psk: bytes | None) -> None:
    fine = profile is Profile.IK or (psk is not None and len(psk) == SECRET_BYTES)
    require(fine, Code.PAIRING_UNKNOWN, "noise-ikpsk2 needs a pairing secret of 32 bytes")


@define(eq=False, repr=False)
class Initiator:
    """The client's half of one key exchange; use each once.

    `ephemeral` is for vectors only: a second exchange with the same one would give its keys away.
    """

    _profile: Profile
    _static: KeyPair
    _daemon_public: bytes
    _request_id: str = field(kw_only=True)
    _psk: bytes | None = field(default=None, kw_only=True)
    _pairing_peer_id: str | None = field(default=None, kw_only=True)
    _previous_session_id: str | None = field(default=None, kw_only=True)
    _ephemeral: KeyPair = field(factory=KeyPair.generate, kw_only=True)
    _state: SymmetricState = field(init=False)

    def __attrs_post_init__(self) -> None:
        _check_psk(self._profile, self._psk)
        named = self._profile is Profile.IK or bool(self._pairing_peer_id)
        require(named, Code.PAIRING_UNKNOWN, "noise-ikpsk2 needs a pairing peer id")
        self._state = SymmetricState(self._profile, self._daemon_public)

    def init_frame(self) -> Members:
        """`relay_key_exchange_init` version 3."""
        state = self._state
        state.mix_hash(self._ephemeral.public)
        state.mix_key(self._ephemeral.exchange(self._daemon_public))
        encrypted_static = state.encrypt_and_hash(self._static.public)
        state.mix_key(self._static.exchange(self._daemon_public))
        frame: Members = {
            "type": frames.KEY_EXCHANGE_INIT,
            "version": VERSION,
            "profile": self._profile.value,
            "requestId": self._request_id,
            "clientEphemeralPublicKey": base64url.encode(self._ephemeral.public),
            "encryptedClientStatic": base64url.encode(encrypted_static),
        }
        if self._profile is Profile.IKPSK2:
            frame["pairingPeerId"] = self._pairing_peer_id
        if self._previous_session_id is not None:
            frame["previousSessionId"] = self._previous_session_id
        return frame

    def finish(self, frame: Members) -> SessionKeys:
        """Check the daemon's `relay_key_exchange_response` and derive the session.

        Raises PeerError: MALFORMED, PROFILE_MISMATCH, REQUEST_MISMATCH, DAEMON_KEY_MISMATCH, DECRYPT_FAILED
        (another daemon, another pairing secret, damage), SESSION_MISMATCH, PROOF_MISMATCH.
        """
        frames.require_type(frame, frames.KEY_EXCHANGE_RESPONSE, VERSION, "a key exchange response")
        same_profile = profile_of(frame) is self._profile
        require(same_profile, Code.PROFILE_MISMATCH, "the response names another profile than the request")
        same_request = frames.string(frame, "requestId") == self._request_id
        require(same_request, Code.REQUEST_MISMATCH, "the response belongs to another request")
        pinned = frames.binary(frame, "daemonPublicKey", POINT_BYTES) == self._daemon_public
        require(pinned, Code.DAEMON_KEY_MISMATCH, "the response names another daemon key than the pinned one")
        ephemeral = frames.binary(frame, "daemonEphemeralPublicKey", POINT_BYTES)
        encrypted = frames.binary(frame, "encryptedMetadata")
        proof = frames.binary(frame, "proof", SECRET_BYTES)

        state = self._state
        state.mix_hash(ephemeral)
        state.mix_key(self._ephemeral.exchange(ephemeral))
        state.mix_key(self._static.exchange(ephemeral))
        if self._psk is not None and self._profile is Profile.IKPSK2:
            state.mix_key_and_hash(self._psk)
        metadata = state.decrypt_and_hash(encrypted, "encryptedMetadata")
        members = frames.parse_payload(metadata, "the metadata")
        session_id, epoch = frames.string(members, "sessionId"), frames.positive(members, "epoch")
        # The clear copies serve the relay's routing; only the encrypted ones are authenticated.
        same = frame.get("sessionId") == session_id and frames.positive(frame, "epoch") == epoch
        require(same, Code.SESSION_MISMATCH, "the response's session differs from its encrypted metadata")
        proven = hmac.compare_digest(proof, state.h)
        require(proven, Code.PROOF_MISMATCH, "the response's proof does not match")
        key = state.session_key(self._profile, session_id, epoch)
        return SessionKeys(self._profile, session_id, epoch, key, self._static.public)


class Responder:
    """The daemon's half of one key exchange; use each once. It has read the client's init when it exists.

    Raises PeerError MALFORMED, PROFILE_MISMATCH or DECRYPT_FAILED for an init that cannot be answered.
    """

    def __init__(self, init: Members, static: KeyPair) -> None:
        frames.require_type(init, frames.KEY_EXCHANGE_INIT, VERSION, "a key exchange init")
        self.profile = profile_of(init)
        self.request_id = frames.string(init, "requestId")
        self.pairing_peer_id: str | None = None
        if self.profile is Profile.IKPSK2:
            self.pairing_peer_id = frames.string(init, "pairingPeerId")
        previous = init.get("previousSessionId")
        self.previous_session_id = previous if isinstance(previous, str) else None
        self._static = static
        self._client_ephemeral = frames.binary(init, "clientEphemeralPublicKey", POINT_BYTES)
        encrypted = frames.binary(init, "encryptedClientStatic", POINT_BYTES + TAG_BYTES)
        state = self._state = SymmetricState(self.profile, static.public)
        state.mix_hash(self._client_ephemeral)
        state.mix_key(static.exchange(self._client_ephemeral))
        self.client_public: bytes = state.decrypt_and_hash(encrypted, "encryptedClientStatic")
        state.mix_key(static.exchange(self.client_public))

    def respond(
        self, session_id: str, epoch: int, *, psk: bytes | None = None, ephemeral: KeyPair | None = None
    ) -> tuple[Members, SessionKeys]:
        """`relay_key_exchange_response` version 3 and the session it opens.

        `epoch` >= 1; `psk` is the 32-byte pairing secret under noise-ikpsk2 (PeerError PAIRING_UNKNOWN
        without). `ephemeral` is for vectors only.
        """
        _check_psk(self.profile, psk)
        ephemeral = ephemeral or KeyPair.generate()
        state = self._state
        state.mix_hash(ephemeral.public)
        state.mix_key(ephemeral.exchange(self._client_ephemeral))
        state.mix_key(ephemeral.exchange(self.client_public))
        if psk is not None and self.profile is Profile.IKPSK2:
            state.mix_key_and_hash(psk)
        metadata = frames.compact({"sessionId": session_id, "epoch": epoch})
        encrypted = state.encrypt_and_hash(metadata.encode())
        frame: Members = {
            "type": frames.KEY_EXCHANGE_RESPONSE,
            "version": VERSION,
            "profile": self.profile.value,
            "requestId": self.request_id,
            "daemonPublicKey": base64url.encode(self._static.public),
            "daemonEphemeralPublicKey": base64url.encode(ephemeral.public),
            "encryptedMetadata": base64url.encode(encrypted),
            "sessionId": session_id,
            "epoch": epoch,
            "proof": base64url.encode(state.h),
        }
        key = state.session_key(self.profile, session_id, epoch)
        return frame, SessionKeys(self.profile, session_id, epoch, key, self.client_public)
