"""The Noise link under the connections of the acceptance suite, with the reference peers' initiator.

A connection offers the link's sub-protocol too, and runs the handshake if the relay selects it. The case then sends
and receives frames as without a link. The pattern is IKpsk2 where the grant requires it, else IK.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import ssl
import urllib.request
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from websockets.exceptions import ConnectionClosed

from viewport_relay.peer.link import SUBPROTOCOL, LinkInitiator, LinkSettings, generate_static

#: Upper limit of the bytes of a frame that a case may try to send.
UNBOUNDED = 1 << 40

#: Pairing secret of every grant that requires IKpsk2: 32 bytes.
SECRET = hashlib.sha256(b"pairing secret of the acceptance suite").digest()
SECRET_TEXT = base64.urlsafe_b64encode(SECRET).decode().rstrip("=")


def with_secret(issue: Any) -> Any:
    """Wrap the platform's `issue`: grants that require IKpsk2 get the pairing secret."""

    @functools.wraps(issue)
    def issued(*arguments: Any, **claims: Any) -> Any:
        if claims.get("e2eeProfile") == "noise-ikpsk2" or claims.get("policyMode") == "crypto_pairing":
            claims.setdefault("pairingSecret", SECRET_TEXT)
        return issue(*arguments, **claims)

    return issued


@functools.cache
def relay_key(origin: str, context: ssl.SSLContext | None) -> bytes:
    """The relay's static key of 32 bytes, from `/.well-known/viewport-relay.json`."""
    with urllib.request.urlopen(f"{origin}/.well-known/viewport-relay.json", context=context) as answer:
        text = json.load(answer)["noisePublicKey"]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class LinkSocket:
    """A `websockets` connection whose messages are records of a link."""

    def __init__(self, ws: Any, initiator: LinkInitiator) -> None:
        self._ws = ws
        self._initiator = initiator

    async def handshake(self) -> None:
        """Run the handshake. If the relay closes instead, the next `recv` raises."""
        try:
            await self._ws.send(self._initiator.message_1())
            self._initiator.read_message_2(await self._ws.recv())
            self._initiator.frame_max_bytes = UNBOUNDED  # the relay enforces its own limit
            await self._ws.send(self._initiator.confirm())
        except ConnectionClosed:
            pass

    async def send(self, message: str | bytes) -> None:
        if not self._initiator.established:  # the relay has closed; this raises
            await self._ws.wait_closed()
            await self._ws.send(message)
        await self._ws.send(self._initiator.seal(message.encode() if isinstance(message, str) else message))

    async def recv(self) -> str:
        return self._initiator.open(await self._ws.recv()).decode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ws, name)


class LinkSockets:
    """Opens connections in place of `websockets.connect`."""

    def __init__(self, connect: Any, taken: Any) -> None:
        """`taken.count` counts the links."""
        self._connect = connect
        self._taken = taken

    async def connect(self, url: str, *, subprotocols: Any = None, **options: Any) -> Any:
        """Cases that offer sub-protocols test those, and get no link."""
        if subprotocols:
            return await self._connect(url, subprotocols=subprotocols, **options)
        ws = await self._connect(url, subprotocols=[SUBPROTOCOL], **options)
        if ws.subprotocol != SUBPROTOCOL:
            return ws
        header = options["additional_headers"].get("Authorization", "")
        token = header.partition(" ")[2] or parse_qs(urlsplit(url).query).get("token", [""])[0]
        claims = jwt.decode(token, options={"verify_signature": False}) if token else {}
        secret = SECRET if claims.get("pairingSecret") == SECRET_TEXT else None
        socket = LinkSocket(ws, LinkInitiator(_settings(url, secret, options.get("ssl"))))
        await socket.handshake()
        self._taken.count += 1
        return socket


def _settings(url: str, secret: bytes | None, context: ssl.SSLContext | None) -> LinkSettings:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    origin = f"{'https' if context else 'http'}://{parts.netloc}"
    return LinkSettings(
        relay_public=relay_key(origin, context),
        static_private=generate_static(),
        role=query["role"],
        workspace_id=query["workspaceId"],
        target_id=query.get("runtimeTargetId", ""),
        pairing_secret=secret,
    )
