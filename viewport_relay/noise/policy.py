"""The policy of a link's handshake: the pattern, PSK and static key that a grant requires.

Pure decisions over values; no handshake is done here. The rules are the wire protocol's, sections 3 ("Profiles")
and 5 ("Link"). Whatever is secret, or compared with what a peer sent, is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from viewport_relay.noise.keys import decode_key
from viewport_relay.protocol.grant import Grant, Profile, Role
from viewport_relay.reasons import Reason, Refusal

PSK_INFO = b"viewport-relay-link-psk-v1"
PLAIN_IK_DETAIL = (
    "policy_mode crypto_pairing (or e2eeProfile noise-ikpsk2) requires IKpsk2 and the peer used plain IK"
)
_URL_ALPHABET = str.maketrans("+/", "-_")


class Pattern(Enum):
    """The link's handshake pattern; the value is the byte that announces it in message 1."""

    IK = 0x01
    IKPSK2 = 0x02

    @property
    def label(self) -> str:
        """The pattern's name in logs, metrics and `/state`."""
        return "IK" if self is Pattern.IK else "IKpsk2"

    @property
    def protocol_name(self) -> bytes:
        """The full protocol name (Noise rev 34, section 8)."""
        return f"Noise_{self.label}_25519_ChaChaPoly_SHA256".encode("ascii")


# -- the link ----------------------------------------------------------------------------------------------------


def derive_psk(secret: bytes) -> bytes:
    """The link's 32-byte PSK from a pairing secret: HKDF-SHA256 with an empty salt (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=PSK_INFO).derive(secret)


def link_psk(pattern: Pattern, grant: Grant) -> bytes | None:
    """The PSK to use for `pattern` under this grant, None for plain IK.

    Raises Refusal: NOISE_INVALID_PSK for plain IK where IKpsk2 is required, NOISE_PSK_UNAVAILABLE for IKpsk2
    without a secret of 32 bytes.
    """
    if pattern is Pattern.IK:
        if grant.required_profile is Profile.IKPSK2:
            raise Refusal(Reason.NOISE_INVALID_PSK, PLAIN_IK_DETAIL)
        return None
    text = grant.claims.pairing_secret
    secret = None if text is None else decode_key(text)
    if secret is None:
        what = "no pairingSecret" if text is None else "a pairingSecret that is not 32 bytes"
        raise Refusal(Reason.NOISE_PSK_UNAVAILABLE, f"the peer used IKpsk2 and its grant has {what}")
    return derive_psk(secret)


def check_static_key(grant: Grant, static: bytes) -> None:
    """Refuse (NOISE_STATIC_KEY_MISMATCH) a daemon whose static key is not the one that its grant names.

    A `daemonPublicKey` that is no 32-byte key says nothing: it is the P-256 key of the end-to-end exchange.
    """
    if grant.role is not Role.DAEMON or grant.claims.daemon_public_key is None:
        return
    # Either base64 alphabet: a key written in the other one must not switch the check off.
    granted = decode_key(grant.claims.daemon_public_key.strip().translate(_URL_ALPHABET))
    if granted is not None and not hmac.compare_digest(granted, static):
        raise Refusal(
            Reason.NOISE_STATIC_KEY_MISMATCH,
            "the daemon's static key is not claims.daemonPublicKey",
            details={"peerKeySha256": fingerprint(static), "grantKeySha256": fingerprint(granted)},
        )


def fingerprint(public: bytes) -> str:
    """The first 16 hex digits of a public key's SHA-256, to tell keys apart in a log."""
    return hashlib.sha256(public).hexdigest()[:16]
