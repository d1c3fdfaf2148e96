"""Outbox of a Noise link: nonces follow the order in which records are sent, with held and queued messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memorywire import BINARY, CLOSE, PING, TEXT, FrameReader
from tests.unit.wire.test_outbox import Feeder
from tests.unit.wire.test_turn import Line, begin, end
from viewport_relay.protocol.framing import RECORD_HEADERS, RECORD_TAG, USUAL, frame_header
from viewport_relay.protocol.json import Message
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.linkoutbox import LinkOutbox
from viewport_relay.wire.turn import MOST_HELD

FEEDERS = ("", "a", "b")


class Numbering:
    """A cipher that appends the nonce as 16 digits in place of the tag."""

    def __init__(self, most: int = 1 << 60) -> None:
        self.count = 0
        self.most = most

    def _record(self, plaintext: Message) -> bytes:
        if self.count == self.most:
            raise Refusal(Reason.NOISE_NONCE_EXHAUSTED, "no nonce is left")
        self.count += 1
        return bytes(plaintext) + b"%016d" % self.count

    def encrypt_records(
        self, plaintexts: Sequence[Message], headers: Sequence[bytes], parts: list[bytes]
    ) -> None:
        for plaintext in plaintexts:
            record = self._record(plaintext)
            parts += headers[len(plaintext)], record

    def message_size(self, length: int, /) -> int:
        return 2 + length + RECORD_TAG

    def encrypt_into(self, plaintext: Message, out: memoryview) -> None:
        record = self._record(plaintext)
        out[:] = (len(record) % 65_536).to_bytes(2, "big") + record

    def decrypt_record(self, record: memoryview) -> bytes:
        raise AssertionError("an outbox decrypts nothing")

    def decrypt_into(self, message: memoryview, out: memoryview) -> int:
        raise AssertionError("an outbox decrypts nothing")


class LinkLine(Line):
    """A link's outbox on a real socket, whose peer reads on request."""

    def __init__(self, cipher: Numbering | None = None) -> None:
        super().__init__()
        self.transport.unregisterProducer()  # of the plain outbox
        self.outbox = LinkOutbox(self.turn, self.transport, lambda pending: True)
        self.refused: list[Refusal] = []
        self.frames = FrameReader()
        self.cipher = cipher or Numbering()
        self.outbox.link_up(self.cipher, self.refused.append)

    def heard(self) -> list[Any]:
        """Items received since the last call: (nonce, message) of records, opcodes of other frames."""
        found: list[Any] = []
        self.transport.window = 1 << 60
        while True:
            data = self.got()
            if not data:
                break
            found += self._read(data)
        while self.transport.turn():
            kept, self.kept[:] = bytes(self.kept), b""
            found += self._read(kept)
        self.transport.window = 0
        return found

    def _read(self, data: bytes) -> Iterator[Any]:
        for opcode, payload, fin in self.frames.feed(data):
            assert fin
            if opcode == BINARY:
                yield int(payload[-RECORD_TAG:]), payload[2:-RECORD_TAG]
            else:
                yield opcode


@pytest.fixture
def line() -> Iterator[LinkLine]:
    line = LinkLine()
    yield line
    end(line.turn)
    line.close()


def test_headers_of_usual_lengths_are_precomputed() -> None:
    for length in (0, 1, 107, 108, 1024, USUAL):
        sealed = length + RECORD_TAG
        assert RECORD_HEADERS[length] == frame_header(BINARY, sealed + 2) + sealed.to_bytes(2, "big")


def test_before_the_link_is_up_a_message_is_text() -> None:
    line = Line()
    line.transport.unregisterProducer()
    outbox = LinkOutbox(line.turn, line.transport, lambda pending: True)
    assert not outbox.sealed and outbox.send(b"plain")
    assert FrameReader().feed(line.got()) == [(TEXT, b"plain", True)]
    line.close()


def test_messages_of_one_read_are_sent_in_one_write(line: LinkLine) -> None:
    assert line.outbox.sealed and line.outbox.ready is None
    messages = [b"%d" % number * number for number in (1, 5, 1000, 1500, 5000)]
    assert line.outbox.send_all(messages, sum(map(len, messages)))
    assert line.sock.sends == 1
    assert line.heard() == list(enumerate(messages, 1))


def test_messages_of_a_turn_are_held_and_sent_together(line: LinkLine) -> None:
    begin(line.turn, hold=True)
    line.outbox.send(b"one")
    line.outbox.send_all([b"two", bytearray(b"three")], 8, Feeder("a"))
    assert line.sock.sends == 0 and line.cipher.count == 0 and not line.outbox.idle
    end(line.turn)
    assert line.sock.sends == 1 and line.heard() == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert line.outbox.idle


def test_later_messages_follow_held_ones(line: LinkLine) -> None:
    begin(line.turn, hold=True)
    line.outbox.send(b"one")
    line.outbox.ping()
    line.outbox.send(b"two")
    line.outbox.send_all([b"x" * 40_000], 40_000)  # long messages of one feeder are not held
    line.outbox.send(b"last")
    line.outbox.send_close(b"", ends=False)
    end(line.turn)
    assert line.heard() == [(1, b"one"), PING, (2, b"two"), (3, b"x" * 40_000), (4, b"last"), CLOSE]


def test_held_bytes_are_bounded(line: LinkLine) -> None:
    begin(line.turn, hold=True)
    for _ in range(MOST_HELD // 1000 + 1):
        line.outbox.send(b"x" * 1000)
    assert line.sock.sends == 1


def test_a_lost_connection_drops_what_is_held(line: LinkLine) -> None:
    begin(line.turn, hold=True)
    line.outbox.send(b"one")
    line.outbox.stopProducing()
    end(line.turn)
    assert line.heard() == [] and not line.outbox.send(b"two") and line.cipher.count == 0


def test_queued_messages_get_their_nonce_when_sent(line: LinkLine) -> None:
    line.outbox.feed_fairly()
    one, two = Feeder("a"), Feeder("b")
    big = b"b" * 3_000_000
    assert line.outbox.send(big) and line.outbox.blocked
    assert line.outbox.send_all([b"1", b"2"], 2, one) and line.outbox.send(b"3", two)
    assert line.cipher.count == 1 and one.paused and two.paused
    assert line.heard() == [(1, big), (2, b"1"), (3, b"3"), (4, b"2")]  # round-robin over the lanes
    assert not one.paused and not two.paused


@pytest.mark.parametrize("waits", [False, True])
def test_records_sealed_before_the_last_nonce_are_sent(waits: bool) -> None:
    line = LinkLine(Numbering(most=2))
    big = b"b" * (3_000_000 if waits else 10)
    line.outbox.send(big)
    line.outbox.send_all([b"second", b"third", b"fourth"], 17)
    assert line.heard() == [(1, big), (2, b"second")]
    assert {refusal.reason for refusal in line.refused} == {Reason.NOISE_NONCE_EXHAUSTED}
    line.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(FEEDERS), st.sampled_from([1, 900, USUAL + 1, 40_000, 300_000])),
        st.tuples(st.just("batch"), st.sampled_from(FEEDERS), st.integers(1, 5)),
        st.tuples(st.sampled_from(["ping", "begin", "end", "take"]), st.just(""), st.just(0)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_nonces_follow_the_order_of_sending(steps: list[tuple[str, str, int]], fair: bool) -> None:
    line = LinkLine()
    if fair:
        line.outbox.feed_fairly()
    feeders = {name: Feeder(name) if name else None for name in FEEDERS}
    sent: dict[str, list[bytes]] = {name: [] for name in FEEDERS}
    heard: list[Any] = []
    for what, name, size in steps:
        if what == "send":
            message = b"%s:%d:" % (name.encode(), len(sent[name])) + b"." * size
            sent[name].append(message)
            assert line.outbox.send(message, feeders[name])
        elif what == "batch":
            batch = [b"%s:%d:" % (name.encode(), len(sent[name]) + number) for number in range(size)]
            sent[name] += batch
            assert line.outbox.send_all(batch, sum(map(len, batch)), feeders[name])
        elif what == "ping":
            line.outbox.ping()
        elif what == "begin":
            begin(line.turn, hold=True)
        elif what == "end":
            end(line.turn)
        else:
            heard += line.heard()
    end(line.turn)
    heard += line.heard()
    records = [found for found in heard if isinstance(found, tuple)]
    assert [count for count, _ in records] == list(range(1, len(records) + 1))
    for name in FEEDERS:
        assert [message for _, message in records if message.partition(b":")[0] == name.encode()] == sent[
            name
        ]
    assert line.outbox.queued == 0 and not any(feeder.paused for feeder in feeders.values() if feeder)
    line.close()
