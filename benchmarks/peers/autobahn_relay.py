"""The most straightforward relay with Autobahn (`onMessage`, `json.loads`, `sendMessage`), for comparison only.

    python benchmarks/peers/autobahn_relay.py PORT

Every peer is admitted and nothing is limited; a frame goes to the target's daemon, or by requestId or sessionId to a
client. The figures show the cost of unmodified Autobahn.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor as default_reactor

FRAME_MAX = 1_048_576


class Room:
    """One target: its daemon, and the owners of requests and sessions."""

    def __init__(self) -> None:
        self.daemon: PlainRelay | None = None
        self.requests: dict[str, PlainRelay] = {}
        self.sessions: dict[str, PlainRelay] = {}


class PlainRelay(WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """One connection."""

    room: Room | None = None
    is_daemon = False

    def onConnect(self, request: Any) -> None:
        query = parse_qs(urlsplit(request.path).query) or request.params
        key = (query["workspaceId"][0], query["runtimeTargetId"][0])
        self.room = self.factory.rooms.setdefault(key, Room())
        self.is_daemon = query["role"][0] == "workspace-daemon"

    def onOpen(self) -> None:
        if self.is_daemon and self.room is not None:
            self.room.daemon = self

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        frame = json.loads(payload)
        assert self.room is not None
        receiver = (
            self.from_daemon(self.room, frame) if self.is_daemon else self.from_client(self.room, frame)
        )
        if receiver is not None:
            receiver.sendMessage(payload, False)

    def from_client(self, room: Room, frame: dict[str, Any]) -> PlainRelay | None:
        if frame["type"] == "relay_key_exchange_init":
            room.requests[frame["requestId"]] = self
        return room.daemon

    def from_daemon(self, room: Room, frame: dict[str, Any]) -> PlainRelay | None:
        if frame["type"] == "relay_key_exchange_response":
            client = room.requests.pop(frame["requestId"], None)
            if client is not None:
                room.sessions[frame["sessionId"]] = client
            return client
        return room.sessions.get(frame["sessionId"])

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.room is not None and self.room.daemon is self:
            self.room.daemon = None


class PlainFactory(WebSocketServerFactory):  # type: ignore[misc]  # Autobahn is not typed
    """All rooms."""

    protocol = PlainRelay

    def __init__(self) -> None:
        super().__init__()
        self.rooms: dict[tuple[str, str], Room] = {}
        self.setProtocolOptions(maxMessagePayloadSize=FRAME_MAX, failByDrop=False, autoPingInterval=30)


def serve(port: int, factory: WebSocketServerFactory) -> None:
    """Listen on loopback until a signal."""
    reactor: Any = default_reactor
    reactor.listenTCP(port, factory, backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), PlainFactory())
