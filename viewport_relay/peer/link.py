"""The initiator's side of the link between a peer and its relay (sub-protocol `viewport.noise-link.v1`).

`Noise_IK_25519_ChaChaPoly_SHA256` / `Noise_IKpsk2_25519_ChaChaPoly_SHA256` (Noise rev 34) over
noiseprotocol, and the record layer on top. The peer knows the relay's static key beforehand.

    peer                                              relay
      | -- version, pattern, Noise message 1 ----------> |
      | <- Noise message 2 {relayId, frameMaxBytes} ---- |
      | -- record {"type":"link_confirm"} -------------> |   only now is the peer admitted
      | <= records, both ways ========================> |

Each WebSocket message is binary and carries one frame in one or more records: a 2-byte big-endian length and
a Noise transport message. Sockets and timers are those of `connection`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from attrs import frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from noise.connection import Keypair, NoiseConnection
from noise.exceptions import NoiseInvalidMessage, NoiseValueError

from viewport_relay.peer import frames
from viewport_relay.peer.errors import Code, PeerError, require

SUBPROTOCOL = "viewport.noise-link.v1"
VERSION = 1
KEY_BYTES = 32
TAG_BYTES = 16
RECORD_PLAINTEXT = 65_519
FRAME_MAX_BYTES = 1_048_576
CONFIRM = b'{"type":"link_confirm"}'


class Pattern(Enum):
    """The handshake pattern; the value is the byte that announces it."""

    IK = 0x01
    IKPSK2 = 0x02

    @property
    def protocol_name(self) -> bytes:
        """The full protocol name (Noise rev 34, section 8)."""
        name = "IK" if self is Pattern.IK else "IKpsk2"
        return f"Noise_{name}_25519_ChaChaPoly_SHA256".encode()


def derive_psk(pairing_secret: bytes) -> bytes:
    """The link's 32-byte PSK from the 32-byte pairing secret of the grant (HKDF-SHA256, RFC 5869)."""
    whole = len(pairing_secret) == KEY_BYTES
    require(whole, Code.PAIRING_UNKNOWN, "the link's pairing secret must have 32 bytes")
    info = b"viewport-relay-link-psk-v1"
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(pairing_secret)


def prologue(role: str, workspace_id: str, target_id: str) -> bytes:
    """The prologue that binds the handshake to the upgrade; all as in the query, `target_id` empty when it names none."""
    return b"\x00".join([b"viewport-relay-link-v1", role.encode(), workspace_id.encode(), target_id.encode()])


def generate_static() -> bytes:
    """A fresh X25519 private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


@frozen(repr=False)
class LinkSettings:
    """Keys and identity with which a peer opens a link. No repr: it holds keys.

    `relay_public` and `static_private` are 32-byte X25519 keys; with a `pairing_secret` (32 bytes) the
    pattern is IKpsk2, without it IK. `ephemeral_private` is for vectors only.
    """

    relay_public: bytes
    static_private: bytes
    role: str
    workspace_id: str
    target_id: str = ""
    pairing_secret: bytes | None = None
    ephemeral_private: bytes | None = None

    @property
    def pattern(self) -> Pattern:
        """IKpsk2 exactly when there is a pairing secret."""
        return Pattern.IK if self.pairing_secret is None else Pattern.IKPSK2


class LinkInitiator:
    """One link from message 1 to its last record; use each once, for one WebSocket connection."""

    def __init__(self, settings: LinkSettings) -> None:
        noise: Any = NoiseConnection.from_name(settings.pattern.protocol_name)
        noise.set_as_initiator()
        noise.set_prologue(prologue(settings.role, settings.workspace_id, settings.target_id))
        if settings.pairing_secret is not None:
            noise.set_psks(psk=derive_psk(settings.pairing_secret))
        try:
            noise.set_keypair_from_private_bytes(Keypair.STATIC, settings.static_private)
            noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, settings.relay_public)
            if settings.ephemeral_private is not None:
                noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, settings.ephemeral_private)
        except (ValueError, NoiseValueError):
            raise PeerError(Code.MALFORMED, "an X25519 key has 32 bytes") from None
        noise.start_handshake()
        self._noise = noise
        self._pattern = settings.pattern
        #: The relay's limit for one frame's plaintext; message 2 says it.
        self.frame_max_bytes = FRAME_MAX_BYTES

    @property
    def established(self) -> bool:
        """Whether message 2 was read, so that frames can be sealed and opened."""
        return bool(self._noise.handshake_finished)

    def message_1(self) -> bytes:
        """Version byte, pattern byte, Noise message 1.

        Raises PeerError MALFORMED for a low-order relay key.
        """
        try:
            message = bytes(self._noise.write_message())
        except ValueError:
            raise PeerError(Code.MALFORMED, "the relay's link key is not usable") from None
        return bytes([VERSION, self._pattern.value]) + message

    def read_message_2(self, message: bytes) -> str:
        """Read the relay's answer and return its id. The first record to send after it is `confirm()`.

        Raises PeerError MALFORMED (too short, payload not as promised) or DECRYPT_FAILED (another relay,
        another pairing secret, damage); the link is then unusable.
        """
        long_enough = len(message) >= KEY_BYTES + TAG_BYTES
        require(long_enough, Code.MALFORMED, "the relay's handshake message is too short")
        try:
            payload = bytes(self._noise.read_message(message))
        except (InvalidTag, ValueError, NoiseValueError):
            # ValueError: a low-order point. The library gives no more exact reason.
            raise PeerError(Code.DECRYPT_FAILED, "the relay's handshake message does not decrypt") from None
        members = frames.parse_payload(payload, "the relay's handshake payload")
        relay_id = frames.string(members, "relayId")
        self.frame_max_bytes = frames.positive(members, "frameMaxBytes")
        return relay_id

    def confirm(self) -> bytes:
        """The first transport message, which proves that both sides derived the same keys."""
        return self.seal(CONFIRM)

    def seal(self, frame: bytes) -> bytes:
        """One binary message for one frame.

        Raises PeerError TOO_LARGE over the relay's limit, OUT_OF_ORDER before the link is up.
        """
        require(self.established, Code.OUT_OF_ORDER, "the link is not up yet")
        fits = len(frame) <= self.frame_max_bytes
        require(fits, Code.TOO_LARGE, "the frame is larger than the relay takes")
        message = bytearray()
        for start in range(0, len(frame) or 1, RECORD_PLAINTEXT):
            record = self._noise.encrypt(frame[start : start + RECORD_PLAINTEXT])
            message += len(record).to_bytes(2, "big") + record
        return bytes(message)

    def open(self, message: bytes) -> bytes:
        """The frame inside one binary message.

        Raises PeerError MALFORMED (a bad length, no record), TOO_LARGE, DECRYPT_FAILED, OUT_OF_ORDER; each
        is fatal.
        """
        require(self.established, Code.OUT_OF_ORDER, "the link is not up yet")
        frame = bytearray()
        position = 0
        while position < len(message) or position == 0:
            size = int.from_bytes(message[position : position + 2], "big")
            record = message[position + 2 : position + 2 + size]
            whole = len(record) == size >= TAG_BYTES
            require(whole, Code.MALFORMED, "a link record has a bad length")
            fits = len(frame) + size - TAG_BYTES <= self.frame_max_bytes
            require(fits, Code.TOO_LARGE, "the relay sent a frame over its own limit")
            try:
                frame += self._noise.decrypt(record)
            except NoiseInvalidMessage:
                raise PeerError(Code.DECRYPT_FAILED, "a link record does not decrypt") from None
            position += 2 + size
        return bytes(frame)
