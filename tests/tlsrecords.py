"""A TLS 1.3 client's records as an attacker makes them: any content type, any number, behind a handshake by pyOpenSSL or `ssl`.

secrets = []                                # lines of the key log (the Internet-Draft on the SSLKEYLOGFILE format)
records = Records(secrets, sent=1)          # the client has sent one record since the handshake
sock.sendall(records.key_update() * ...)    # each call encrypts one more record
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Content types (RFC 8446 section 5.1).
HANDSHAKE: Final = 22
DATA: Final = 23

#: KeyUpdate that asks for one in return (RFC 8446 section 4.6.3).
_KEY_UPDATE: Final = b"\x18\x00\x00\x01\x01"


def _expanded(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1) with SHA-256, without a context."""
    name = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + b"\x00"
    return hmac.digest(secret, info + b"\x01", "sha256")[:length]


class Records:
    """Encrypts with TLS_AES_128_GCM_SHA256, which the relay prefers."""

    def __init__(self, keys: Iterable[str], sent: int = 0) -> None:
        """`keys` are the lines of the handshake's key log, `sent` the records that the client has sent since."""
        lines = [line.split() for line in keys]
        [secret] = [words[2] for words in lines if words and words[0] == "CLIENT_TRAFFIC_SECRET_0"]
        self._take(bytes.fromhex(secret))
        self._sent = sent

    def _take(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expanded(secret, "key", 16))
        self._iv = int.from_bytes(_expanded(secret, "iv", 12), "big")
        self._sent = 0

    def record(self, kind: int, content: bytes) -> bytes:
        """One record (RFC 8446 section 5.2)."""
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._sent).to_bytes(12, "big")
        self._sent += 1
        return head + self._key.encrypt(nonce, inner, head)

    def data(self, content: bytes) -> bytes:
        """A record of application data."""
        return self.record(DATA, content)

    def key_update(self) -> bytes:
        """A record that announces the next key, which is used from then on."""
        made = self.record(HANDSHAKE, _KEY_UPDATE)
        self._take(_expanded(self._secret, "traffic upd", 32))
        return made
