"""The responder's handshake of a link. Bytes in, bytes out.

`Noise_IK_25519_ChaChaPoly_SHA256` and `Noise_IKpsk2_25519_ChaChaPoly_SHA256` (Noise rev 34) with noiseprotocol.

    peer                                                     relay
      | -- 0x01, pattern byte, Noise message 1 (96 bytes) ---> |  read_message_1
      | <- Noise message 2 {"relayId","frameMaxBytes"} ------- |  write_message_2
      | -- record {"type":"link_confirm"} -------------------> |  read_confirm: only now are the keys proven
      | <= one binary message = one frame = records =========> |  LinkRecords

What this module does not do: it keeps no order of steps and knows no peer (`machine`), and it decides no policy
(`policy`). The records after the handshake are in `records`.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from noise.connection import NoiseConnection

from viewport_relay.noise.keys import RelayKeys, StaticKey
from viewport_relay.noise.policy import Pattern, check_static_key, link_psk
from viewport_relay.noise.records import TAG_BYTES, LinkRecords
from viewport_relay.protocol.grant import Grant, UpgradeQuery
from viewport_relay.protocol.json import parse_json
from viewport_relay.reasons import Reason, Refusal

VERSION = 0x01
MESSAGE_1_BYTES = (
    2 + 32 + 32 + TAG_BYTES + TAG_BYTES
)  # version, pattern; e, encrypted s, the empty payload's tag

KeyUsed = Literal["current", "previous"]


def prologue(query: UpgradeQuery) -> bytes:
    """The prologue of a handshake (Noise rev 34, section 6): the query as the peer sent it, so that nothing can be replayed to
    another role, workspace or runtime target.
    """
    target = query.runtime_target_id or ""
    return "\0".join(["viewport-relay-link-v1", query.role.value, query.workspace_id, target]).encode("utf-8")


class LinkResponder:
    """The handshake of one connection. The methods are called once each, in the order of the module's drawing.

    `pattern` and `key_used` are known after `read_message_1`; `records` after `read_confirm`.
    """

    def __init__(
        self, query: UpgradeQuery, grant: Grant, keys: RelayKeys, relay_id: str, frame_max_bytes: int
    ) -> None:
        self._prologue = prologue(query)
        self._grant = grant
        self._keys = keys
        self._payload = {"relayId": relay_id, "frameMaxBytes": frame_max_bytes}
        self._frame_max = frame_max_bytes
        self._noise: Any = None
        self._unproven: LinkRecords | None = None
        self.pattern: Pattern | None = None
        self.key_used: KeyUsed | None = None
        self.records: LinkRecords | None = None

    def read_message_1(self, message: bytes) -> None:
        """Take the peer's first message.

        Raises Refusal NOISE_HANDSHAKE_MALFORMED, NOISE_INVALID_PSK, NOISE_PSK_UNAVAILABLE, or NOISE_STATIC_KEY_MISMATCH
        for a daemon with another key than its grant names. The pattern byte is judged before anything is decrypted.
        """
        if len(message) != MESSAGE_1_BYTES:
            raise _malformed(f"message 1 has {len(message)} bytes instead of {MESSAGE_1_BYTES}")
        if message[0] != VERSION:
            raise _malformed(
                f"message 1 has version byte 0x{message[0]:02x}, this relay speaks 0x{VERSION:02x}"
            )
        try:
            pattern = Pattern(message[1])
        except ValueError:
            raise _malformed(f"message 1 has pattern byte 0x{message[1]:02x}") from None
        self.pattern = pattern
        psk = link_psk(pattern, self._grant)
        self._noise = self._try(pattern, psk, self._keys.current, message[2:])
        self.key_used = "current"
        if self._noise is None and self._keys.previous is not None:
            self._noise = self._try(pattern, psk, self._keys.previous, message[2:])
            self.key_used = "previous"
        if self._noise is None:
            self.key_used = None
            raise _malformed(
                "message 1 does not decrypt: made for another relay key, role, workspace or runtime target, "
                "or damaged on the way"
            )
        # noiseprotocol forgets the peer's key once message 2 is written: this is the moment to look.
        check_static_key(self._grant, bytes(self._noise.noise_protocol.handshake_state.rs.public_bytes))

    def _try(self, pattern: Pattern, psk: bytes | None, key: StaticKey, message: bytes) -> Any:
        """A handshake that has read message 1 with this key, or None when that does not decrypt."""
        noise: Any = NoiseConnection.from_name(pattern.protocol_name)
        noise.set_as_responder()
        noise.set_prologue(self._prologue)
        if psk is not None:
            noise.set_psks(psk=psk)
        noise.noise_protocol.keypairs["s"] = (
            key.pair
        )  # as set_keypair_from_private_bytes, without deriving again
        noise.start_handshake()
        try:
            noise.read_message(message)
        except Exception:
            # The one wide catch of this package. noiseprotocol passes on whatever its parts raise for bytes that
            # a peer chose (InvalidTag, ValueError for a low-order point, its own kinds), and promises no list.
            return None
        return noise

    def write_message_2(self) -> bytes:
        """The answer to the peer. After it the keys exist, and are not proven yet."""
        payload = json.dumps(self._payload, separators=(",", ":")).encode("utf-8")
        message = bytes(self._noise.write_message(payload))
        protocol, self._noise = self._noise.noise_protocol, None
        self._unproven = LinkRecords(
            protocol.cipher_state_encrypt, protocol.cipher_state_decrypt, self._frame_max
        )
        return message

    def read_confirm(self, message: bytes) -> None:
        """Take the peer's first transport message, which proves that it holds the same keys.

        Raises Refusal: NOISE_INVALID_PSK under IKpsk2, else NOISE_HANDSHAKE_MALFORMED. A peer with another
        pairing secret gets this far: the PSK is mixed in by message 2.
        """
        records = self._unproven
        if records is None:
            raise self.confirm_refused("it came before message 2")
        try:
            plaintext = records.decrypt_message(message)
        except Refusal as refusal:
            raise self.confirm_refused(refusal.detail) from None
        if not _is_confirm(plaintext):
            raise self.confirm_refused('it decrypts, but is not {"type":"link_confirm"}')
        self.records, self._unproven = records, None

    def confirm_refused(self, why: str) -> Refusal:
        """The refusal for anything that is not the confirm, in the confirm's place."""
        if self.pattern is Pattern.IKPSK2:
            return Refusal(
                Reason.NOISE_INVALID_PSK,
                f"no valid confirm under IKpsk2 (perhaps another pairing secret): {why}",
            )
        return _malformed(f"no valid confirm: {why}")


def _malformed(detail: str) -> Refusal:
    return Refusal(Reason.NOISE_HANDSHAKE_MALFORMED, detail)


def _is_confirm(plaintext: bytes) -> bool:
    """Whether this is a JSON object of type link_confirm; other members may be there."""
    try:
        value = parse_json(plaintext.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return False
    return isinstance(value, dict) and value.get("type") == "link_confirm"
