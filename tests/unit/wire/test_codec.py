"""Autobahn as a codec: events of the closing handshake."""

from __future__ import annotations

from twisted.internet.task import Clock

from tests.memorywire import masked_frame as frame
from viewport_relay.protocol.framing import BINARY, CLOSE
from viewport_relay.reasons import Reason
from viewport_relay.wire.codec import Codec, CodecFactory


class Told:
    """Records the codec's events. Sends a Close frame after a violation, as a connection does."""

    codec: Codec

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def message_received(self, payload: bytes, is_binary: bool) -> None:
        self.events.append(("message", payload, is_binary))

    def ping_received(self, payload: bytes) -> None:
        self.events.append(("ping", payload))

    def close_received(self, code: int | None, answer: bytes) -> None:
        self.events.append(("close", code, answer))

    def close_answered(self) -> None:
        self.events.append(("answered",))

    def violated(self, reason: Reason, detail: str) -> None:
        self.events.append(("violated", reason))
        self.codec.closing()


def codec() -> tuple[Codec, Told]:
    told = Told()
    told.codec = CodecFactory(Clock(), 1000).codec(told)
    return told.codec, told


def test_a_close_of_the_peer_is_one_event() -> None:
    """Autobahn calls `dropConnection` after its own answer, too; that is no answer to the relay's Close."""
    made, told = codec()
    made.feed(frame(CLOSE, b"\x03\xe8bye"))
    assert told.events == [("close", 1000, b"\x03\xe8bye")]


def test_the_answer_to_the_relays_close_is_one_event() -> None:
    made, told = codec()
    made.closing()
    made.feed(frame(CLOSE, b"\x03\xe8") + frame(CLOSE, b"\x03\xe8"))
    assert told.events == [("answered",)]


def test_after_a_violation_the_peers_close_is_the_answer() -> None:
    made, told = codec()
    made.feed(frame(BINARY, b"x", fin=False) + frame(BINARY, b"x"))
    assert told.events == [("violated", Reason.PROTOCOL_ERROR)]
    made.feed(frame(CLOSE, b"\x03\xe8"))
    assert told.events[1:] == [("answered",)]
