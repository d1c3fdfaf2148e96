"""Noise v3 end to end: the key exchange between a client (initiator) and a daemon (responder).

Implements `Noise_IK_P256_AESGCM_SHA256` and `Noise_IKpsk2_P256_AESGCM_SHA256` as today's peers speak them:
the framework of Noise rev 34 (sections 5 and 9) with four differences that the wire fixes. The first message
has no payload, the ephemeral key is not mixed into the key in psk mode, AESGCM counts little-endian, and the
session key is derived from both halves of Split. No sockets, no clock: values in, values out.

    client                                                daemon
      | -- relay_key_exchange_init (e, es, s, ss) ----------> |
      | <- relay_key_exchange_response (e, ee, se, [psk]) --- |
      |        both: session key, epoch                       |

What it does not do: carry messages (`envelope`), keep sessions (`daemon`, `client`).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from viewport_relay.peer import base64url, frames
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.frames import Members

VERSION = 3
PROLOGUE = b"viewport-relay-noise-v3"
POINT_BYTES = 65
SECRET_BYTES = 32
TAG_BYTES = 16


class Profile(Enum):
    """How client and daemon authenticate; the values are the wire's words."""

    IK = "noise-ik"
    IKPSK2 = "noise-ikpsk2"

    @property
    def protocol_name(self) -> bytes:
        """The full protocol name (Noise rev 34, section 8)."""
        return b"Noise_IK_P256_AESGCM_SHA256" if self is Profile.IK else b"Noise_IKpsk2_P256_AESGCM_SHA256"


def profile_of(frame: Members) -> Profile:
    """The profile a frame names (PeerError PROFILE_MISMATCH when it is none of the two)."""
    try:
        return Profile(frame.get("profile"))
    except ValueError:
        raise PeerError(Code.PROFILE_MISMATCH, "the frame names no profile known here") from None


class KeyPair:
    """A P-256 key pair, static or ephemeral."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public: bytes = private.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    @classmethod
    def generate(cls) -> KeyPair:
        """A fresh key pair from the system's random source."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_private(cls, scalar: bytes) -> KeyPair:
        """The key pair of a 32-byte big-endian private scalar (PeerError MALFORMED if it is none)."""
        if len(scalar) != SECRET_BYTES:
            raise PeerError(Code.MALFORMED, "a P-256 private key has 32 bytes")
        try:
            return cls(ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1()))
        except ValueError:
            raise PeerError(Code.MALFORMED, "not a P-256 private key") from None

    def exchange(self, point: bytes) -> bytes:
        """DH with an uncompressed point: the 32-byte X coordinate (PeerError MALFORMED if off the curve)."""
        if len(point) != POINT_BYTES or point[0] != 4:
            raise PeerError(Code.MALFORMED, "not an uncompressed P-256 point")
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            return self._private.exchange(ec.ECDH(), public)
        except ValueError:
            raise PeerError(Code.MALFORMED, "not a point of P-256") from None


class _Symmetric:
    """SymmetricState with its CipherState (Noise rev 34, sections 5.1 and 5.2)."""

    def __init__(self, profile: Profile, daemon_public: bytes) -> None:
        # Both names fit into 32 bytes, so the padded name is the hash.
        self.h = profile.protocol_name.ljust(32, b"\x00")
        self._ck = self.h
        self._key = b""
        self._counter = 0
        self.mix_hash(PROLOGUE)
        self.mix_hash(daemon_public)

    def _hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        temp = hmac.digest(self._ck, material, "sha256")
        chain: list[bytes] = []
        previous = b""
        for index in range(1, outputs + 1):
            previous = hmac.digest(temp, previous + bytes([index]), "sha256")
            chain.append(previous)
        return chain

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._ck, self._key = self._hkdf(material, 2)
        self._counter = 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self._ck, temp, self._key = self._hkdf(material, 3)
        self.mix_hash(temp)
        self._counter = 0

    def _nonce(self) -> bytes:
        nonce = bytes(4) + self._counter.to_bytes(8, "little")
        self._counter += 1
        return nonce

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = AESGCM(self._key).encrypt(self._nonce(), plaintext, self.h)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes, what: str) -> bytes:
        if len(ciphertext) < TAG_BYTES:
            raise PeerError(Code.MALFORMED, f"{what} is too short")
        try:
            plaintext = AESGCM(self._key).decrypt(self._nonce(), ciphertext, self.h)
        except InvalidTag:
            raise PeerError(Code.DECRYPT_FAILED, f"{what} does not decrypt") from None
        self.mix_hash(ciphertext)
        return plaintext

    def session_key(self, profile: Profile, session_id: str, epoch: int) -> bytes:
        info = f"viewport-relay-session-v3|{profile.value}|{session_id}|{epoch}".encode()
        keys = b"".join(self._hkdf(b"", 2))
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=self.h, info=info).derive(keys)


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """What a finished key exchange gives; no repr, since it holds the key."""

    profile: Profile
    session_id: str
    epoch: int
    key: bytes
    client_public: bytes


def _check_psk(profile: Profile, psk: bytes | None) -> None:
    if profile is Profile.IKPSK2 and (psk is None or len(psk) != SECRET_BYTES):
        raise PeerError(Code.PAIRING_UNKNOWN, "noise-ikpsk2 needs a pairing secret of 32 bytes")


class Initiator:
    """The client's half of one key exchange; use each once.

    `ephemeral` is for vectors only: a second exchange with the same one would give its keys away.
    """

    def __init__(
        self,
        profile: Profile,
        static: KeyPair,
        daemon_public: bytes,
        *,
        request_id: str,
        psk: bytes | None = None,
        pairing_peer_id: str | None = None,
        previous_session_id: str | None = None,
        ephemeral: KeyPair | None = None,
    ) -> None:
        _check_psk(profile, psk)
        if profile is Profile.IKPSK2 and not pairing_peer_id:
            raise PeerError(Code.PAIRING_UNKNOWN, "noise-ikpsk2 needs a pairing peer id")
        self._profile = profile
        self._static = static
        self._daemon_public = daemon_public
        self._request_id = request_id
        self._psk = psk
        self._pairing_peer_id = pairing_peer_id
        self._previous = previous_session_id
        self._ephemeral = ephemeral or KeyPair.generate()
        self._state = _Symmetric(profile, daemon_public)

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
        if self._previous is not None:
            frame["previousSessionId"] = self._previous
        return frame

    def finish(self, frame: Members) -> SessionKeys:
        """Check the daemon's `relay_key_exchange_response` and derive the session.

        Raises PeerError: MALFORMED, PROFILE_MISMATCH, REQUEST_MISMATCH, DAEMON_KEY_MISMATCH, DECRYPT_FAILED
        (another daemon, another pairing secret, damage), SESSION_MISMATCH, PROOF_MISMATCH.
        """
        if frame.get("type") != frames.KEY_EXCHANGE_RESPONSE or frames.positive(frame, "version") != VERSION:
            raise PeerError(Code.MALFORMED, "not a key exchange response of version 3")
        if profile_of(frame) is not self._profile:
            raise PeerError(Code.PROFILE_MISMATCH, "the response names another profile than the request")
        if frames.string(frame, "requestId") != self._request_id:
            raise PeerError(Code.REQUEST_MISMATCH, "the response belongs to another request")
        if (
            base64url.decode(frame.get("daemonPublicKey"), "daemonPublicKey", POINT_BYTES)
            != self._daemon_public
        ):
            raise PeerError(
                Code.DAEMON_KEY_MISMATCH, "the response names another daemon key than the pinned one"
            )
        ephemeral = base64url.decode(
            frame.get("daemonEphemeralPublicKey"), "daemonEphemeralPublicKey", POINT_BYTES
        )
        encrypted = base64url.decode(frame.get("encryptedMetadata"), "encryptedMetadata")
        proof = base64url.decode(frame.get("proof"), "proof", SECRET_BYTES)

        state = self._state
        state.mix_hash(ephemeral)
        state.mix_key(self._ephemeral.exchange(ephemeral))
        state.mix_key(self._static.exchange(ephemeral))
        if self._psk is not None and self._profile is Profile.IKPSK2:
            state.mix_key_and_hash(self._psk)
        metadata = self._metadata(state.decrypt_and_hash(encrypted, "encryptedMetadata"))
        session_id, epoch = frames.string(metadata, "sessionId"), frames.positive(metadata, "epoch")
        # The clear copies serve the relay's routing; only the encrypted ones are authenticated.
        if frame.get("sessionId") != session_id or frames.positive(frame, "epoch") != epoch:
            raise PeerError(
                Code.SESSION_MISMATCH, "the response's session differs from its encrypted metadata"
            )
        if not hmac.compare_digest(proof, state.h):
            raise PeerError(Code.PROOF_MISMATCH, "the response's proof does not match")
        key = state.session_key(self._profile, session_id, epoch)
        return SessionKeys(self._profile, session_id, epoch, key, self._static.public)

    @staticmethod
    def _metadata(plaintext: bytes) -> Members:
        try:
            return frames.parse(plaintext.decode("utf-8"))
        except UnicodeDecodeError:
            raise PeerError(Code.MALFORMED, "the metadata is not text") from None


class Responder:
    """The daemon's half of one key exchange; use each once. It has read the client's init when it exists.

    Raises PeerError MALFORMED, PROFILE_MISMATCH or DECRYPT_FAILED for an init that cannot be answered.
    """

    def __init__(self, init: Members, static: KeyPair) -> None:
        if init.get("type") != frames.KEY_EXCHANGE_INIT or frames.positive(init, "version") != VERSION:
            raise PeerError(Code.MALFORMED, "not a key exchange init of version 3")
        self.profile = profile_of(init)
        self.request_id = frames.string(init, "requestId")
        self.pairing_peer_id: str | None = None
        if self.profile is Profile.IKPSK2:
            self.pairing_peer_id = frames.string(init, "pairingPeerId")
        previous = init.get("previousSessionId")
        self.previous_session_id = previous if isinstance(previous, str) else None
        self._static = static
        self._client_ephemeral = base64url.decode(
            init.get("clientEphemeralPublicKey"), "clientEphemeralPublicKey", POINT_BYTES
        )
        encrypted = base64url.decode(
            init.get("encryptedClientStatic"), "encryptedClientStatic", POINT_BYTES + TAG_BYTES
        )
        state = self._state = _Symmetric(self.profile, static.public)
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
