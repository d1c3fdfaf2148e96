"""WebSocket and TCP test servers on a free loopback port, with scripted answers, over TCP or TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest_twisted  # type: ignore[import-untyped]
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tests.unit.peer.wiring import RelayEnd
from viewport_relay.peer.link import SUBPROTOCOL

reactor: Any = _reactor
Case = Callable[..., Coroutine[Any, Any, None]]


def on_reactor(case: Case) -> Any:
    """Run an `async def` test on the real reactor."""
    decorate: Any = pytest_twisted.ensureDeferred
    return decorate(case)


class Session(WebSocketServerProtocol):  # type: ignore[misc, unused-ignore]  # not typed
    """One server-side WebSocket connection; delegates each event to its factory's `Echo`."""

    factory: Any

    def onConnect(self, request: Any) -> str | None:
        self.requested = request
        self.factory.echo.requests.append(request)
        chosen: str | None = self.factory.echo.select(request)
        return chosen

    def onOpen(self) -> None:
        self.factory.echo.sessions.append(self)
        self.factory.echo.opened(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.echo.message(self, payload, isBinary)

    def put(self, payload: bytes, binary: bool = False) -> None:
        untyped: Any = self
        untyped.sendMessage(payload, isBinary=binary)


class Echo:
    """Echo server behaviour. The text `close CODE REASON` sends a Close frame, `abort` drops the TCP connection."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.sessions: list[Session] = []
        self.on_open: Callable[[Session], None] = lambda _: None

    def select(self, request: Any) -> str | None:
        """Select the sub-protocol by the relay's rule."""
        plain = [name for name in request.protocols if name != SUBPROTOCOL]
        return next(iter(sorted(plain, key=lambda name: str(name).startswith("auth."))), None)

    def opened(self, session: Session) -> None:
        self.on_open(session)

    def message(self, session: Session, payload: bytes, binary: bool) -> None:
        text = payload.decode("utf-8", "replace")
        if text.startswith("close "):
            _, code, reason = text.split(" ", 2)
            session.sendCloseFrame(int(code), reason.encode())
        elif text == "abort":
            session.dropConnection(abort=True)
        else:
            session.put(payload, binary)


class LinkEcho(Echo):
    """Echo over the Noise link; `relay` is the responder of the single connection."""

    def __init__(self, relay: RelayEnd) -> None:
        super().__init__()
        self.relay = relay
        self.frames: list[bytes] = []
        self._answered = False

    def select(self, request: Any) -> str | None:
        return SUBPROTOCOL

    def message(self, session: Session, payload: bytes, binary: bool) -> None:
        if not self._answered:
            self._answered = True
            session.put(self.relay.answer(payload), True)
            return
        frame = b"".join(self.relay.open(payload))
        self.frames.append(frame)
        if frame == b"damage":
            session.put(bytes([0, 16]) + bytes(16), True)
        elif frame == b"text":
            session.put(b"plain", False)
        elif len(self.frames) > 1:
            pieces = [frame[at : at + 60_000] for at in range(0, len(frame), 60_000)]
            session.put(self.relay.seal(*pieces), True)


@asynccontextmanager
async def serving(echo: Echo, tls: ssl.CertificateOptions | None = None, port: int = 0) -> AsyncIterator[str]:
    """Listen with a WebSocket server; yields the base URL for a peer."""
    make: Any = WebSocketServerFactory
    factory = make(reactor=reactor)
    factory.protocol = Session
    factory.echo = echo
    factory.setProtocolOptions(failByDrop=False, closeHandshakeTimeout=2)
    async with listening(factory, tls, port) as number:
        yield f"{'ws' if tls is None else 'wss'}://localhost:{number}"
        for session in echo.sessions:
            session.dropConnection(abort=True)


@asynccontextmanager
async def listening(
    factory: Any, tls: ssl.CertificateOptions | None = None, port: int = 0
) -> AsyncIterator[int]:
    """Listen on a free port; yields the port number, stops listening at the end."""
    if tls is None:
        listener = reactor.listenTCP(port, factory, interface="127.0.0.1")
    else:
        listener = reactor.listenSSL(port, factory, tls, interface="127.0.0.1")
    try:
        yield listener.getHost().port
    finally:
        await listener.stopListening()


class _Canned(Protocol):
    def connectionMade(self) -> None:
        self._head = b""

    def dataReceived(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head:
            canned: Any = self.factory
            canned.heads.append(self._head)
            for piece in canned.pieces:
                if isinstance(piece, bytes):
                    transport: Any = self.transport
                    transport.write(piece)
            if canned.hang_up:
                transport = self.transport
                transport.loseConnection()


class Canned(Factory):
    """A TCP server that answers each request with fixed bytes, then keeps the connection or closes it."""

    protocol = _Canned

    def __init__(self, *pieces: bytes, hang_up: bool = False) -> None:
        self.pieces = pieces
        self.hang_up = hang_up
        self.heads: list[bytes] = []


def http(status: str, body: bytes, *headers: str, length: bool = True) -> bytes:
    """Build an HTTP/1.1 response."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Inbox:
    """Received frames, with a method that waits for a number of them."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def __call__(self, text: str) -> None:
        self.frames.append(text)
        for count, waiter in list(self._waiting):
            if len(self.frames) >= count:
                self._waiting.remove((count, waiter))
                waiter.callback(None)

    async def has(self, count: int) -> list[str]:
        """Wait until `count` frames have arrived and return all; fails after 5 s."""
        if len(self.frames) < count:
            waiter: Deferred[None] = Deferred()
            self._waiting.append((count, waiter))
            await waiter.addTimeout(5, reactor)
        return self.frames
