"""Fixtures of the peers' tests: two peers on an in-memory transport, and a responder for the link."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import Keypair, NoiseConnection
from twisted.internet.task import Clock

from viewport_relay.peer.client import ClientPeer, Pairing
from viewport_relay.peer.daemon import Conversation, DaemonPeer
from viewport_relay.peer.link import Pattern, derive_psk, prologue
from viewport_relay.peer.symmetric import KeyPair

HELLO = {"relayId": "test-relay", "frameMaxBytes": 1_048_576}


class Wire:
    """A daemon and a client. Their frames stay in two queues until `pump` delivers them in order."""

    def __init__(
        self,
        *,
        answer: Callable[[Conversation, str], None] | None = None,
        pairing: Pairing | None = None,
        known: dict[str, bytes] | None = None,
        **daemon_options: Any,
    ) -> None:
        self.clock = Clock()
        self.to_daemon: deque[str] = deque()
        self.to_client: deque[str] = deque()
        self.at_daemon: list[str] = []
        self.at_client: list[str] = []
        self._answer = answer
        self.identity = KeyPair.generate()
        self.daemon = DaemonPeer(
            self.identity, self.to_client.append, self._got, pairing_secrets=known, **daemon_options
        )
        self.client = self.another_client(pairing)

    def another_client(
        self,
        pairing: Pairing | None = None,
        identity: KeyPair | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> ClientPeer:
        return ClientPeer(
            self.clock,
            identity or KeyPair.generate(),
            self.identity.public,
            self.to_daemon.append,
            on_message or self.at_client.append,
            pairing=pairing,
        )

    def _got(self, conversation: Conversation, text: str) -> None:
        self.at_daemon.append(text)
        if self._answer is not None:
            self._answer(conversation, text)

    def pump(self) -> None:
        """Deliver frames until both queues are empty."""
        while self.to_daemon or self.to_client:
            if self.to_daemon:
                self.daemon.frame_received(self.to_daemon.popleft())
            if self.to_client:
                self.client.frame_received(self.to_client.popleft())


class RelayEnd:
    """The link's responder, built on the Noise library alone, so that it shares little code with the peers."""

    def __init__(
        self,
        pattern: Pattern,
        where: tuple[str, str, str] = ("client", "w", "t"),
        secret: bytes | None = None,
    ) -> None:
        self.private = X25519PrivateKey.generate()
        self.public = self.private.public_key().public_bytes_raw()
        name = {Pattern.IK: b"IK", Pattern.IKPSK2: b"IKpsk2"}[pattern]
        self.noise: Any = NoiseConnection.from_name(b"Noise_" + name + b"_25519_ChaChaPoly_SHA256")
        self.noise.set_as_responder()
        self.noise.set_prologue(prologue(*where))
        if secret is not None:
            self.noise.set_psks(psk=derive_psk(secret))
        self.noise.set_keypair_from_private_bytes(Keypair.STATIC, self.private.private_bytes_raw())
        self.noise.start_handshake()

    def answer(self, message_1: bytes, hello: object = HELLO) -> bytes:
        self.noise.read_message(message_1[2:])
        return bytes(self.noise.write_message(json.dumps(hello).encode()))

    def seal(self, *records: bytes) -> bytes:
        sealed = [self.noise.encrypt(record) for record in records]
        return b"".join(len(record).to_bytes(2, "big") + record for record in sealed)

    def open(self, message: bytes) -> list[bytes]:
        records: list[bytes] = []
        while message:
            size = int.from_bytes(message[:2], "big")
            records.append(self.noise.decrypt(message[2 : 2 + size]))
            message = message[2 + size :]
        return records
