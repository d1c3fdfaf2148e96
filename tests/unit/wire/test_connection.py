"""Connections with hostile or slow peers, and how they end; over in-memory transports (tests/memorywire.py)."""

from __future__ import annotations

import gc
import struct
import tracemalloc
import weakref
from typing import Any

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.memorywire import BINARY, CLOSE, PING, PONG, TEXT, MemoryPeer, MemoryRelay, masked_frame
from tests.wireframes import encoded
from viewport_relay.protocol.grant import Scope
from viewport_relay.reasons import Reason
from viewport_relay.wire.codec import CodecFactory

KIB, MIB = 1024, 1_048_576


def with_session(relay: MemoryRelay, session: str = "session-1") -> tuple[MemoryPeer, MemoryPeer]:
    """A daemon and a client that owns a session."""
    daemon, client = relay.daemon(), relay.client()
    client.say(encoded("init v3", requestId=session))
    daemon.say(encoded("response v3", requestId=session, sessionId=session))
    assert (len(daemon.heard()), len(client.heard())) == (1, 1)
    return daemon, client


def bytes_kept(work: object) -> int:
    """Bytes of memory that `work` allocates and keeps."""
    assert callable(work)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def pour(relay: MemoryRelay, client: MemoryPeer) -> None:
    """Send 4 MiB, at the rate at which a closed connection is read."""
    for _ in range(64):
        client.raw(b"x" * KIB * 64)
        relay.wait(0.05)


# -- memory -------------------------------------------------------------------------------------------------------


def test_endless_empty_fragments_use_no_memory() -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.raw(masked_frame(TEXT, b"", fin=False))
    piece = masked_frame(0, b"", fin=False) * 5000
    # Memory that fragments used would be kept by each read; another thread's, or a buffer made once, is not.
    assert min(bytes_kept(lambda: client.raw(piece)) for _ in range(3)) < 20_000
    client.raw(masked_frame(0, encoded("init v3")))
    assert b"DAEMON_UNAVAILABLE" in client.heard()[0]


def test_a_message_of_tiny_fragments_uses_about_its_own_size() -> None:
    relay = MemoryRelay(RELAY_FRAME_MAX_BYTES=str(64 * KIB))
    client = relay.client()
    client.raw(masked_frame(TEXT, b"xx", fin=False))
    pieces = masked_frame(0, b"xx", fin=False) * 4000
    assert bytes_kept(lambda: client.raw(pieces)) < 4 * 8000
    client.raw(masked_frame(0, b""))
    assert b"INVALID_FRAME" in client.heard()[0]


def test_fragments_are_joined_to_their_message() -> None:
    relay = MemoryRelay()
    daemon, client = relay.daemon(), relay.client()
    message = encoded("init v3", extra="\u00e9" * 500)
    for size in (1, 2, 3, 100, 1000):
        pieces = [message[at : at + size] for at in range(0, len(message), size)]
        wire = masked_frame(TEXT, pieces[0], fin=False)
        for number, piece in enumerate(pieces[1:]):
            if number % 100 == 0:
                wire += masked_frame(PING, b"between") + masked_frame(0, b"", fin=False)
            wire += masked_frame(0, piece, fin=False)
        client.raw(wire + masked_frame(0, b""))
        assert daemon.heard() == [message]
    assert b"between" in client.pongs


def test_an_oversized_control_frame_uses_no_memory() -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.answers_close = False
    client.raw(b"\x89\xff" + struct.pack("!Q", 1 << 40) + b"mask")
    assert client.closed == (1002, "WebSocket protocol error")
    assert bytes_kept(lambda: pour(relay, client)) < 400 * KIB


def test_bytes_after_a_close_use_no_memory() -> None:
    relay = MemoryRelay()
    daemon, client = with_session(relay)
    client.stop_reading()
    for _ in range(20):
        daemon.say(encoded("e2ee", ciphertext="c" * 10_000))
    client.raw(masked_frame(CLOSE, b""))
    assert not client.connection.is_lost  # queued messages are still sent
    assert bytes_kept(lambda: pour(relay, client)) < 400 * KIB
    client.transport.buffered.clear()
    client.read_on()
    assert len(client.heard()) == 20
    assert client.connection.is_lost


def test_bytes_after_an_oversized_frame_use_no_memory() -> None:
    relay = MemoryRelay(RELAY_FRAME_MAX_BYTES="1000")
    client = relay.client()
    client.answers_close = False
    client.raw(b"\x81\xff" + struct.pack("!Q", 1 << 40) + b"mask")
    assert client.closed == (1009, "frame too large")
    assert bytes_kept(lambda: pour(relay, client)) < 400 * KIB
    assert relay.counters.ws_frame_too_large == 1


def test_a_ping_flood_of_a_peer_that_does_not_read_is_answered_once() -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.stop_reading()
    flood = b"".join(masked_frame(PING, b"%0100d" % number) for number in range(5000))
    client.raw(flood)
    assert client.transport.unsent <= 65_536 + 200
    assert client.connection.outbox.queued == 0
    client.read_on()
    assert client.pongs[-1] == b"%0100d" % 4999
    assert client.is_open


# -- arbitrary bytes ----------------------------------------------------------------------------------------------------

headers = st.builds(
    lambda first, second, more: bytes([first, second]) + more,
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=14),
)
pieces = st.one_of(
    headers,
    st.binary(max_size=40),
    st.builds(
        masked_frame,
        st.sampled_from([0, TEXT, BINARY, CLOSE, PING, PONG, 3, 11]),
        st.binary(max_size=130),
        fin=st.booleans(),
    ),
    st.sampled_from([encoded("e2ee"), encoded("init v3"), encoded("response v3")]).map(
        lambda m: masked_frame(TEXT, m)
    ),
    st.just(b"\x81\xff" + b"\xff" * 12),
    st.just(b"\x81\x7f" + b"\x00" * 8),
    st.just(b"\x88\x82maskma"),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(pieces, max_size=12), st.booleans(), st.booleans())
def test_arbitrary_bytes_do_not_affect_other_connections(
    wire: list[bytes], daemon_sends: bool, answers_close: bool
) -> None:
    relay = MemoryRelay(RELAY_FRAME_MAX_BYTES="70000")
    daemon, other = with_session(relay)
    victim = relay.daemon(target="elsewhere") if daemon_sends else relay.client()
    victim.answers_close = answers_close
    for piece in wire:
        victim.raw(piece)
    assert victim.after_close == []
    if victim.closed is not None:
        relay.wait(21)
        assert victim.connection.is_lost
    daemon.heard()
    daemon.say(encoded("e2ee", seq=2))
    other.say(encoded("e2ee", seq=3))
    assert other.heard() == [encoded("e2ee", seq=2)]
    assert encoded("e2ee", seq=3) in daemon.heard()
    victim.vanish()
    assert victim.connection not in relay.factory.connections


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("not masked", b"\x81\x02{}"),
        ("reserved bit", b"\xc1\x80mask"),
        ("reserved opcode", b"\x83\x80mask"),
        ("reserved control opcode", b"\x8b\x80mask"),
        ("fragmented ping", b"\x09\x80mask"),
        ("long ping", b"\x89\xfe\x00\x7emask" + b"x" * 126),
        ("continuation of nothing", b"\x80\x80mask"),
        ("a message within a message", b"\x01\x80mask\x81\x80mask"),
        ("length that is not minimal", b"\x81\xfe\x00\x05mask12345"),
        ("long length that is not minimal", b"\x81\xff" + struct.pack("!Q", 5) + b"mask12345"),
        ("negative length", b"\x81\xff" + b"\xff" * 8 + b"mask"),
        ("close with one byte", masked_frame(CLOSE, b"\x03")),
        ("close code 999", masked_frame(CLOSE, struct.pack("!H", 999))),
        ("close code 1004", masked_frame(CLOSE, struct.pack("!H", 1004))),
        ("close code 1005", masked_frame(CLOSE, struct.pack("!H", 1005))),
        ("close code 1006", masked_frame(CLOSE, struct.pack("!H", 1006))),
        ("close code 1015", masked_frame(CLOSE, struct.pack("!H", 1015))),
        ("close code 2999", masked_frame(CLOSE, struct.pack("!H", 2999))),
        ("close code 5000", masked_frame(CLOSE, struct.pack("!H", 5000))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_protocol_errors_close_1002(name: str, wire: bytes) -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.raw(wire)
    assert client.closed == (1002, "WebSocket protocol error")
    relay.wait(21)
    assert client.connection.is_lost
    assert "PROTOCOL_ERROR" in relay.log.reasons()


@pytest.mark.parametrize(
    "wire",
    [
        masked_frame(TEXT, b"\xff"),
        masked_frame(TEXT, b"\xc3"),  # ends within a character
        masked_frame(TEXT, b"\xed\xa0\x80"),  # a surrogate
        masked_frame(BINARY, b"\xc0\x80"),
        masked_frame(TEXT, b"\xc3", fin=False) + masked_frame(0, b"x"),
        masked_frame(CLOSE, b"\x03\xe8\xff"),
    ],
    ids=["text", "within a character", "surrogate", "binary", "fragments", "close reason"],
)
def test_invalid_utf8_closes_1007(wire: bytes) -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.raw(wire)
    assert client.closed == (1007, "text is not UTF-8")
    assert client.connection.is_lost


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 3000, 4008, 4999, None])
def test_a_close_is_answered_with_its_own_code(code: int | None) -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.answers_close = False
    client.raw(masked_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + b"why"))
    assert client.closed == (code, "" if code is None else "why")
    assert client.connection.is_lost
    assert not client.transport.aborted
    assert [event["event"] for event in relay.log.events] == ["join", "leave"]


# -- closing ------------------------------------------------------------------------------------------------------------------


def test_after_its_close_the_relay_reads_and_ignores_for_ten_seconds() -> None:
    relay = MemoryRelay()
    daemon, client = relay.daemon(), relay.client()
    client.answers_close = False
    client.say(encoded("subscribe"))
    assert client.closed == (4008, "session-events scope required")
    client.say(encoded("init v3"), encoded("init v3"))
    relay.wait(9.9)
    client.say(encoded("init v3"))
    assert client.transport.unread == 0
    assert daemon.heard() == []
    assert not client.connection.is_lost
    relay.wait(0.2)
    assert client.connection.is_lost
    assert not client.transport.aborted  # everything was sent: FIN, no RST
    assert client.after_close == []


def test_a_peer_that_reads_nothing_is_dropped_after_ten_seconds() -> None:
    relay = MemoryRelay()
    client = relay.client()
    client.stop_reading()
    client.say(encoded("subscribe"))
    relay.wait(9.9)
    assert not client.connection.is_lost
    relay.wait(10.2)
    assert client.connection.is_lost
    assert not relay.factory.connections


def test_a_refused_daemon_is_ignored_at_once_and_closed_after_a_second() -> None:
    relay = MemoryRelay()
    daemon, client = with_session(relay)
    relay.daemon(generation=5, target="u")
    stale = relay.daemon(generation=4, target="u")
    equal = relay.daemon()
    equal.say(encoded("e2ee"))
    assert client.heard() == []
    relay.wait(0.9)
    assert (stale.closed, equal.closed) == (None, None)
    relay.wait(0.3)
    assert stale.closed == (4008, "stale daemon generation")
    assert equal.closed == (4008, "daemon already connected")
    assert client.heard() == []
    assert daemon.is_open


def test_a_newer_daemon_gets_the_seat_at_once_and_the_old_one_is_closed_after_a_second() -> None:
    relay = MemoryRelay()
    old, client = relay.daemon(generation=1), relay.client()
    new = relay.daemon(generation=2)
    client.say(encoded("init v3"))
    assert (len(old.heard()), len(new.heard())) == (0, 1)
    old.say(encoded("response v3"))
    assert client.heard() == []
    assert old.closed is None
    relay.wait(1.05)
    assert old.closed == (4008, "replaced by newer daemon")
    new.say(encoded("response v3"))
    assert len(client.heard()) == 1


def test_a_half_open_daemon_loses_its_seat_to_an_equal_one() -> None:
    relay = MemoryRelay(RELAY_PONG_TIMEOUT_MS="400", RELAY_PING_INTERVAL_MS="60000")
    old, client = relay.daemon(), relay.client()
    old.answers_pings = False
    new = relay.daemon()
    new.say(encoded("e2ee"))
    relay.wait(0.35)
    client.say(encoded("init v3"))
    assert (len(old.heard()), len(new.heard())) == (1, 0)
    assert old.pings != []
    relay.wait(0.1)
    assert old.connection.is_lost
    client.say(encoded("init v3"))
    assert len(new.heard()) == 1
    assert relay.counters.ws_stale_terminated == 1
    relay.wait(2)
    assert new.is_open


def test_a_daemon_that_sends_anything_keeps_its_seat() -> None:
    relay = MemoryRelay(RELAY_PONG_TIMEOUT_MS="400", RELAY_PING_INTERVAL_MS="60000")
    old = relay.daemon()
    old.answers_pings = False
    new = relay.daemon()
    relay.wait(0.3)
    old.say(b"not even a frame")
    relay.wait(1.2)
    assert old.is_open
    assert new.closed == (4008, "daemon already connected")


def test_a_challenger_gets_the_seat_when_the_holder_leaves() -> None:
    relay = MemoryRelay()
    old, client = relay.daemon(), relay.client()
    old.answers_pings = False
    new = relay.daemon()
    old.vanish()
    client.say(encoded("init v3"))
    assert len(new.heard()) == 1
    relay.wait(2)
    assert new.is_open


def test_a_challenger_whose_generation_became_stale_is_closed() -> None:
    relay = MemoryRelay(RELAY_PONG_TIMEOUT_MS="400")
    holder = relay.daemon(generation=1)
    for generation in (2, 3, 4):
        holder = relay.daemon(generation=generation)
    holder.answers_pings = False
    equal = relay.daemon(generation=4)
    higher = relay.daemon(
        generation=5
    )  # too many replacements within a minute: the higher generation waits, too
    relay.wait(0.5)
    assert holder.connection.is_lost
    relay.wait(1.5)
    assert higher.is_open
    assert equal.closed is not None
    client = relay.client()
    client.say(encoded("init v3"))
    assert len(higher.heard()) == 1


def test_many_challengers_get_one_seat() -> None:
    relay = MemoryRelay(RELAY_PONG_TIMEOUT_MS="400")
    old = relay.daemon()
    old.answers_pings = False
    waiting = [relay.daemon() for _ in range(5)]
    relay.wait(3)
    assert [peer.is_open for peer in waiting] == [True, False, False, False, False]
    assert {peer.closed for peer in waiting[1:]} == {(4008, "daemon already connected")}


# -- timers ---------------------------------------------------------------------------------------------------------------------


CLOCKS = {"RELAY_PING_INTERVAL_MS": "1000", "RELAY_PONG_TIMEOUT_MS": "2500", "RELAY_IDLE_TIMEOUT_MS": "60000"}


def started(**environ: str) -> MemoryRelay:
    relay = MemoryRelay(**{**CLOCKS, **environ})
    relay.heartbeat.start()
    return relay


def test_pings_are_sent_at_their_interval_and_answered() -> None:
    relay = started()
    client = relay.client()
    relay.wait(10.5)
    assert 9 <= len(client.pings) <= 10
    assert client.is_open


def test_the_pong_timeout_runs_from_the_first_unanswered_ping() -> None:
    relay = started()
    client = relay.client()
    client.answers_pings = False
    relay.wait(3.3)  # pings after 1, 2 and 3 s
    assert len(client.pings) == 3
    assert client.is_open
    relay.wait(0.6)
    assert client.connection.is_lost
    assert client.closed is None  # aborted, without a closing handshake
    assert relay.counters.ws_stale_terminated == 1
    assert "PONG_TIMEOUT" in relay.log.reasons()


def test_anything_received_counts_as_an_answer() -> None:
    relay = started()
    client = relay.client()
    client.answers_pings = False
    for _ in range(20):
        relay.wait(0.7)
        client.raw(masked_frame(PONG, b"unsolicited"))
    assert client.is_open


def test_an_idle_peer_is_dropped() -> None:
    relay = started(RELAY_PING_INTERVAL_MS="3600000", RELAY_IDLE_TIMEOUT_MS="3000")
    client, busy = relay.client(), relay.client()
    for _ in range(4):
        relay.wait(1.0)
        busy.raw(masked_frame(PONG, b""))
    assert client.connection.is_lost
    assert busy.is_open
    assert (relay.counters.ws_idle_terminated, relay.counters.ws_stale_terminated) == (1, 0)
    assert "IDLE_TIMEOUT" in relay.log.reasons()


def test_no_time_out_for_a_client_whose_reading_is_paused() -> None:
    relay = started(RELAY_IDLE_TIMEOUT_MS="5000")
    daemon, client = relay.daemon(), relay.client()
    daemon.stop_reading()
    client.answers_pings = False
    while not client.connection.reader.paused:
        client.say(encoded("e2ee", ciphertext="c" * 20_000))
    for _ in range(20):
        relay.wait(1.0)
        daemon.raw(masked_frame(PONG, b""))  # the daemon answers, but reads slowly
    assert client.is_open
    assert client.connection.reader.paused
    daemon.read_on()
    assert not client.connection.reader.paused
    relay.wait(2.0)
    assert client.is_open
    relay.wait(2.5)
    assert client.connection.is_lost  # reading has resumed, and the client is silent


def test_a_stalled_daemon_is_dropped_and_its_clients_reading_resumes() -> None:
    relay = started()
    daemon, client = relay.daemon(), relay.client()
    daemon.stop_reading()
    while not client.connection.reader.paused:
        client.say(encoded("e2ee", ciphertext="c" * 20_000))
    relay.wait(5)
    assert daemon.connection.is_lost
    assert client.is_open
    assert not client.connection.reader.paused
    client.say(encoded("e2ee"))
    assert b"DAEMON_UNAVAILABLE" in client.heard()[-1]


# -- queues -----------------------------------------------------------------------------------------------------------------------


def test_a_client_that_stops_reading_gets_what_was_queued_and_then_the_close() -> None:
    relay = MemoryRelay(RELAY_MAX_PENDING_BYTES=str(300_000))
    daemon, client = with_session(relay)
    other = relay.client()
    other.say(encoded("init v3", requestId="other"))
    daemon.say(encoded("response v3", requestId="other", sessionId="other"))
    other.heard()
    client.stop_reading()
    sent = []
    for seq in range(1, 100):
        if not client.is_open:
            break
        message = encoded("e2ee", seq=seq, ciphertext="c" * 10_000)
        daemon.say(message, encoded("e2ee", sessionId="other", seq=seq))
        sent.append(message)
        assert client.connection.outbox.pending <= 300_000 + 11_000
        assert len(other.heard()) == 1  # the slow client does not delay other connections
    assert relay.counters.ws_slow_client_terminated == 1  # counted when the close is decided
    assert client.closed is None
    assert len(sent) >= 29
    client.read_on()
    assert client.heard() == sent[: len(sent) - 1]
    assert client.closed == (4008, "buffer overflow")
    assert client.connection.is_lost
    assert daemon.is_open
    assert "BUFFER_OVERFLOW" in relay.log.reasons()


def test_one_frame_past_an_empty_queue_is_never_an_overflow() -> None:
    relay = MemoryRelay(RELAY_MAX_PENDING_BYTES="1024")
    daemon, client = with_session(relay)
    big = encoded("e2ee", ciphertext="c" * 900_000)
    for _ in range(3):
        daemon.say(big)
        assert client.heard() == [big]
    assert client.is_open


def test_a_flood_pauses_its_sender_only() -> None:
    relay = MemoryRelay()
    daemon, flood, quiet = relay.daemon(), relay.client(), relay.client()
    daemon.stop_reading()
    sent = [encoded("e2ee", seq=seq, ciphertext="f" * 5000) for seq in range(1, 2001)]
    flood.say(*sent)
    assert flood.connection.reader.paused
    assert flood.transport.unread > 8 * MIB  # the rest stays in the kernel's buffers
    assert daemon.connection.outbox.pending < 600_000
    quiet.say(encoded("e2ee", sessionId="quiet"))
    daemon.read_on(2 * MIB)
    early = daemon.heard()
    assert encoded("e2ee", sessionId="quiet") in early
    daemon.read_on()
    assert [m for m in early + daemon.heard() if b"quiet" not in m] == sent
    assert not flood.connection.reader.paused
    assert flood.is_open
    assert daemon.is_open


@pytest.mark.parametrize("end", ["replaced", "closes"])
def test_a_replaced_daemon_does_not_delay_its_clients(end: str) -> None:
    """A suspended machine reads nothing; its clients reach the next daemon at once."""
    relay = MemoryRelay()
    old, client = relay.daemon(generation=1), relay.client()
    old.stop_reading()
    seq = 0
    while not client.connection.reader.paused:
        seq += 1
        client.say(encoded("e2ee", seq=seq, ciphertext="f" * 20_000))
    if end == "closes":
        old.leave()
    new = relay.daemon(generation=2)
    client.say(encoded("e2ee", seq=seq + 1))
    assert new.heard() == [encoded("e2ee", seq=seq + 1)]
    assert not client.connection.reader.paused
    # The old daemon still gets its queued messages if it reads in time.
    old.read_on()
    assert [encoded("e2ee", seq=n, ciphertext="f" * 20_000) for n in range(1, seq + 1)] == old.heard()
    relay.wait(1.1)
    assert old.closed == ((1000, "") if end == "closes" else (4008, "replaced by newer daemon"))


def test_messages_of_a_client_that_left_arrive_in_order() -> None:
    relay = MemoryRelay()
    daemon, client = relay.daemon(), relay.client()
    daemon.stop_reading()
    sent = [encoded("e2ee", seq=seq, ciphertext="f" * 5000) for seq in range(1, 40)]
    client.answers_close = False
    client.raw(b"".join(masked_frame(TEXT, m) for m in sent) + masked_frame(CLOSE, b""))
    for _ in range(10):
        daemon.read_on(100_000)
    assert client.connection.is_lost
    daemon.read_on()
    assert daemon.heard() == sent


def test_the_queue_to_a_stalled_daemon_is_bounded_over_many_clients() -> None:
    relay = MemoryRelay(RELAY_MAX_PENDING_BYTES=str(MIB))
    daemon = relay.daemon()
    daemon.stop_reading()
    for _ in range(100):
        client = relay.client()
        client.say(*[encoded("e2ee", ciphertext="f" * 50_000)] * 4)
        client.vanish()
        assert daemon.connection.outbox.pending <= MIB + 600_000
    assert daemon.is_open


def test_a_session_events_client_that_does_not_read_its_answers_is_closed() -> None:
    relay = MemoryRelay(RELAY_MAX_PENDING_BYTES="100000")
    client = relay.client(Scope.SESSION_EVENTS)
    client.stop_reading()
    for _ in range(40):
        client.say(*[encoded("subscribe")] * 50)
    assert relay.counters.ws_slow_client_terminated == 1
    assert client.connection.outbox.pending < 250_000


def test_the_codec_has_the_attributes_that_autobahn_sets() -> None:
    """Each codec has them from its class, and only some of its own."""
    stock = WebSocketServerProtocol()
    stock.factory, stock.openHandshakeTimeout = WebSocketServerFactory(), 0
    before = set(vars(stock))
    WebSocketProtocol._connectionMade(stock)
    given = {name: value for name, value in vars(stock).items() if name not in before}
    for name in stock.CONFIG_ATTRS:
        given.pop(name, None)  # options: set by the factory
    events: Any = None
    ours = CodecFactory(Clock(), 1000).codec(events)
    given.pop("state")  # open from the beginning
    assert ours.state == WebSocketProtocol.STATE_OPEN
    assert {"utf8validator", "trafficStats", "closedByMe"} <= set(given)
    for name, value in given.items():
        if type(value).__eq__ is object.__eq__:
            assert type(getattr(ours, name)) is type(value), name
        else:
            assert getattr(ours, name) == value, name


@pytest.mark.parametrize("how", ["vanish", "close", "cut"])
@pytest.mark.parametrize("role", ["daemon", "client"])
def test_a_lost_connection_is_freed_at_once(role: str, how: str) -> None:
    """Freed by reference counting, without the garbage collector: memory still in the CPU's caches is reused."""
    relay = MemoryRelay()
    gc.collect()
    gc.disable()
    try:
        peer = relay.daemon() if role == "daemon" else relay.client()
        known = weakref.ref(peer.connection)
        if how == "vanish":
            peer.transport.vanish()
        elif how == "close":
            peer.raw(masked_frame(CLOSE, struct.pack("!H", 1000)))
        else:
            peer.connection.cut(Reason.PONG_TIMEOUT)
        relay.wait(1)
        assert peer.connection.is_lost
        peer.transport.protocol = peer.connection = None  # type: ignore[assignment]  # the test's own
        assert known() is None
    finally:
        gc.enable()
