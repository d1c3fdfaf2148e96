"""TLS records without data (new keys): a few are taken in any place, and a peer that floods with them is cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from tests.drill.certificates import Identity
from tests.tlsrecords import Records
from tests.unit.wire.test_tls_transport import Collector, Wire
from viewport_relay.reasons import Reason
from viewport_relay.wire.arena import Arena
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlsrecords import SharedMemory
from viewport_relay.wire.tlstransport import WITHOUT_DATA_MAX, TLSFactory, TLSTransport


class TCP(Wire):
    """A TCP transport that notices an abort."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Behind(Protocol):
    """The protocol above TLS."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.why: list[Reason] = []

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def failed(self, reason: Reason, detail: str) -> None:
        assert str(WITHOUT_DATA_MAX) in detail
        self.why.append(reason)


class Server:
    """A server's transport behind a handshake. `deliver` hands ciphertext to it, as its TCP transport does; `got` is what came of it."""

    def __init__(self, context: ServerContext, *, directly: bool) -> None:
        """`directly`: into a sink, as the frames of an admitted peer are read. Else through Twisted, as requests are."""
        behinds = Factory.forProtocol(Behind)
        self.clock, self.wire = Clock(), TCP()
        factory = TLSFactory(context, behinds, self.clock, FairQueue(self.clock), SharedMemory(Arena()))
        made = factory.buildProtocol(None)
        assert isinstance(made, TLSTransport) and isinstance(made.wrappedProtocol, Behind)
        self.transport, self.behind = made, made.wrappedProtocol
        keys: list[str] = []
        client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client_context.set_keylog_callback(lambda _, line: keys.append(line.decode()))
        client = SSL.Connection(client_context, None)
        client.set_connect_state()
        made.makeConnection(self.wire)  # type: ignore[no-untyped-call]
        for _ in range(2):
            if self.wire.sent:
                client.bio_write(self.wire.sent)
                self.wire.sent = b""
            with contextlib.suppress(SSL.WantReadError):
                client.do_handshake()
            made.dataReceived(client.bio_read(100_000))
            self.clock.advance(0)
        self.records = Records(keys)
        self._collector = Collector(262_144)
        self._collector.got = self.behind.got  # in the order of both
        self.deliver: Callable[[bytes], None] = made.dataReceived
        if directly:
            self._collector.receive = made.read_into(self._collector)
            self.deliver = self._read

    def _read(self, data: bytes) -> None:
        sink = self.wire.sink
        assert sink is not None
        for at in range(0, len(data), len(sink.space)):
            piece = data[at : at + len(sink.space)]
            sink.space[: len(piece)] = piece
            sink.received(len(piece))
            if self.wire.aborted:
                return

    @property
    def got(self) -> bytes:
        return b"".join(self.behind.got)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ServerContext:
    files = Identity.self_signed("localhost").write(tmp_path_factory.mktemp("tls"), "relay")
    return ServerContext(files.cert, files.key)


@pytest.fixture(params=[True, False], ids=["directly", "through Twisted"])
def server(request: pytest.FixtureRequest, context: ServerContext) -> Server:
    return Server(context, directly=request.param)


#: d: a record of data, k: a new key.
@pytest.mark.parametrize(
    "order", ["k", "kd", "dk", "kkd", "dkd", "dkdkd", "ddkkdd", "kdddddddd", "dddddddkk"]
)
@pytest.mark.parametrize("together", [True, False], ids=["in one read", "one by one"])
def test_data_around_new_keys_is_read_at_once(server: Server, order: str, together: bool) -> None:
    made = [
        server.records.data(b"<%d>" % at) if kind == "d" else server.records.key_update()
        for at, kind in enumerate(order)
    ]
    for read in [b"".join(made)] if together else made:
        server.deliver(read)
    assert server.got == b"".join(b"<%d>" % at for at, kind in enumerate(order) if kind == "d")
    assert not server.wire.aborted and server.behind.why == []


def test_a_record_in_pieces_behind_a_new_key(server: Server) -> None:
    read = server.records.key_update() + server.records.data(b"data")
    for piece in (read[:30], read[30:40]):
        server.deliver(piece)
    assert server.got == b""
    server.deliver(read[40:])
    assert server.got == b"data"


@pytest.mark.parametrize("data", [b"", b"x"], ids=["new keys alone", "with data in between"])
def test_a_flood_of_new_keys_ends_the_connection(server: Server, data: bytes) -> None:
    flood = b"".join(
        server.records.key_update() + (server.records.data(data) if data else b"") for _ in range(3000)
    )
    server.wire.sent = b""
    server.deliver(flood)
    assert server.wire.aborted
    assert server.behind.why == [Reason.PROTOCOL_ERROR]
    assert len(server.got) <= WITHOUT_DATA_MAX + 1, "the flood was not stopped where it was noticed"
    assert len(server.wire.sent) < 100 * WITHOUT_DATA_MAX, "its answers pile up"


def test_many_new_keys_over_a_long_time_are_no_flood(server: Server) -> None:
    for _ in range(10):
        for _ in range(WITHOUT_DATA_MAX // 3):
            server.deliver(server.records.key_update() + server.records.data(b"."))
        server.clock.advance(61)
    assert len(server.got) == 10 * (WITHOUT_DATA_MAX // 3)
    assert not server.wire.aborted
