"""Fixtures of the link's tests: grants, keys, a recording connection, two initiators.

`Initiator` uses noiseprotocol. `PlainInitiator` follows the Noise specification (rev 34, section 5) over bare primitives: a fault
of the library would show as a difference.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from attrs import Factory, define
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from noise.connection import Keypair, NoiseConnection

from viewport_relay.noise.keys import RelayKeys, StaticKey
from viewport_relay.noise.link import LinkResponder
from viewport_relay.noise.machine import NoiseLink
from viewport_relay.noise.policy import Pattern
from viewport_relay.noise.records import LinkRecords
from viewport_relay.protocol.grant import Claims, Grant, Profile, Role, Scope, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

SECRET = hashlib.sha256(b"tests: pairing secret").digest()
OTHER_SECRET = hashlib.sha256(b"tests: another pairing secret").digest()
PEER_STATIC = hashlib.sha256(b"tests: peer static").digest()
CONFIRM = b'{"type":"link_confirm"}'
QUERY = UpgradeQuery(Role.DAEMON, "ws-1", "rt-1")
CURRENT = StaticKey(hashlib.sha256(b"tests: relay key").digest())
PREVIOUS = StaticKey(hashlib.sha256(b"tests: relay key before").digest())
KEYS = RelayKeys(CURRENT, PREVIOUS)
FRAME_MAX = 1_048_576

# X25519 points of small order (RFC 7748, section 6.1: the shared secret is all zero).
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def grant(
    role: Role = Role.DAEMON,
    required: Profile | None = None,
    secret: str | None = b64(SECRET),
    daemon_public_key: str | None = None,
) -> Grant:
    claims = Claims(pairing_secret=secret, daemon_public_key=daemon_public_key)
    return Grant(role, "ws-1", "rt-1", Scope.RUNTIME, "client-1", claims, required)


@define
class Recorder:
    """Null connection that records every call of the machine."""

    sent: list[bytes] = Factory(list)
    admitted: list[Pattern | None] = Factory(list)
    failed: list[tuple[Reason, str, Mapping[str, Any]]] = Factory(list)
    noted: list[tuple[Reason, str, Mapping[str, Any]]] = Factory(list)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def established(self, pattern: Pattern | None) -> None:
        self.admitted.append(pattern)

    def fail(self, refusal: Refusal) -> None:
        self.failed.append((refusal.reason, refusal.detail, refusal.details))

    def note(self, refusal: Refusal) -> None:
        self.noted.append((refusal.reason, refusal.detail, refusal.details))

    @property
    def reason(self) -> Reason | None:
        """The reason of the failure; asserts that there was at most one."""
        assert len(self.failed) <= 1
        return self.failed[0][0] if self.failed else None


def connection(
    granted: Grant | None = None,
    keys: RelayKeys = KEYS,
    query: UpgradeQuery = QUERY,
    frame_max: int = FRAME_MAX,
) -> tuple[Recorder, NoiseLink]:
    """A connection with an offered link, before message 1."""
    peer = Recorder()
    responder = LinkResponder(query, granted or grant(), keys, "relay-1", frame_max)
    noise = NoiseLink(peer, responder)
    return peer, noise


def prologue(query: UpgradeQuery) -> bytes:
    """The prologue, computed independently of the relay's code."""
    words = [b"viewport-relay-link-v1", query.role.value.encode(), query.workspace_id.encode()]
    return b"\x00".join([*words, (query.runtime_target_id or "").encode()])


def hkdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    """Noise's HKDF (rev 34, section 4.3)."""
    temporary = hmac.digest(key, data, "sha256")
    outputs, last = [], b""
    for number in range(1, count + 1):
        last = hmac.digest(temporary, last + bytes([number]), "sha256")
        outputs.append(last)
    return outputs


def psk_of(secret: bytes) -> bytes:
    """The link's PSK by the two steps of RFC 5869."""
    return hmac.digest(hmac.digest(bytes(32), secret, "sha256"), b"viewport-relay-link-psk-v1\x01", "sha256")


class Initiator:
    """The initiator's side of the link over noiseprotocol; each part can be made wrong."""

    def __init__(
        self,
        pattern: Pattern = Pattern.IK,
        *,
        relay: StaticKey = CURRENT,
        static: bytes = PEER_STATIC,
        secret: bytes = SECRET,
        query: UpgradeQuery = QUERY,
    ) -> None:
        noise = NoiseConnection.from_name(f"Noise_{pattern.label}_25519_ChaChaPoly_SHA256".encode())
        noise.set_as_initiator()
        noise.set_prologue(prologue(query))
        if pattern is Pattern.IKPSK2:
            noise.set_psks(psk=psk_of(secret))
        noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, relay.public)
        noise.start_handshake()
        self.noise = noise
        self.pattern = pattern

    def message_1(self) -> bytes:
        return bytes([1, self.pattern.value]) + bytes(self.noise.write_message())

    def read_message_2(self, message: bytes) -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(self.noise.read_message(message))
        return payload

    def seal(self, frame: bytes, record: int = 65_519) -> bytes:
        """Seal one binary message, split into records of at most `record` bytes of plaintext."""
        message = b""
        for start in range(0, len(frame) or 1, record):
            sealed = self.noise.encrypt(frame[start : start + record])
            message += len(sealed).to_bytes(2, "big") + sealed
        return message

    def open(self, message: bytes) -> bytes:
        frame = b""
        while message:
            length = int.from_bytes(message[:2], "big")
            frame += self.noise.decrypt(message[2 : 2 + length])
            message = message[2 + length :]
        return frame


class PlainInitiator:
    """The initiator's side of the link, written from the specification."""

    def __init__(self, pattern: Pattern, secret: bytes = SECRET) -> None:
        name = f"Noise_{pattern.label}_25519_ChaChaPoly_SHA256".encode()
        self.pattern = pattern
        self.psk = psk_of(secret) if pattern is Pattern.IKPSK2 else None
        self.h = name.ljust(32, b"\0") if len(name) <= 32 else hashlib.sha256(name).digest()
        self.ck = self.h
        self.k = b""
        self.e = X25519PrivateKey.generate()
        self.s = X25519PrivateKey.from_private_bytes(PEER_STATIC)
        self.mix_hash(prologue(QUERY))
        self.mix_hash(CURRENT.public)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    def mix_key(self, data: bytes) -> None:
        self.ck, self.k = hkdf(self.ck, data, 2)

    def dh(self, private: X25519PrivateKey, public: bytes) -> None:
        self.mix_key(private.exchange(X25519PublicKey.from_public_bytes(public)))

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self.k).encrypt(bytes(12), plaintext, self.h)
        self.mix_hash(sealed)
        return sealed

    def message_1(self) -> bytes:
        e = self.e.public_key().public_bytes_raw()
        self.mix_hash(e)
        if self.psk is not None:
            self.mix_key(e)
        self.dh(self.e, CURRENT.public)  # es
        s = self.encrypt_and_hash(self.s.public_key().public_bytes_raw())
        self.dh(self.s, CURRENT.public)  # ss
        return bytes([1, self.pattern.value]) + e + s + self.encrypt_and_hash(b"")

    def read_message_2(self, message: bytes) -> bytes:
        re, sealed = message[:32], message[32:]
        self.mix_hash(re)
        if self.psk is not None:
            self.mix_key(re)
        self.dh(self.e, re)  # ee
        self.dh(self.s, re)  # se
        if self.psk is not None:
            self.ck, mixed, self.k = hkdf(self.ck, self.psk, 3)
            self.mix_hash(mixed)
        payload = ChaCha20Poly1305(self.k).decrypt(bytes(12), sealed, self.h)
        self.sending, self.receiving = (ChaCha20Poly1305(key) for key in hkdf(self.ck, b"", 2))
        return payload

    @staticmethod
    def nonce(count: int) -> bytes:
        return bytes(4) + count.to_bytes(8, "little")

    def seal(self, count: int, plaintext: bytes) -> bytes:
        sealed = self.sending.encrypt(self.nonce(count), plaintext, None)
        return len(sealed).to_bytes(2, "big") + sealed


def is_up(noise: NoiseLink) -> bool:
    """Whether the link is established and not closed."""
    return noise.core.link.records is not None and not noise.core.closed


def encrypted(records: LinkRecords, frame: bytes) -> bytes:
    """The relay's binary message for one frame. Raises Refusal."""
    message = bytearray(records.message_size(len(frame)))
    records.encrypt_into(frame, memoryview(message))
    return bytes(message)


def seal(noise: NoiseLink, frame: bytes) -> bytes | None:
    """The relay's binary message for one frame; None if the records refuse the frame, which closes the link."""
    try:
        return encrypted(noise.records, frame)
    except Refusal as refusal:
        noise.inputs.refused(refusal)
        return None


def establish(noise: NoiseLink, peer: Recorder, pattern: Pattern = Pattern.IK, **wrong: Any) -> Initiator:
    """Run the whole handshake."""
    initiator = Initiator(pattern, **wrong)
    noise.receive(initiator.message_1())
    initiator.read_message_2(peer.sent[-1])
    noise.receive(initiator.seal(CONFIRM))
    assert is_up(noise) and peer.admitted == [pattern], peer
    return initiator
