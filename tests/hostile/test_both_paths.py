"""Raw bytes into a connection, the fast path beside plain Autobahn: never an exception, always the same outcome.

A generated stream of right and wrong frames is cut at generated places and fed through a real socket pair into the
relay's connection, once with each path, and once more through the way that TLS takes. What comes back must be equal,
frame by frame, up to the close code. What is known of a stream without mistakes is held against it too.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import tcp
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.conformance.echo import EchoService
from tests.memorywire import FrameReader, Poll, masked_frame
from viewport_relay.wire.arena import ARENA_SIZE
from viewport_relay.wire.connection import ConnectionInfo
from viewport_relay.wire.transport import DirectTransport

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0
LIMIT = 150_000

#: How many streams are tried; `make fuzz` sets more.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))


class _Reactor(Poll, Clock):
    """What a TCP transport asks of a reactor."""

    def __init__(self) -> None:
        Poll.__init__(self)
        Clock.__init__(self)

    def watch_hang_up(self, transport: object) -> None:
        """Not played here."""

    unwatch_hang_up = watch_hang_up


class _Transport(tcp.Connection):
    """A transport that the connection cannot read directly, as TLS is."""

    def getPeer(self) -> str:  # type: ignore[override]
        return "a peer"

    getHost = getPeer  # type: ignore[assignment]

    def connectionLost(self, reason: Failure) -> None:
        protocol = self.protocol
        super().connectionLost(reason)
        assert protocol is not None
        protocol.connectionLost(reason)


class _Direct(DirectTransport, _Transport):  # type: ignore[misc]
    """A transport that it can."""


class Wire:
    """One upgraded connection on a socket pair, turned by hand."""

    def __init__(self, fast: bool, by_feed: bool = False) -> None:
        self.reactor = _Reactor()
        self.service = EchoService(
            self.reactor,
            RELAY_FAST_PATH="1" if fast else "0",
            RELAY_FRAME_MAX_BYTES=str(LIMIT),
            RELAY_LISTEN_HOST="127.0.0.1",
        )
        self.ours, theirs = socket.socketpair()
        for sock in (self.ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        kind = _Transport if by_feed else _Direct
        nothing: Any = None
        self.transport: Any = kind(theirs, nothing, self.reactor)  # type: ignore[arg-type]
        self.transport.connected = 1
        self.connection = self.service.factory.open(self.transport, b"", ConnectionInfo("c", "127.0.0.1"))
        self.service.opened(self.connection, nothing, nothing)
        self.connection.start(b"")
        self._frames = FrameReader()
        self.heard: list[tuple[int, bytes]] = []
        self.ended = False

    def send(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[self.ours.send(piece) :]
            except BlockingIOError:
                pass
            except OSError:
                return
            self.turn()

    def turn(self) -> None:
        """Until nothing moves any more."""
        while True:
            moved = False
            if self.transport in self.reactor.reading and self._readable():
                self._lost(self.transport.doRead())
                moved = True
            if self.transport in self.reactor.writing:
                self._lost(self.transport.doWrite())
                moved = True
            self.reactor.advance(0)
            try:
                data = self.ours.recv(1 << 20)
            except OSError:
                data = b""
            for opcode, payload, fin in self._frames.feed(data):
                assert fin
                self.heard.append((opcode, payload))
            if not moved and not data:
                return

    def _readable(self) -> bool:
        try:
            self.transport.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _lost(self, why: Any) -> None:
        if why is not None and not self.ended:
            self.ended = True
            self.transport.connectionLost(Failure(why))

    def finish(self) -> list[tuple[int, bytes]]:
        """Time passes, then the peer hangs up; nothing is left behind."""
        self.reactor.advance(11)
        self.turn()
        self.reactor.advance(11)
        self.ours.close()
        self._lost(self.transport.doRead() if not self.transport.disconnected else None)
        if not self.transport.disconnected:
            self.transport.connectionLost(Failure(ConnectionError("over")))
        self.reactor.advance(60)
        assert self.connection.is_lost and not self.service.factory.connections
        assert self.reactor.getDelayedCalls() == []
        # Pongs may wait while the transport is full, and then the newest stands for all: when that is differs.
        return [
            (opcode, payload[:2] if opcode == CLOSE else payload)  # Autobahn words its reasons as it likes
            for opcode, payload in self.heard
            if opcode != PONG
        ]


def outcome(pieces: list[bytes], fast: bool, by_feed: bool = False) -> list[tuple[int, bytes]]:
    wire = Wire(fast, by_feed)
    for piece in pieces:
        wire.send(piece)
    return wire.finish()


# -- streams -------------------------------------------------------------------------------------------------------

sizes = st.one_of(
    st.integers(0, 140),
    st.sampled_from(
        [125, 126, 127, 1023, 1024, 1025, 4096, 65_535, 65_536, 65_537, 70_000, LIMIT - 1, LIMIT]
    ),
)
texts = st.one_of(
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    sizes.map(lambda size: b"x" * size),
    sizes.map(lambda size: ("é" * (size // 2)).encode()),
    st.binary(max_size=60),
    st.builds(lambda size, at: b"a" * at + b"\xff" + b"b" * size, st.integers(0, 3000), st.integers(0, 3000)),
)
masks = st.one_of(st.just(b"\0\0\0\0"), st.binary(min_size=4, max_size=4))


def _close(code: int, reason: bytes) -> bytes:
    return masked_frame(CLOSE, struct.pack("!H", code) + reason)


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    parts = draw(
        st.lists(
            st.one_of(st.binary(max_size=40), st.just(b"ab" * 3000), st.just(b"")), min_size=2, max_size=6
        )
    )
    between = draw(
        st.sampled_from([b"", masked_frame(PING, b"p"), masked_frame(PONG, b""), masked_frame(TEXT, b"no")])
    )
    last = len(parts) - 1
    return b"".join(
        masked_frame(draw(st.sampled_from([TEXT, BINARY])) if n == 0 else CONTINUATION, part, fin=n == last)
        + (between if n == 0 else b"")
        for n, part in enumerate(parts)
    )


good = st.one_of(
    st.builds(lambda text, mask: masked_frame(TEXT, text, mask=mask), texts, masks),
    st.builds(lambda text, mask: masked_frame(TEXT, text, mask=mask), texts, masks),
    st.builds(lambda data: masked_frame(BINARY, data), st.binary(max_size=300)),
    st.builds(lambda data: masked_frame(PING, data), st.binary(max_size=125)),
    st.builds(lambda data: masked_frame(PONG, data), st.binary(max_size=125)),
    fragmented(),
)
wrong = st.one_of(
    st.builds(_close, st.integers(0, 5100), st.binary(max_size=123)),
    st.sampled_from([masked_frame(CLOSE, b""), masked_frame(CLOSE, b"x"), masked_frame(CLOSE, b"y" * 126)]),
    st.builds(lambda opcode, data: masked_frame(opcode, data), st.integers(0, 15), st.binary(max_size=20)),
    st.builds(lambda bits, data: bytes([0x81 | bits]) + masked_frame(TEXT, data)[1:],
              st.sampled_from([0x40, 0x20, 0x10, 0x70]), st.binary(max_size=20)),
    st.builds(lambda data: b"\x81" + bytes([len(data)]) + data, st.binary(max_size=125)),  # not masked
    st.sampled_from([
        b"\x81\xfe\x00\x05" + b"\0\0\0\0hello",  # a length that is written too long
        b"\x81\xff" + (300).to_bytes(8, "big") + b"\0\0\0\0" + b"z" * 300,
        b"\x81\xff" + (1 << 63).to_bytes(8, "big") + b"\0\0\0\0",
        b"\x81\xff" + (LIMIT + 1).to_bytes(8, "big") + b"\0\0\0\0" + b"z" * 200,
        b"\x09\x80\0\0\0\0",  # a ping in fragments
        b"\x89\xfe\x01\x00" + b"\0\0\0\0" + b"p" * 256,  # a ping that is too long
    ]),
    st.binary(min_size=1, max_size=200),
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> list[bytes]:
    """The stream in pieces, cut anywhere; no frame is left incomplete by the cuts."""
    whole = b"".join(draw(st.lists(frames, min_size=1, max_size=12)))
    if len(whole) < 2 or draw(st.booleans()):
        return [whole]
    cuts = draw(st.lists(st.integers(1, len(whole) - 1), max_size=12, unique=True).map(sorted))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def told_late(frames: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Without a 1007 at the end: plain Autobahn sends it at the first wrong byte, the fast path when the frame is
    complete, so that a stream that stops in between has it on one path only."""
    return frames[:-1] if frames and frames[-1] == (CLOSE, b"\x03\xef") else frames


relaxed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@relaxed
@given(streams(good))
def test_frames_that_are_right(pieces: list[bytes]) -> None:
    plain = outcome(pieces, fast=False)
    assert outcome(pieces, fast=True) == plain
    assert outcome(pieces, fast=True, by_feed=True) == plain


@relaxed
@given(streams(st.one_of(good, good, good, wrong)))
def test_right_and_wrong_ones(pieces: list[bytes]) -> None:
    plain = told_late(outcome(pieces, fast=False))
    assert told_late(outcome(pieces, fast=True)) == plain
    assert told_late(outcome(pieces, fast=True, by_feed=True)) == plain


@relaxed
@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=6))
def test_noise(pieces: list[bytes]) -> None:
    plain = told_late(outcome(pieces, fast=False))
    assert told_late(outcome(pieces, fast=True)) == plain
    assert told_late(outcome(pieces, fast=True, by_feed=True)) == plain


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 1024, 65_535, 65_536, LIMIT])
def test_what_is_right_comes_back(size: int, fast: bool) -> None:
    text = b"\xc3\xa9" * (size // 2) + b"x" * (size % 2)
    stream = masked_frame(TEXT, text) + masked_frame(PING, b"between") + masked_frame(TEXT, b"last")
    expected = [(TEXT, text), (TEXT, b"last")]
    for step in (len(stream), 60_000, 1000):
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        assert outcome(pieces, fast) == expected
        assert outcome(pieces, fast, by_feed=True) == expected


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_one_byte_more_than_the_limit(fast: bool) -> None:
    header = masked_frame(TEXT, b"x" * (LIMIT + 1))[:14]
    assert outcome([header], fast) == [(CLOSE, struct.pack("!H", 1009))]
    half = b"x" * (LIMIT // 2)
    stream = masked_frame(TEXT, half, fin=False) + masked_frame(CONTINUATION, half + b"x")
    assert outcome([stream], fast) == [(CLOSE, struct.pack("!H", 1009))]


def test_a_short_frame_that_drips_is_told_at_its_first_wrong_byte() -> None:
    """Conformance cases 6.4.3 and 6.4.4."""
    data = masked_frame(TEXT, b"good" + b"\xff" + b"y" * 60)
    for fast in (True, False):
        wire = Wire(fast)
        for piece in (data[:9], data[9:13], data[13:30]):
            wire.send(piece)
        assert wire.heard and wire.heard[0][0] == CLOSE and wire.heard[0][1][:2] == b"\x03\xef"
        wire.finish()


def test_the_arena_holds_what_the_limit_of_these_tests_does_not() -> None:
    assert LIMIT > ARENA_SIZE // 4  # so that long frames are among them
