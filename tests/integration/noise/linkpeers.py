"""Peers over real sockets that can break the link's protocol.

`RawPeer` is a WebSocket that sends any message. `LinkPeer` adds the initiator of `tests.unit.noise.peers`, which
shares no code with the relay or the reference peers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint

from tests.unit.noise.peers import CONFIRM, Initiator
from viewport_relay.peer.upgrade import Closed, Destination

reactor: Any = _reactor
LINK = "viewport.noise-link.v1"
PATIENCE = 15.0  # seconds; enough for a busy machine
MESSAGE_MAX = 4_194_304


class _Silent:
    """A null object for Autobahn's logger."""

    def debug(self, *_: object, **__: object) -> None:
        pass

    trace = info = warn = error = debug


class RawPeer(WebSocketClientProtocol):  # type: ignore[misc, unused-ignore]  # not typed
    """WebSocket client: `messages` has received (payload, binary); `gone` fires with the relay's Close, or 1006."""

    log = _Silent()

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[bytes, bool]] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.opened: Deferred[RawPeer] = Deferred()
        self.gone: Deferred[Closed] = Deferred()
        self.closed: Closed | None = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def onOpen(self) -> None:
        self.opened.callback(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.messages.append((payload, isBinary))
        self._look()

    def onPing(self, payload: bytes) -> None:
        self.pings.append(payload)
        super().onPing(payload)
        self._look()

    def onPong(self, payload: bytes) -> None:
        self.pongs.append(payload)
        self._look()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        code = self.remoteCloseCode
        self.closed = Closed(1006, "") if code is None else Closed(code, self.remoteCloseReason or "")
        self._look()
        if not self.opened.called:
            self.opened.errback(AssertionError(f"not opened: {self.closed}"))
        self.gone.callback(self.closed)

    # -- waiting -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        for condition, waiter in list(self._waiting):
            if condition():
                self._waiting.remove((condition, waiter))
                waiter.callback(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this peer's state holds."""
        if not condition():
            waiter: Deferred[None] = Deferred()
            self._waiting.append((condition, waiter))
            await waiter.addTimeout(PATIENCE, reactor)

    async def has(self, count: int) -> list[tuple[bytes, bool]]:
        """The messages, when there are `count`."""
        await self.until(lambda: len(self.messages) >= count or self.closed is not None)
        assert len(self.messages) >= count, (self.closed, len(self.messages))
        return self.messages

    async def ended(self) -> Closed:
        """The relay's Close."""
        if self.closed is None:
            await self.gone.addTimeout(PATIENCE, reactor)
        assert self.closed is not None
        return self.closed

    # -- sending ------------------------------------------------------------------------------------------

    def say(self, payload: bytes, binary: bool = True, fragment: int | None = None) -> None:
        """Send one message, in WebSocket frames of at most `fragment` bytes."""
        untyped: Any = self
        untyped.sendMessage(payload, isBinary=binary, fragmentSize=fragment)

    def leave(self) -> None:
        """Start the closing handshake."""
        untyped: Any = self
        untyped.sendClose(1000)

    def vanish(self) -> None:
        """Abort the TCP connection."""
        untyped: Any = self
        untyped.dropConnection(abort=True)

    # -- the interface of `LinkPeer`, for tests that run with and without a link ------------------------------

    def send(self, frame: bytes) -> None:
        self.say(frame, binary=False)

    @property
    def frames(self) -> list[bytes]:
        assert not any(binary for _, binary in self.messages)
        return [payload for payload, _ in self.messages]

    async def hears(self, count: int) -> list[bytes]:
        await self.has(count)
        return self.frames


async def raw_connect(destination: Destination, token: str, offered: Sequence[str] = (LINK,)) -> RawPeer:
    """An open WebSocket; the peer has sent nothing yet."""
    make: Any = WebSocketClientFactory
    factory = make(
        destination.url,
        protocols=list(offered),
        headers={"Authorization": f"Bearer {token}"},
        useragent=None,
        reactor=reactor,
    )
    factory.log = _Silent()
    factory.noisy = False
    factory.protocol = RawPeer
    factory.setProtocolOptions(
        openHandshakeTimeout=PATIENCE, closeHandshakeTimeout=PATIENCE, maxMessagePayloadSize=MESSAGE_MAX
    )
    endpoint: Any = HostnameEndpoint(reactor, "127.0.0.1", factory.port)
    protocol: RawPeer = await endpoint.connect(factory)
    await protocol.opened.addTimeout(PATIENCE, reactor)
    return protocol


class LinkPeer:
    """A raw peer with the link's initiator."""

    def __init__(self, raw: RawPeer, initiator: Initiator) -> None:
        self.raw = raw
        self.initiator = initiator
        self.hello: dict[str, Any] = {}
        self._frames: list[bytes] = []
        self._opened = 1  # number of opened messages of the relay; the first is message 2

    async def message_2(self) -> LinkPeer:
        """Send message 1 and read message 2."""
        self.raw.say(self.initiator.message_1())
        [(payload, binary)] = await self.raw.has(1)
        assert binary
        self.hello = self.initiator.read_message_2(payload)
        return self

    def confirm(self) -> LinkPeer:
        self.raw.say(self.initiator.seal(CONFIRM))
        return self

    async def up(self) -> LinkPeer:
        """Complete the handshake. The relay does not answer the confirm; messages may follow it at once."""
        await self.message_2()
        return self.confirm()

    def send(self, frame: bytes) -> None:
        self.raw.say(self.initiator.seal(frame))

    @property
    def frames(self) -> list[bytes]:
        """Received frames; each message is decrypted once, in order."""
        for payload, binary in self.raw.messages[self._opened :]:
            assert binary, payload[:200]
            self._opened += 1
            self._frames.append(self.initiator.open(payload))
        return self._frames

    async def hears(self, count: int) -> list[bytes]:
        """The frames, when there are `count`."""
        await self.raw.has(count + 1)
        return self.frames


def status_codes(frames: Sequence[bytes]) -> list[str]:
    """Codes of the relay's status frames."""
    return [json.loads(frame)["code"] for frame in frames]
