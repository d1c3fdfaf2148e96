"""Check the reference peers against a file of vectors: `python check_vectors.py PATH`.

Prints a line for each vector that holds. Stops at the first difference with exit status 1 and a message that names
vector and member; exit status 2 if the file cannot be read. Supports the schema of `relay-noise-v3` files
(`schemaVersion` 1: `daemonIdentity`, `clientDeterministicKeys`, `daemonDeterministicEphemeralPrivateKey`, `vectors`)
and this project's sections `linkVectors` and `envelopeVectors`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from viewport_relay.peer import base64url
from viewport_relay.peer.e2e import Initiator, Responder, SessionKeys
from viewport_relay.peer.envelope import Session
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.link import LinkInitiator, LinkSettings, derive_psk, prologue
from viewport_relay.peer.symmetric import KeyPair, Profile


class Difference(Exception):
    """A value that the peers compute differs from the file's."""


def _b(text: object) -> bytes:
    return base64url.decode(text, "a value of the file")


def _same(vector: str, member: str, made: object, expected: object) -> None:
    if made != expected:
        # The values are synthetic, so the message may show both.
        raise Difference(f"{vector}: {member} is {made!r}, the file has {expected!r}")


def check_exchange(document: dict[str, Any], vector: dict[str, Any]) -> None:
    """Check one key exchange, both halves. Raises Difference or PeerError."""
    name = vector["id"]
    daemon = KeyPair.from_private(_b(document["daemonIdentity"]["privateKey"]))
    _same(
        name,
        "daemonIdentity.publicKey",
        base64url.encode(daemon.public),
        document["daemonIdentity"]["publicKey"],
    )
    client = document["clientDeterministicKeys"]
    psk = _b(vector["pairingSecret"]) if "pairingSecret" in vector else None
    initiator = Initiator(
        Profile(vector["profile"]),
        KeyPair.from_private(_b(client["staticPrivateKey"])),
        daemon.public,
        request_id=vector["requestId"],
        psk=psk,
        pairing_peer_id=None if psk is None else "vector-peer",
        ephemeral=KeyPair.from_private(_b(client["ephemeralPrivateKey"])),
    )
    init = initiator.init_frame()
    for member, value in vector["init"].items():
        _same(name, f"init.{member}", init.get(member), value)
    ephemeral = KeyPair.from_private(_b(document["daemonDeterministicEphemeralPrivateKey"]))
    responder = Responder(init, daemon)
    response, keys = responder.respond(vector["sessionId"], vector["epoch"], psk=psk, ephemeral=ephemeral)
    for member, value in vector["response"].items():
        _same(name, f"response.{member}", response.get(member), value)
    _same(name, "sessionKey of the daemon", base64url.encode(keys.key), vector["sessionKey"])
    _same(
        name,
        "sessionKey of the client",
        base64url.encode(initiator.finish(response).key),
        vector["sessionKey"],
    )


def check_link(vector: dict[str, Any]) -> None:
    """Check one link from the initiator's side: handshake, confirm, one frame in each direction."""
    name = vector["id"]
    secret = _b(vector["pairingSecret"]) if "pairingSecret" in vector else None
    if secret is not None:
        _same(name, "psk", base64url.encode(derive_psk(secret)), vector["psk"])
    where = vector["role"], vector["workspaceId"], vector["runtimeTargetId"]
    _same(name, "prologue", base64url.encode(prologue(*where)), vector["prologue"])
    settings = LinkSettings(
        _b(vector["relayPublicKey"]),
        _b(vector["peerStaticPrivateKey"]),
        *where,
        pairing_secret=secret,
        ephemeral_private=_b(vector["peerEphemeralPrivateKey"]),
    )
    with warnings.catch_warnings():
        # The library warns about given ephemeral keys; the vectors need them.
        warnings.filterwarnings("ignore", message="One of ephemeral keypairs")
        link = LinkInitiator(settings)
    _same(name, "message1", base64url.encode(link.message_1()), vector["message1"])
    _same(name, "relayId", link.read_message_2(_b(vector["message2"])), vector["relayId"])
    _same(name, "frameMaxBytes", link.frame_max_bytes, vector["frameMaxBytes"])
    _same(name, "confirm", base64url.encode(link.confirm()), vector["confirm"])
    _same(
        name, "peerMessage", base64url.encode(link.seal(vector["peerFrame"].encode())), vector["peerMessage"]
    )
    _same(name, "relayFrame", link.open(_b(vector["relayMessage"])).decode(), vector["relayFrame"])


def check_envelope(vector: dict[str, Any]) -> None:
    """Check one envelope: encrypt as in the file, and decrypt on the other side."""
    name = vector["id"]
    profile = Profile(vector["profile"])
    keys = SessionKeys(profile, vector["sessionId"], vector["epoch"], _b(vector["sessionKey"]), b"")
    sender = Session(keys, iv_source=lambda _: _b(vector["iv"]))
    frame: dict[str, Any] = {}
    for _ in range(vector["seq"]):
        # The counter is private, so the messages before are encrypted as well.
        frame = json.loads(sender.seal(vector["plaintext"]))
    _same(name, "tag", frame["tag"], vector["tag"])
    _same(name, "ciphertext", frame["ciphertext"], vector["ciphertext"])
    _same(name, "plaintext", Session(keys).open(frame), vector["plaintext"])


def check(document: dict[str, Any]) -> Iterator[str]:
    """Names of the vectors, each after its check. Raises Difference."""
    for vector in document.get("vectors", []):
        check_exchange(document, vector)
        yield str(vector["id"])
    for vector in document.get("linkVectors", []):
        check_link(vector)
        yield str(vector["id"])
    for vector in document.get("envelopeVectors", []):
        check_envelope(vector)
        yield str(vector["id"])


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    if len(arguments) != 1:
        print("usage: check_vectors.py PATH", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(f"{path} cannot be read: {error}", file=sys.stderr)
        return 2
    count = 0
    try:
        for name in check(document):
            print(f"ok {name}")
            count += 1
    except (Difference, PeerError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    except (KeyError, TypeError, ValueError) as error:
        print(f"{path}: vector {count + 1} is not of the schema: {error!r}", file=sys.stderr)
        return 1
    if not count:
        print(f"{path}: no vectors in it", file=sys.stderr)
        return 1
    print(f"{count} vectors hold")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
