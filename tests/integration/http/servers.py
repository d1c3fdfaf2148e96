"""Scripted HTTP servers on loopback, and clients for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from viewport_relay.admission.httpcall import Answer, Call

reactor: Any = real_reactor
Listen = Callable[[Factory], int]


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait until a condition holds; fails after `seconds`."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, "the condition did not become true in time"
        await pause(0.01)


def post(port: int, path: str = "/", limit: float = 2.0, max_bytes: int = 4096, **rest: Any) -> Call:
    return Call.make("POST", f"http://127.0.0.1:{port}{path}", {}, limit=limit, max_bytes=max_bytes, **rest)


class Scripted(Protocol):
    """HTTP server protocol: passes each complete request to the factory's script."""

    def connectionMade(self) -> None:
        self.buffer = b""
        self.lost = False
        self.number = len(self.factory.connections)
        self.factory.connections.append(self)
        self.factory.script(self, None)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.factory.requests.append((self.number, head, rest[:length]))
            self.factory.script(self, head)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class Server(Factory):
    protocol = Scripted
    noisy = False

    def __init__(self, script: Callable[[Any, bytes | None], None]) -> None:
        self.script = script
        self.connections: list[Scripted] = []
        self.requests: list[tuple[int, bytes, bytes]] = []


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answering(wire: bytes, close: bool = False) -> Server:
    """A server that answers each request with the same bytes."""

    def script(connection: Any, head: bytes | None) -> None:
        if head is not None:
            connection.transport.write(wire)
            if close:
                connection.transport.loseConnection()

    return Server(script)


async def failure_of(waiting: Awaitable[Answer]) -> Exception:
    try:
        answer = await waiting
    except Exception as error:
        return error
    raise AssertionError(f"it was answered: {answer!r}")


def drip(connection: Any, piece: bytes) -> None:
    def more() -> None:
        if not connection.lost:
            connection.transport.write(piece)
            reactor.callLater(0.05, more)

    more()


def dropping(answers_before: int, connections: int) -> Server:
    """A server that, on the first `connections`, closes without a response after `answers_before` responses."""

    def script(connection: Any, head: bytes | None) -> None:
        if head is None:
            connection.left = answers_before
        elif connection.number >= connections or connection.left > 0:
            connection.left -= 1
            connection.transport.write(OK)
        else:
            connection.transport.loseConnection()

    return Server(script)
