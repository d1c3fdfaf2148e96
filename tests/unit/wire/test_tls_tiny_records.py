"""A flood of tiny TLS records: a peer that sends it is read in small pieces, so that no event lasts for long."""

from __future__ import annotations

import pytest

from tests.drill.certificates import Identity
from tests.tlsbench import Secured
from viewport_relay.wire.tls import ServerContext


class Stream(list[bytes]):
    """What a socket holds: a read takes as much as fits into the memory that it is read into. `reads` are their sizes."""

    def __init__(self, secured: Secured, data: bytes) -> None:
        super().__init__([b"there is more"])
        self._secured = secured
        self._data = data
        self.reads: list[int] = []

    def pop(self, _: object = 0) -> bytes:
        sink = self._secured.wire.sink
        assert sink is not None
        size = len(sink.space)
        taken, self._data = self._data[:size], self._data[size:]
        self.reads.append(len(taken))
        if not self._data:
            self.clear()
        return taken


@pytest.fixture
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    files = Identity.self_signed("localhost").write(tmp_path_factory.mktemp("tls"), "relay")
    return Secured(ServerContext(files.cert, files.key))


def event(secured: Secured, stream: Stream) -> None:
    """The socket is readable: one read, and what is read on."""
    secured.wire.waiting = stream
    secured.read(stream.pop())


def test_a_long_frame_in_tiny_records_is_no_long_event(secured: Secured) -> None:
    """All that the socket held was read for the rest of the frame: half a second for 4 MB."""
    frame = bytes(range(240)) * 150
    stream = Stream(secured, secured.say(*(frame[at : at + 1] for at in range(len(frame)))))
    secured.collector.wants = len(frame)
    events = 0
    while stream:
        before = len(stream.reads)
        event(secured, stream)
        events += 1
        assert sum(stream.reads[before:]) <= (90_000 if events == 1 else 8192)
    assert b"".join(secured.collector.got) == frame


def test_frames_of_the_usual_size_are_read_together(secured: Secured) -> None:
    stream = Stream(secured, secured.say(*(b"x" * 60 for _ in range(3000))))
    while stream:
        event(secured, stream)
    assert len(stream.reads) <= 4
    assert b"".join(secured.collector.got) == b"x" * 180_000
