"""P-256 keys and the SymmetricState of the end-to-end key exchange (Noise rev 34, sections 4.1, 5.1 and 5.2)."""

from __future__ import annotations

import hashlib
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from viewport_relay.peer.errors import Code, PeerError, require
from viewport_relay.peer.frames import Members

PROLOGUE = b"viewport-relay-noise-v3"
POINT_BYTES = 65
SECRET_BYTES = 32
TAG_BYTES = 16


class Profile(Enum):
    """The handshake pattern by which client and daemon authenticate. Values are those of the wire."""

    IK = "noise-ik"
    IKPSK2 = "noise-ikpsk2"

    @property
    def protocol_name(self) -> bytes:
        """The full protocol name (Noise rev 34, section 8)."""
        return b"Noise_IK_P256_AESGCM_SHA256" if self is Profile.IK else b"Noise_IKpsk2_P256_AESGCM_SHA256"


def profile_of(frame: Members) -> Profile:
    """The profile that a frame names. Raises PeerError PROFILE_MISMATCH for any other value."""
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
        """The key pair of a 32-byte big-endian private scalar. Raises PeerError MALFORMED for any other bytes."""
        require(len(scalar) == SECRET_BYTES, Code.MALFORMED, "a P-256 private key has 32 bytes")
        try:
            return cls(ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1()))
        except ValueError:
            raise PeerError(Code.MALFORMED, "not a P-256 private key") from None

    def exchange(self, point: bytes) -> bytes:
        """DH with an uncompressed point: the 32-byte X coordinate. Raises PeerError MALFORMED off the curve."""
        uncompressed = len(point) == POINT_BYTES and point[0] == 4
        require(uncompressed, Code.MALFORMED, "not an uncompressed P-256 point")
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            return self._private.exchange(ec.ECDH(), public)
        except ValueError:
            raise PeerError(Code.MALFORMED, "not a point of P-256") from None


class SymmetricState:
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
        # Noise's HKDF is that of RFC 5869 with an empty info.
        kdf = HKDF(algorithm=hashes.SHA256(), length=32 * outputs, salt=self._ck, info=b"")
        derived = kdf.derive(material)
        return [derived[at : at + 32] for at in range(0, len(derived), 32)]

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
        require(len(ciphertext) >= TAG_BYTES, Code.MALFORMED, f"{what} is too short")
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
