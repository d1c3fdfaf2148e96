"""The Noise link of one connection, between its WebSocket messages and routing (wire contract, section 5).

`noise/` runs the handshake and holds the keys; this joins it to the connection, the hub and a time limit. It also
makes the document at `/.well-known/viewport-relay.json`, from which peers learn the relay's key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.config import Config
from viewport_relay.noise.connection import ConnectionNoise
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.noise.link import SUBPROTOCOL, LinkResponder, message_max_bytes
from viewport_relay.noise.policy import Pattern
from viewport_relay.protocol.grant import Grant, UpgradeQuery
from viewport_relay.reasons import Reason

if TYPE_CHECKING:
    from viewport_relay.wire.websocket import Connection

WELL_KNOWN_PATH: Final = b"/.well-known/viewport-relay.json"


class ConnectionLink:
    """What `noise.machine.LinkPeer` asks of a connection. It lives as long as the connection."""

    __slots__ = ("_connection", "_grant", "_on_established", "_timeout", "noise")

    def __init__(
        self,
        connection: Connection,
        query: UpgradeQuery,
        grant: Grant,
        keys: RelayKeys,
        config: Config,
        on_established: Callable[[], None],
    ) -> None:
        """`on_established` lets the connection into routing."""
        self._connection = connection
        self._grant = grant
        self._on_established: Callable[[], None] | None = on_established  # once
        self._timeout: IDelayedCall | None = None
        responder = None
        if connection.link:
            responder = LinkResponder(query, grant, keys, config.relay_id, config.frame_max_bytes)
            connection.maxMessagePayloadSize = message_max_bytes(config.frame_max_bytes)
            seconds = config.noise_timeout_ms / 1000
            self._timeout = connection.factory.clock.callLater(seconds, self._out_of_time)
        self.noise = ConnectionNoise(self, responder, link_required=config.noise_link == "required")

    def begin(self) -> None:
        """Wait for the peer's handshake; without a link the peer is let in, or refused, at once."""
        self.noise.begin()

    # -- LinkPeer --------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self._connection.send_binary(data)

    def established(self, pattern: Pattern | None) -> None:
        self._cancel_timeout()
        connection = self._connection
        if pattern is not None:
            connection.noise = pattern.label
            connection.seal_with(self.noise.seal)
        connection.factory.counters.handshakes[connection.noise] += 1
        call, self._on_established = self._on_established, None
        assert call is not None
        call()

    def fail(self, reason: Reason, detail: str, details: Mapping[str, Any]) -> None:
        self._cancel_timeout()
        if reason is Reason.FRAME_TOO_LARGE:
            self._connection.factory.counters.ws_frame_too_large += 1
        self._connection.end(reason, detail, details={**self._key_used(), **details})

    def note(self, reason: Reason, detail: str, details: Mapping[str, Any]) -> None:
        connection = self._connection
        connection.factory.counters.handshakes_left[reason] += 1
        about = {**self.describe(), **self._key_used(), **details}
        connection.factory.hub.noted(connection, reason, detail, about)

    def describe(self) -> dict[str, Any]:
        """What a log entry says of a peer that routing does not know (yet)."""
        grant = self._grant
        return {
            "role": grant.role.value,
            "workspaceId": grant.workspace_id,
            "runtimeTargetId": grant.runtime_target_id,
            "clientId": grant.client_id,
            "ip": self._connection.ip,
        }

    def _key_used(self) -> dict[str, str]:
        key_used = self.noise.key_used
        return {} if key_used is None else {"relayKeyUsed": key_used}

    # -- the connection ----------------------------------------------------------------------------------------

    def peer_gone(self) -> None:
        """The peer closed, or its connection is lost."""
        self._cancel_timeout()
        self.noise.peer_gone()

    def relay_closes(self) -> None:
        """The relay closes for a reason of its own: that says nothing about the handshake."""
        self._cancel_timeout()
        self.noise.relay_closes()

    def close(self) -> None:
        """The connection is lost, and nobody asks any more. Two who hold each other would wait for the collector."""
        del self.noise

    def _out_of_time(self) -> None:
        self._timeout = None
        self.noise.timeout()

    def _cancel_timeout(self) -> None:
        timeout, self._timeout = self._timeout, None
        if timeout is not None and timeout.active():
            timeout.cancel()


def well_known(config: Config, keys: RelayKeys) -> Callable[[Request], bytes]:
    """Answers `GET /.well-known/viewport-relay.json`."""
    document: dict[str, Any] = {
        "relayId": config.relay_id,
        "version": __version__,
        "subprotocols": [] if config.noise_link == "off" else [SUBPROTOCOL],
        "noisePublicKey": keys.public_text,
    }
    if keys.previous_public_text is not None:
        document["noisePreviousPublicKey"] = keys.previous_public_text
    body = json.dumps(document).encode()

    def answer(request: Request) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"max-age=60")
        request.setHeader(b"access-control-allow-origin", b"*")  # browsers read it from the web app's origin
        return body

    return answer
