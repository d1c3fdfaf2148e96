"""A small pairing scheme for the reference peers: how a client comes by a pairing secret.

The wire leaves the content of pairing frames to the peers. This is the simplest scheme that has what it
takes: each side makes a P-256 channel key, what they say is AES-256-GCM under a key from its ECDH
(HKDF-SHA256, RFC 5869, one key a direction and step), and a short code, carried by a human from the daemon
to the client, says that the client is the right one. A code is good for one offer, a few tries and a limited
time.

    client                                             daemon
      | -- relay_pairing_offer_request ------------------> |   shows the code
      | <- relay_pairing_offer_response {offerId} --------- |
      | -- relay_pairing_redeem_request {code} -----------> |
      | <- relay_pairing_redeem_response {peerId, secret} - |

What it does not do: hold against a relay that takes part in the pairing (there is no PAKE here); use it to
try and to test, not to protect.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from viewport_relay.peer import base64url, frames
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.frames import Members
from viewport_relay.peer.symmetric import POINT_BYTES, KeyPair

MAX_OFFERS = 64
MAX_TRIES = 3
DEFAULT_TTL_SECONDS = 600
_IV_BYTES, _TAG_BYTES = 12, 16


class Channel:
    """The encrypted channel of one pairing, the same on both sides."""

    def __init__(self, own: KeyPair, peer_public: bytes) -> None:
        self._shared = own.exchange(peer_public)

    def _key(self, step: str) -> bytes:
        info = f"viewport-relay-peer-pairing-v1|{step}".encode()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self._shared)

    def seal(self, step: str, members: Members) -> Members:
        """`encIv`, `encTag` and `encCiphertext` for `members`.

        `step` tells the messages of a pairing apart.
        """
        iv = os.urandom(_IV_BYTES)
        sealed = AESGCM(self._key(step)).encrypt(iv, frames.compact(members).encode(), None)
        return {
            "encIv": base64url.encode(iv),
            "encTag": base64url.encode(sealed[-_TAG_BYTES:]),
            "encCiphertext": base64url.encode(sealed[:-_TAG_BYTES]),
        }

    def open(self, step: str, frame: Members) -> Members:
        """The members inside a frame's `enc…` (PeerError MALFORMED or DECRYPT_FAILED)."""
        iv = base64url.decode(frame.get("encIv"), "encIv", _IV_BYTES)
        tag = base64url.decode(frame.get("encTag"), "encTag", _TAG_BYTES)
        sealed = base64url.decode(frame.get("encCiphertext"), "encCiphertext") + tag
        try:
            return frames.parse(AESGCM(self._key(step)).decrypt(iv, sealed, None).decode("utf-8"))
        except InvalidTag:
            raise PeerError(Code.DECRYPT_FAILED, "the pairing message does not decrypt") from None
        except UnicodeDecodeError:
            raise PeerError(Code.MALFORMED, "the pairing message is not text") from None


@dataclass(slots=True, repr=False)
class _Offer:
    channel: Channel
    code: str
    expires: float
    tries: int = 0


class PairingDesk:
    """The daemon's side: makes offers, checks codes, hands out secrets into `secrets_by_peer`.

    `now` gives seconds of any steady clock. `show_code` gets the code a human has to carry to the client.
    """

    def __init__(
        self,
        now: Callable[[], float],
        show_code: Callable[[str], None],
        secrets_by_peer: dict[str, bytes],
    ) -> None:
        self._now = now
        self._show_code = show_code
        self._secrets = secrets_by_peer
        self._offers: OrderedDict[str, _Offer] = OrderedDict()

    def answer(self, frame: Members) -> Members:
        """The response to an offer or redeem request.

        PeerError MALFORMED for one without a usable requestId.
        """
        request_id = frames.string(frame, "requestId")
        offer = frame.get("type") == frames.PAIRING_OFFER_REQUEST
        kind = frames.PAIRING_OFFER_RESPONSE if offer else frames.PAIRING_REDEEM_RESPONSE
        head: Members = {"type": kind, "requestId": request_id}
        try:
            body = self._make_offer(frame) if offer else self._redeem(frame)
        except PeerError as error:
            return {**head, "ok": False, "errorCode": error.code.value}
        return {**head, "ok": True, **body}

    def _make_offer(self, frame: Members) -> Members:
        client = base64url.decode(frame.get("clientChannelPublicKey"), "clientChannelPublicKey", POINT_BYTES)
        ttl = frames.positive(frame, "ttlSeconds") if "ttlSeconds" in frame else DEFAULT_TTL_SECONDS
        own = KeyPair.generate()
        offer_id = secrets.token_urlsafe(12)
        offer = _Offer(Channel(own, client), f"{secrets.randbelow(1_000_000):06}", self._now() + ttl)
        self._offers[offer_id] = offer
        while len(self._offers) > MAX_OFFERS:
            self._offers.popitem(last=False)
        self._show_code(offer.code)
        sealed = offer.channel.seal("offer", {"offerId": offer_id, "ttlSeconds": ttl})
        return {"daemonChannelPublicKey": base64url.encode(own.public), **sealed}

    def _redeem(self, frame: Members) -> Members:
        offer_id = frames.string(frame, "offerId")
        offer = self._offers.get(offer_id)
        if offer is None or offer.expires <= self._now():
            self._offers.pop(offer_id, None)
            raise PeerError(Code.PAIRING_UNKNOWN, "no such offer, or it has expired")
        code = frames.string(offer.channel.open("redeem", frame), "code")
        offer.tries += 1
        if not hmac.compare_digest(code.encode(), offer.code.encode()):
            if offer.tries >= MAX_TRIES:
                del self._offers[offer_id]
            raise PeerError(Code.PAIRING_FAILED, "wrong code")
        del self._offers[offer_id]
        peer_id, secret = f"peer_{secrets.token_urlsafe(12)}", secrets.token_bytes(32)
        self._secrets[peer_id] = secret
        return offer.channel.seal(
            "secret", {"pairingPeerId": peer_id, "pairingSecret": base64url.encode(secret)}
        )
