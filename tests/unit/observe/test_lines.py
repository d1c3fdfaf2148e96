"""The log on a pipe that is read late, or never: lines wait, then are counted, and logging never waits."""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from tests.logentries import entries_of
from viewport_relay.observe import lines
from viewport_relay.observe.lines import DescriptorStream, unblocked
from viewport_relay.observe.logs import EventLog


class Pipe:
    """A log on a pipe of 4 KiB, and the pipe's other end."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream: TextIO = os.fdopen(writer, "w")
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reader, False)
        self.log = EventLog(unblocked(self.stream), max_entries=10_000, now=lambda: 1_800_000_000.0)
        self.got = b""

    def read(self) -> None:
        try:
            self.got += os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return

    def read_all(self) -> list[dict[str, Any]]:
        """All entries, when what waits has been written in as many steps as it takes."""
        for _ in range(2000):
            self.read()
            self.log.sweep()
        return [json.loads(line) for line in self.got.decode("ascii").splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.stream.close()
    os.close(made.reader)


def test_a_pipe_that_is_read_late_gets_every_line_in_order(pipe: Pipe) -> None:
    for number in range(2000):
        pipe.log.event("x", message="m" * (number % 500), number=number)
    assert pipe.log.write_failures == 0
    assert [entry["details"]["number"] for entry in pipe.read_all()] == list(range(2000))


def test_lines_longer_than_the_pipe(pipe: Pipe) -> None:
    for number in range(5):
        pipe.log.event("x", number=number, **{f"long{part}": "y" * 2000 for part in range(6)})
    entries = pipe.read_all()
    assert [entry["details"]["number"] for entry in entries] == list(range(5))
    assert len(pipe.got) > 5 * 10_000


def test_lines_are_lost_only_when_a_mebibyte_waits(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_WAITING", 10_000)
    for number in range(200):
        pipe.log.event("x", number=number)
    lost = pipe.log.write_failures
    assert 0 < lost < 200
    assert len(entries_of(pipe.log)) == 200  # /logs has them
    assert len(pipe.read_all()) == 200 - lost
    pipe.log.event("after")
    *before, gap, last = pipe.read_all()
    assert [entry["details"]["number"] for entry in before] == list(range(200 - lost))
    assert (gap["event"], gap["details"]) == ("log_lines_lost", {"count": lost}) and last["event"] == "after"
    assert pipe.log.write_failures == lost


def test_a_pipe_that_is_closed_while_lines_wait(pipe: Pipe) -> None:
    for number in range(200):
        pipe.log.event("x", number=number)
    assert pipe.log.write_failures == 0
    os.close(pipe.reader)
    pipe.log.event("y")
    assert 150 < pipe.log.write_failures <= 201
    pipe.reader = os.open(os.devnull, os.O_RDONLY)


def test_at_the_end_the_log_waits_for_a_second_at_most(pipe: Pipe) -> None:
    for number in range(200):
        pipe.log.event("x", number=number)
    begun = time.monotonic()
    pipe.log.close()
    assert 0.9 < time.monotonic() - begun < 5
    assert len(pipe.read_all()) == 200
    begun = time.monotonic()
    pipe.log.close()
    assert time.monotonic() - begun < 0.5


def test_a_line_that_was_cut_by_a_full_disk_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    written = b""
    room = [4096, 1]

    def write(descriptor: int, data: bytes) -> int:
        nonlocal written
        if not room:
            raise OSError(28, "No space left on device")
        data = bytes(data[: room.pop(0)])
        written += data
        return len(data)

    with open(os.devnull, "w") as somewhere:
        stream = DescriptorStream(somewhere.fileno(), "ascii")
        monkeypatch.setattr("os.write", write)
        with pytest.raises(OSError, match="space"):
            stream.write("x" * 5000 + "\n")
        room += [100, 100]
        stream.write("next\n")
        stream.write("last\n")
    assert written == b"x" * 4097 + b"\nnext\nlast\n"


def test_a_stream_without_a_descriptor_stays_as_it_is() -> None:
    stream = io.StringIO()
    assert unblocked(stream) is stream
