"""Write this project's own vectors: `python make_vectors.py > relay-peers.json`.

All keys come from fixed seeds, so the output is the same on every machine. The keys are synthetic and must never
protect anything. These vectors detect accidental changes of the peers; `check_vectors.py` with the vectors of another
implementation tests interoperability.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import Keypair, NoiseConnection

from viewport_relay.peer import base64url
from viewport_relay.peer.e2e import Initiator, Responder, SessionKeys
from viewport_relay.peer.envelope import Session
from viewport_relay.peer.link import LinkInitiator, LinkSettings, Pattern, derive_psk, prologue
from viewport_relay.peer.symmetric import KeyPair, Profile

NOTICE = (
    "Deterministic test vectors. Every private key, pairing secret and session key in this file is made "
    "from a public seed and is worthless as a secret; never use one anywhere."
)
_encode = base64url.encode


def seeded(name: str) -> bytes:
    """A 32-byte key derived from `name`."""
    return hashlib.sha256(f"viewport relay peers, vector seed: {name}".encode()).digest()


@contextmanager
def fixed_ephemeral() -> Iterator[None]:
    """Let the library accept given ephemeral keys without its warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of ephemeral keypairs")
        yield


def exchange(name: str, profile: Profile, session_id: str, epoch: int) -> dict[str, Any]:
    """One key exchange end to end."""
    daemon = KeyPair.from_private(seeded("daemon static"))
    psk = seeded("end to end pairing secret") if profile is Profile.IKPSK2 else None
    initiator = Initiator(
        profile,
        KeyPair.from_private(seeded("client static")),
        daemon.public,
        request_id=f"kex-{name}",
        psk=psk,
        pairing_peer_id="vector-peer",
        ephemeral=KeyPair.from_private(seeded("client ephemeral")),
    )
    init = initiator.init_frame()
    ephemeral = KeyPair.from_private(seeded("daemon ephemeral"))
    response, keys = Responder(init, daemon).respond(session_id, epoch, psk=psk, ephemeral=ephemeral)
    vector: dict[str, Any] = {"id": name, "profile": profile.value, "requestId": f"kex-{name}"}
    if psk is not None:
        vector["pairingSecret"] = _encode(psk)
    vector |= {"sessionId": session_id, "epoch": epoch}
    vector["init"] = {name: init[name] for name in ("clientEphemeralPublicKey", "encryptedClientStatic")}
    vector["response"] = {
        name: response[name] for name in ("daemonEphemeralPublicKey", "encryptedMetadata", "proof")
    }
    vector["sessionKey"] = _encode(keys.key)
    return vector


def link(name: str, pattern: Pattern, where: tuple[str, str, str]) -> dict[str, Any]:
    """One link: handshake, confirm, one frame in each direction."""
    relay_private = seeded("relay static")
    relay_public = X25519PrivateKey.from_private_bytes(relay_private).public_key().public_bytes_raw()
    secret = seeded("link pairing secret") if pattern is Pattern.IKPSK2 else None
    settings = LinkSettings(
        relay_public,
        seeded("peer link static"),
        *where,
        pairing_secret=secret,
        ephemeral_private=seeded("peer link ephemeral"),
    )
    with fixed_ephemeral():
        peer = LinkInitiator(settings)
    relay: Any = NoiseConnection.from_name(pattern.protocol_name)
    relay.set_as_responder()
    relay.set_prologue(prologue(*where))
    if secret is not None:
        relay.set_psks(psk=derive_psk(secret))
    relay.set_keypair_from_private_bytes(Keypair.STATIC, relay_private)
    relay.set_keypair_from_private_bytes(Keypair.EPHEMERAL, seeded("relay ephemeral"))
    with fixed_ephemeral():
        relay.start_handshake()

    message_1 = peer.message_1()
    relay.read_message(message_1[2:])
    hello = {"relayId": "vector-relay", "frameMaxBytes": 1_048_576}
    message_2 = bytes(relay.write_message(json.dumps(hello, separators=(",", ":")).encode()))
    peer.read_message_2(message_2)
    confirm = peer.confirm()
    relay.decrypt(confirm[2:])
    peer_frame = json.dumps({"type": "vector", "fill": "0123456789abcdef" * 8})
    relay_frame = '{"type":"vector","text":"naïve ✓"}'
    record = relay.encrypt(relay_frame.encode())
    vector: dict[str, Any] = {"id": name, "pattern": pattern.value}
    vector |= {"role": where[0], "workspaceId": where[1], "runtimeTargetId": where[2]}
    vector |= {
        "relayPrivateKey": _encode(relay_private),
        "relayPublicKey": _encode(relay_public),
        "relayEphemeralPrivateKey": _encode(seeded("relay ephemeral")),
        "peerStaticPrivateKey": _encode(settings.static_private),
        "peerEphemeralPrivateKey": _encode(seeded("peer link ephemeral")),
    }
    if secret is not None:
        vector |= {"pairingSecret": _encode(secret), "psk": _encode(derive_psk(secret))}
    vector |= {
        "prologue": _encode(prologue(*where)),
        "message1": _encode(message_1),
        "message2": _encode(message_2),
        **hello,
        "confirm": _encode(confirm),
        "peerFrame": peer_frame,
        "peerMessage": _encode(peer.seal(peer_frame.encode())),
        "relayFrame": relay_frame,
        "relayMessage": _encode(len(record).to_bytes(2, "big") + record),
    }
    return vector


def envelope(name: str, profile: Profile, epoch: int, seq: int, plaintext: str) -> dict[str, Any]:
    """One envelope, under its own key and IV."""
    key, iv = seeded(f"session key of {name}"), seeded(f"iv of {name}")[:12]
    session_id = f"rs_{name}"
    session = Session(SessionKeys(profile, session_id, epoch, key, b""), iv_source=lambda _: iv)
    frame: dict[str, Any] = {}
    for _ in range(seq):
        frame = json.loads(session.seal(plaintext))
    return {
        "id": name,
        "profile": profile.value,
        "sessionId": session_id,
        "epoch": epoch,
        "seq": seq,
        "sessionKey": _encode(key),
        "iv": frame["iv"],
        "plaintext": plaintext,
        "ciphertext": frame["ciphertext"],
        "tag": frame["tag"],
    }


def document() -> dict[str, Any]:
    """The JSON document."""
    daemon = KeyPair.from_private(seeded("daemon static"))
    return {
        "schemaVersion": 1,
        "securityNotice": NOTICE,
        "notes": "Own vectors of the reference peers: Noise v3 end to end, the link, the envelope.",
        "daemonIdentity": {
            "publicKey": _encode(daemon.public),
            "privateKey": _encode(seeded("daemon static")),
        },
        "clientDeterministicKeys": {
            "staticPrivateKey": _encode(seeded("client static")),
            "ephemeralPrivateKey": _encode(seeded("client ephemeral")),
        },
        "daemonDeterministicEphemeralPrivateKey": _encode(seeded("daemon ephemeral")),
        "vectors": [
            exchange("own-ik-first", Profile.IK, "rs_own_1", 1),
            exchange("own-ik-renewed", Profile.IK, "rs_own_2", 2),
            exchange("own-ikpsk2-first", Profile.IKPSK2, "rs_own_paired_1", 1),
            exchange("own-ikpsk2-late-epoch", Profile.IKPSK2, "rs_own_paired_✓", 4_096),
        ],
        "linkVectors": [
            link("own-link-ik-daemon", Pattern.IK, ("workspace-daemon", "ws-vector", "target-1")),
            link("own-link-ik-no-target", Pattern.IK, ("client", "ws-vector", "")),
            link("own-link-ikpsk2-client", Pattern.IKPSK2, ("client", "ws-vector", "target-1")),
        ],
        "envelopeVectors": [
            envelope("own-envelope-first", Profile.IK, 1, 1, '{"kind":"hello"}'),
            envelope("own-envelope-later", Profile.IKPSK2, 3, 7, "résumé ✓ " * 40),
        ],
    }


def text() -> str:
    """Content of the file."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
