"""`TLSTransport` without sockets: records of a read reach the sink together, a full socket stops encryption, the end comes last."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from tests.drill.certificates import Identity
from tests.tlsbench import Collector, Secured
from viewport_relay.observe.logs import EventLog
from viewport_relay.wire import tlsrecords
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlsrecords import PIECE, RECORD


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ServerContext:
    files = Identity.self_signed("localhost").write(tmp_path_factory.mktemp("tls"), "relay")
    return ServerContext(files.cert, files.key)


@pytest.fixture
def secured(context: ServerContext) -> Secured:
    return Secured(context)


def test_the_records_of_a_read_reach_the_sink_together(secured: Secured) -> None:
    secured.read(secured.say(b"one", b"two", b"three"))
    assert secured.collector.got == [b"onetwothree"]
    assert secured.behind.got == []


def test_a_record_in_pieces_is_delivered_when_complete(secured: Secured) -> None:
    data = secured.say(b"x" * 1000, b"y" * 1000)
    for at in range(0, len(data), 300):
        secured.read(data[at : at + 300])
    assert b"".join(secured.collector.got) == b"x" * 1000 + b"y" * 1000
    assert len(secured.collector.got) == 2


@pytest.mark.parametrize("room", [10, RECORD - 1, RECORD, RECORD + 1])
def test_a_small_sink_receives_everything(context: ServerContext, room: int) -> None:
    secured = Secured(context, room)
    text = bytes(range(256)) * 200
    secured.read(secured.say(*(text[at : at + RECORD] for at in range(0, len(text), RECORD))))
    assert b"".join(secured.collector.got) == text


@pytest.mark.parametrize("first", [1, 100, RECORD])
def test_the_rest_of_a_frame_is_read_in_the_same_event(secured: Secured, first: int) -> None:
    frame, following = bytes(range(256)) * 1024, b"f" * RECORD
    pieces = [frame[:first]] + [frame[at : at + RECORD] for at in range(first, len(frame), RECORD)]
    begins, rest = secured.say(pieces[0]), secured.say(*pieces[1:], following)
    most = len(secured.factory.memory.space)
    secured.wire.waiting = [rest[at : at + most] for at in range(0, len(rest), most)]
    secured.collector.wants = len(frame)
    secured.read(begins)
    assert secured.collector.got[0] == frame
    secured.read(b"".join(secured.wire.waiting))
    assert secured.collector.got[1:] == [following]


def test_a_short_read_is_the_last_one_of_an_event(secured: Secured) -> None:
    begins, rest = secured.say(b"a" * 10), secured.say(b"b" * 10)
    secured.wire.waiting = [rest[:20], rest[20:]]
    secured.collector.wants = 30
    secured.read(begins)
    assert secured.collector.got == [b"a" * 10]
    secured.collector.wants = 0
    secured.read(secured.wire.waiting.pop())
    assert secured.collector.got[1:] == [b"b" * 10]


@pytest.mark.parametrize("ends", ["close_notify", "damaged"])
def test_the_end_within_what_is_read_on(secured: Secured, ends: str) -> None:
    begins = secured.say(b"first, ")
    secured.client.send(b"last")
    if ends == "close_notify":
        secured.client.shutdown()
        rest = secured.client.bio_read(10_000)
    else:
        rest = secured.say(b"bad")
        rest = rest[:-1] + bytes([rest[-1] ^ 1])
    secured.wire.waiting = [rest]
    secured.collector.wants = 100
    secured.read(begins)
    assert secured.collector.got == [b"first, last"]
    assert secured.behind.gone_after == len(b"first, last")
    assert secured.wire.disconnecting


def test_bytes_read_by_another_layer_are_accepted(secured: Secured) -> None:
    secured.transport.dataReceived(secured.say(b"behind a PROXY header"))
    assert secured.collector.got == [b"behind a PROXY header"]


@pytest.mark.parametrize("size", [1, RECORD, PIECE, PIECE + 1, 5 * PIECE + 7])
def test_everything_is_sent_at_once(secured: Secured, size: int) -> None:
    secured.heard()
    data = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    assert secured.transport.sender.send(data) == size
    assert secured.heard() == data


def test_a_full_socket_stops_the_encryption(secured: Secured) -> None:
    secured.heard()
    secured.wire.full = True
    assert secured.transport.sender.send(bytes(5 * PIECE)) == PIECE
    assert PIECE < len(secured.wire.sent) < PIECE + 1000
    assert not secured.transport.sent_everything
    assert secured.heard() == bytes(PIECE)


def test_data_before_a_close_notify_is_delivered_first(secured: Secured) -> None:
    secured.client.send(b"last words")
    secured.client.shutdown()
    secured.read(secured.client.bio_read(10_000))
    assert secured.collector.got == [b"last words"]
    assert secured.behind.gone_after == len(b"last words")
    assert secured.wire.disconnecting
    assert not secured.transport.sent_everything


def test_a_damaged_record_ends_the_connection_after_the_valid_ones(secured: Secured) -> None:
    data = bytearray(secured.say(b"good", b"bad"))
    data[-1] ^= 1
    secured.read(bytes(data))
    assert secured.collector.got == [b"good"]
    assert secured.behind.gone_after == len(b"good")
    assert secured.wire.disconnecting


class Waits:
    """An SSL.Connection that raises WantReadError on send."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection

    def send(self, data: bytes) -> int:
        raise SSL.WantReadError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_data_that_openssl_does_not_accept_is_sent_in_order_by_twisted(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured.heard()
    sender, transport = secured.transport.sender, secured.transport
    with monkeypatch.context() as waiting:
        waiting.setattr(transport, "_tlsConnection", Waits(transport.getHandle()))  # type: ignore[no-untyped-call]
        transport.write(b"first")  # type: ignore[no-untyped-call]
    assert sender.send(b"second") == 0 and not transport.sent_everything
    secured.read(secured.say(b"from the client"))
    assert secured.behind.got == [b"from the client"]
    transport.write(b", second")  # type: ignore[no-untyped-call]
    assert secured.heard() == b"first, second"


def test_without_a_record_layer_data_goes_through_twisted(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tlsrecords, "_available", False)
    secured = Secured(context)
    transport = secured.transport
    assert secured.wire.sink is None and not transport.sent_everything
    assert transport.sender.send(b"x") == 0
    transport.dataReceived(secured.say(b"to the relay"))
    assert secured.behind.got == [b"to the relay"]
    transport.write(b"to the client")  # type: ignore[no-untyped-call]
    assert secured.heard() == b"to the client"


def test_no_direct_send_while_the_connection_closes(secured: Secured) -> None:
    sender = secured.transport.sender
    secured.transport.loseConnection()
    assert sender.send(b"x") == 0 and not secured.transport.sent_everything
    assert secured.transport.sender.send(b"x") == 0


def test_nothing_is_read_after_an_abort(secured: Secured) -> None:
    data = secured.say(b"too late")
    secured.transport.abortConnection()
    secured.read(data)
    assert secured.collector.got == secured.behind.got == []


def test_a_lost_connection_is_neither_read_nor_written(secured: Secured) -> None:
    secured.transport.connectionLost(Failure(ConnectionResetError()))
    assert secured.transport.sender.send(b"x") == 0
    assert not secured.transport.sent_everything


class Page(Resource):
    isLeaf = True

    def render(self, request: object) -> bytes:
        return b"page"


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_lost_http_connection_leaves_nothing_to_the_collector(
    context: ServerContext, header: bytes, damaged: bool
) -> None:
    """Strangers could fill memory with cycles of references, and full collections delay frames."""
    clock = Clock()
    connections = HttpConnections(lambda: 10, EventLog(io.StringIO(), max_entries=10))
    site: Any = RelaySite(Root(None, Page()), clock, FairQueue(clock), connections)  # type: ignore[no-untyped-call]
    secured = Secured(context, site=site)
    transport, seen = secured.transport, weakref.ref(secured.transport)
    gc.collect()
    gc.disable()
    try:
        transport.dataReceived(secured.say(b"GET / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n"))
        assert b"page" in secured.heard()
        if damaged:
            transport.dataReceived(b"\x17\x03\x03\x00\x20" + bytes(32))
        transport.connectionLost(Failure(ConnectionDone()))
        del secured, transport
        clock.advance(60)
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("end", ["reset", "close_notify", "aborted", "closed"])
def test_a_lost_peer_leaves_nothing_to_the_collector(context: ServerContext, end: str) -> None:
    """OpenSSL's buffers have 170 KB after long frames, of which the collector knows nothing: it would come too late."""
    secured = Secured(context)
    transport, seen = secured.transport, weakref.ref(secured.transport)
    gc.collect()
    gc.disable()
    try:
        secured.heard()
        assert transport.sender.send(bytes(PIECE)) == PIECE
        secured.read(secured.say(bytes(RECORD)))
        if end == "close_notify":
            secured.client.shutdown()
            secured.read(secured.client.bio_read(10_000))
        elif end == "aborted":
            transport.abortConnection()
        elif end == "closed":
            transport.loseConnection()
        transport.connectionLost(Failure(ConnectionDone()))
        secured.behind.transport = None  # the test's own
        clock = secured.clock
        del secured, transport
        clock.advance(60)
        assert seen() is None
    finally:
        gc.enable()


# -- any order of events --------------------------------------------------------------------------------------------


class Guarded(Collector):
    """A sink whose space is the middle of a buffer, of another size after each call, and that acts while it is called."""

    def __init__(self, rooms: list[int], act: Callable[[], None]) -> None:
        super().__init__(0)
        self.buffer = bytearray(b"?" * (max(rooms) + 64))
        self.rooms, self.act = rooms, act
        self._next()

    def _next(self) -> None:
        self.room = self.rooms[0]
        self.rooms = self.rooms[1:] + self.rooms[:1]
        self.space = memoryview(self.buffer)[32 : 32 + self.room]

    def received(self, size: int) -> None:
        assert 0 < size <= self.room
        super().received(size)
        outside = self.buffer[:32] + self.buffer[32 + self.room :]
        self.buffer[:] = b"?" * len(self.buffer)
        self._next()
        assert outside == b"?" * len(outside)
        self.act()


_ACTIONS = st.sampled_from(["nothing", "send", "lose", "abort", "lost", "collect"])
_SIZES = st.sampled_from([1, 7, 1000, RECORD - 1, RECORD, RECORD + 1])
_EVENTS = st.one_of(
    st.tuples(st.just("say"), st.lists(_SIZES, min_size=1, max_size=3)),
    st.tuples(st.just("deliver"), st.integers(1, 100_000)),
    st.tuples(st.just("read on"), st.lists(st.integers(1, 40_000), max_size=3)),
    st.tuples(st.sampled_from(["close_notify", "damage", "full", "other way"]), st.none()),
    st.tuples(_ACTIONS, st.none()),
)


@given(
    st.lists(st.sampled_from([500, RECORD - 1, RECORD, RECORD + 1, 70_000]), min_size=1, max_size=3),
    st.lists(_ACTIONS, max_size=4),
    st.lists(_EVENTS, min_size=2, max_size=12),
)
@settings(max_examples=60)
def test_any_order_of_events(
    context: ServerContext, rooms: list[int], acts: list[str], events: list[tuple[str, Any]]
) -> None:
    """Whatever comes, in whatever pieces, while the sink sends, closes or loses the connection: bytes arrive in order, unharmed."""
    secured = Secured(context)
    secured.heard()
    transport, wire = secured.transport, secured.wire
    said = sent = stream = heard = b""
    lost = False

    def do(act: str) -> None:
        nonlocal sent, heard, lost
        if act == "send":
            data = bytes(range(251)) * 300
            sent += data[: transport.sender.send(data)]
            heard += secured.heard()
        elif act == "lose":
            transport.loseConnection()
        elif act == "abort":
            transport.abortConnection()
        elif act == "lost" and not lost:
            lost = True
            transport.connectionLost(Failure(ConnectionDone()))
        elif act == "collect":
            gc.collect(0)

    guarded = Guarded(rooms, lambda: do(acts.pop()) if acts else None)
    guarded.receive = transport.read_into(guarded)
    for event, detail in [*events, ("deliver", 10**9)]:
        if event == "say" and not secured.client.get_shutdown():
            texts = [bytes([at % 256]) * size for at, size in enumerate(detail, len(said))]
            stream += secured.say(*texts)
            said += b"".join(texts)
        elif event == "deliver" and not lost:
            piece, stream = stream[:detail], stream[detail:]
            secured.read(piece)
        elif event == "read on":
            wire.waiting, guarded.wants = [], rooms[0]
            for size in detail:
                wire.waiting.append(stream[:size])
                stream = stream[size:]
            wire.waiting = [data for data in wire.waiting if data]
        elif event == "close_notify" and not secured.client.get_shutdown():
            secured.client.shutdown()
            stream += secured.client.bio_read(10_000)
        elif event == "damage" and stream:
            stream = stream[:-1] + bytes([stream[-1] ^ 1])
        elif event == "full":
            wire.full = True
        elif event == "other way" and stream and not lost:
            piece, stream = stream[:500], stream[500:]
            transport.dataReceived(piece)
        else:
            do(event)
    assert said.startswith(b"".join(guarded.got))
    assert sent.startswith(heard + secured.heard())
