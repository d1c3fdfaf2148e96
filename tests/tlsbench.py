"""`TLSTransport` without sockets: a server's transport between a TCP transport of the test and a protocol that records.

secured = Secured(context)          # after the handshake with `secured.client`, a connection of pyOpenSSL
secured.read(secured.say(b"one"))   # what the client encrypts reaches the relay's sink
assert secured.collector.got == [b"one"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from viewport_relay.reasons import Reason
from viewport_relay.wire.arena import Arena
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlsrecords import SharedMemory
from viewport_relay.wire.tlstransport import TLSFactory, TLSTransport
from viewport_relay.wire.transport import DirectAccess, Sender, Sink, read_nothing


class Wire(DirectAccess):
    """A TCP transport; written bytes collect in `sent` for the peer."""

    disconnecting = False
    aborted = False

    def __init__(self) -> None:
        self.sent = b""
        self.full = False  # whether the socket is full after the next write
        self.sink: Sink | None = None
        self.waiting: list[bytes] = []  # what the next reads of the socket give

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 1)

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        self.sink = sink
        return self._receive

    def _receive(self, space: memoryview) -> int:
        if not self.waiting:
            raise BlockingIOError
        data = self.waiting.pop(0)
        space[: len(data)] = data
        return len(data)

    @property
    def sender(self) -> Sender:
        raise AssertionError("ciphertext goes through send_now")

    @property
    def sent_everything(self) -> bool:
        return not (self.full and self.sent)

    def send_now(self, data: bytes | memoryview) -> None:
        self.sent += data

    def write(self, data: bytes) -> None:
        self.sent += data

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def registerProducer(self, producer: object, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass

    def pauseProducing(self) -> None:
        pass

    resumeProducing = pauseProducing


class Collector:
    """A sink with `room` bytes of space, which reads on at once when it has less than `wants` bytes."""

    def __init__(self, room: int) -> None:
        self.space = memoryview(bytearray(room))
        self.got: list[bytes] = []
        self.wants = 0
        self.receive: Callable[[memoryview], int] = read_nothing

    def received(self, size: int) -> None:
        if size < self.wants:
            size += self.receive(self.space[size : self.wants])
        self.got.append(bytes(self.space[:size]))


class Behind(Protocol):
    """The protocol above TLS: bytes received without a sink, the time of `peer_gone`, and the reasons of `failed`."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.failures: list[tuple[Reason, str]] = []
        self.gone_after: int | None = None
        self.collector: Collector | None = None

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def peer_gone(self) -> None:
        self.gone_after = 0 if self.collector is None else sum(map(len, self.collector.got))

    def failed(self, reason: Reason, detail: str) -> None:
        self.failures.append((reason, detail))


class Secured:
    """A server's transport after the handshake with `client`. `keys` are the lines of the client's key log."""

    def __init__(
        self,
        context: ServerContext,
        room: int = 262_144,
        site: Factory | None = None,
        *,
        direct: bool = True,
    ) -> None:
        """`site` makes the protocol above TLS instead of `behind`.

        `direct`: `behind` is read into a `collector` with `room` bytes, as an admitted peer is. Otherwise Twisted reads, as
        it does requests.
        """
        behind = Behind()

        class Behinds(Factory):
            def buildProtocol(self, addr: Any) -> Protocol:
                return behind

        self.clock = clock = Clock()
        self.arena = Arena()
        memory = SharedMemory(self.arena)
        self.factory = TLSFactory(context, site or Behinds(), clock, FairQueue(clock), memory)
        made = self.factory.buildProtocol(None)
        assert isinstance(made, TLSTransport)
        self.transport, self.behind, self.wire = made, behind, Wire()
        self.keys = keys = list[str]()
        client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client_context.set_keylog_callback(lambda _, line: keys.append(line.decode()))
        self.client = SSL.Connection(client_context, None)
        self.client.set_connect_state()
        made.makeConnection(self.wire)  # type: ignore[no-untyped-call]
        for _ in range(3):
            with_reply = self.wire.sent
            self.wire.sent = b""
            if with_reply:
                self.client.bio_write(with_reply)
            try:
                self.client.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                made.dataReceived(self.client.bio_read(100_000))
            except SSL.WantReadError:
                pass
            clock.advance(0)
        self.collector = behind.collector = Collector(room)
        if site is None and direct:
            self.collector.receive = made.read_into(self.collector)

    def say(self, *texts: bytes) -> bytes:
        """The ciphertext of texts, one record each."""
        for text in texts:
            self.client.sendall(text)
        return self.client.bio_read(1_000_000)

    def read(self, data: bytes) -> None:
        """Deliver `data` as a transport reads into its sink, until the relay aborts it."""
        sink = self.wire.sink
        assert sink is not None
        for at in range(0, len(data), len(sink.space)):
            piece = data[at : at + len(sink.space)]
            sink.space[: len(piece)] = piece
            sink.received(len(piece))
            if self.wire.aborted:
                return

    def heard(self) -> bytes:
        """Plaintext that the client has received."""
        data, self.wire.sent = self.wire.sent, b""
        if data:
            self.client.bio_write(data)
        found = b""
        try:
            while True:
                found += self.client.recv(100_000)
        except SSL.Error as error:  # nothing more, close_notify, or an alert; "[]": after an alert
            end = isinstance(error, SSL.WantReadError | SSL.ZeroReturnError)
            assert end or "alert" in str(error) or str(error) == "[]"
            return found
