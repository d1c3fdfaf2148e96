"""Lower limits of a frame's cost over Noise links and over TLS: only the calls that no relay can do without.

    python benchmarks/floors.py [--repetitions 9] [--results FILE]

*Noise*: the cipher calls of a frame that comes on one link and leaves on another, with buffers that are used again and stay in the
processor's caches. No sockets, no WebSocket, no JSON.

*TLS*: for what one turn brings to one of so many pairs, which take turns, one `recv`, one `BIO_write`, one `SSL_read` for each record that
the peer made, one `SSL_write`, one `BIO_read` and one `send`. *Plain* is the `recv` and `send` of the same frames without TLS. The
receiver's part of the kernel's work is in `send`, as in a relay on the loopback interface.

Microseconds of CPU for a frame: the median of the repetitions, lowest and highest. With `--results`, a file of `run.py` from the
same machine and time, a second table has what a link, or TLS, that cost nothing but these calls would come to, beside the goal.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from struct import Struct

from cells import LINK_FRAMES, SIZES, TLS_FRAMES
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from OpenSSL import SSL
from relays import BASE, BUILD, tls_settings

from viewport_relay.noise.records import RECORD_PLAINTEXT_MAX, TAG_BYTES
from viewport_relay.wire.arena import Arena
from viewport_relay.wire.tlsrecords import RECORD, RecordLayer, SharedMemory

#: Seconds of one repetition, about.
SECONDS = 0.3

#: Of the ciphertext of a cell of `cells`, the members of its frame around it; a client's header of the frame, and the server's.
ENVELOPE, MASKED_HEADER, HEADER = 128, 8, 4

_nonce = Struct("<4xQ").pack

#: What is done before the clock starts, and what is measured.
Work = tuple[Callable[[], None], Callable[[], None]]


def cipher(size: int) -> Work:
    """Open the records of one frame and seal them again, as `noise.records` does."""
    receiving, sending = (ChaCha20Poly1305(os.urandom(32)) for _ in range(2))
    cuts = [(at, min(at + RECORD_PLAINTEXT_MAX, size)) for at in range(0, size, RECORD_PLAINTEXT_MAX)]
    frame = os.urandom(size)
    records = [memoryview(bytearray(receiving.encrypt(_nonce(0), frame[a:b], None))) for a, b in cuts]
    opened, sealed = memoryview(bytearray(size)), memoryview(bytearray(size + TAG_BYTES * len(cuts)))
    pieces = [opened[a:b] for a, b in cuts]
    places = [sealed[a + TAG_BYTES * i : b + TAG_BYTES * (i + 1)] for i, (a, b) in enumerate(cuts)]

    def work() -> None:
        for record, piece in zip(records, pieces, strict=True):
            receiving.decrypt_into(_nonce(0), record, None, piece)
        for piece, place in zip(pieces, places, strict=True):
            sending.encrypt_into(_nonce(0), piece, None, place)

    return lambda: None, work


class Ends:
    """Two TCP connections over the loopback interface: of a sender and of a receiver to a relay."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sender = socket.create_connection(listener.getsockname())
            self.reading = listener.accept()[0]
            self.receiver = socket.create_connection(listener.getsockname())
            self.writing = listener.accept()[0]
        for each in (self.sender, self.reading, self.receiver, self.writing):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = memoryview(bytearray(1 << 20))  # what the receiver got, thrown away

    def bring(self, data: bytes) -> None:
        """Have all of it in the relay's socket."""
        self.sender.sendall(data)
        while self.reading.recv_into(self.left, len(data), socket.MSG_PEEK) < len(data):
            pass

    def take(self, size: int) -> None:
        """Empty the receiver's socket."""
        self.receiver.recv_into(self.left, size, socket.MSG_WAITALL)


def plain(size: int, frames: int, memory: SharedMemory) -> Work:
    """One `recv` and one `send` for what a turn brings."""
    size += ENVELOPE
    ends = Ends()
    brought, leaving = os.urandom((size + MASKED_HEADER) * frames), os.urandom((size + HEADER) * frames)
    first = True

    def before() -> None:
        nonlocal first
        if not first:
            ends.take(len(leaving))
        first = False
        ends.bring(brought)

    def work() -> None:
        assert ends.reading.recv_into(memory.arena) == len(brought)
        assert ends.writing.send(leaving) == len(leaving)

    return before, work


def _context() -> SSL.Context:
    files = tls_settings()
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_chain_file(files["RELAY_TLS_CERT_PATH"])
    context.use_privatekey_file(files["RELAY_TLS_KEY_PATH"])
    context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
    context.clear_mode(1)  # SSL_MODE_ENABLE_PARTIAL_WRITE, as the relay's own context
    return context


def _connected(context: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    """A TLS client and the relay's side, after their handshake."""
    peer, ours = SSL.Connection(context, None), SSL.Connection(context, None)
    peer.set_connect_state()
    ours.set_accept_state()
    done = set()
    while len(done) < 2:
        for one, other in ((peer, ours), (ours, peer)):
            try:
                one.do_handshake()
                done.add(one)
            except SSL.WantReadError:
                pass
            try:
                other.bio_write(one.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
    try:
        peer.read(1)  # the tickets
    except SSL.WantReadError:
        pass
    return peer, ours


def tls(size: int, frames: int, memory: SharedMemory) -> Work:
    """The relay's own calls of OpenSSL, between one `recv` and one `send`."""
    size += ENVELOPE
    ends, context = Ends(), _context()
    sender, reading = _connected(context)
    _, writing = _connected(context)
    opening, sealing = RecordLayer(reading, memory), RecordLayer(writing, memory)
    brought, leaving = os.urandom((size + MASKED_HEADER) * frames), os.urandom((size + HEADER) * frames)
    sent = got = 0

    def before() -> None:
        nonlocal sent
        if sent:
            ends.take(sent)
            if got != len(brought):
                raise SystemExit("what was opened is not what was sealed: the figures would mean nothing")
        sender.sendall(brought)  # in records of 16 KiB, as HAProxy makes them
        ends.bring(sender.bio_read(1 << 20))

    def work() -> None:
        nonlocal sent, got
        opening.put_read(ends.reading.recv_into(memory.space))
        got = 0
        while got < len(brought):
            got += opening.open_into(memory.arena[got:] if got else memory.arena)
        records = sealing.seal(leaving)
        assert records is not None
        sent = ends.writing.send(records)

    return before, work


def measured(works: Sequence[Work], frames: int, repetitions: int) -> list[float]:
    """Microseconds of CPU for a frame, of each repetition; the works take turns."""
    turn = cycle(works)
    found = []
    for repetition in range(repetitions + 1):
        used, turns, until = 0, 0, time.monotonic() + SECONDS
        while time.monotonic() < until:
            before, timed = next(turn)
            before()
            began = time.thread_time_ns()
            timed()
            used += time.thread_time_ns() - began
            turns += 1
        if repetition:  # the first one warms up
            found.append(used / turns / frames / 1000)
    return found


def rows() -> Iterator[tuple[str, list[Work], int]]:
    """What is measured: label, works, and how many frames each is for."""
    for label, size, _ in LINK_FRAMES:
        yield f"Noise, {label}", [cipher(size)], 1
    memory = SharedMemory(Arena())
    for pairs, label, window, _ in TLS_FRAMES:
        if SIZES[label] * window <= RECORD * 4:  # more comes in several reads
            for name, kind in (("plain", plain), ("TLS", tls)):
                works = [kind(SIZES[label], window, memory) for _ in range(pairs)]
                yield f"{name}, {pairs_named(pairs)}, {label}, {window} in flight", works, window


def pairs_named(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"


def against(results: Path, floors: dict[str, float]) -> list[tuple[str, float, float, float]]:
    """For each cell that the results have: name, what was measured, the floor, the goal; as multiples of the cell's base."""
    costs = {
        (line["cell"], line["relay"]): line["cpu_s_per_100k"]["median"] * 10  # microseconds for a frame
        for line in json.loads(results.read_text())["summary"]
        if "cpu_s_per_100k" in line
    }
    found = []
    for label, _, goal in LINK_FRAMES:
        for window in (1, 16):
            name = f"links, {label}, {window} in flight"
            base = costs.get((f"{name}, without links", "relay"))
            if base:
                linked = costs[f"{name}, over two links", "relay"]
                found.append((name, linked / base, 1 + floors[f"Noise, {label}"] / base, goal))
    for pairs, label, window, goal in TLS_FRAMES:
        name = f"{pairs_named(pairs)}, {label}, {window} in flight"
        base, frame = costs.get((f"tls, {name}", BASE)), costs.get((f"frames, {name}", "relay"))
        if base and frame and f"TLS, {name}" in floors:
            least = frame + floors[f"TLS, {name}"] - floors[f"plain, {name}"]
            found.append((f"tls, {name}", costs[f"tls, {name}", "relay"] / base, least / base, goal))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--results", type=Path, help="a file of run.py with cells `links`, or `tls` and `frames`"
    )
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    floors = {}
    print("| calls | µs a frame | range |\n| --- | --- | --- |")
    for label, works, frames in rows():
        found = measured(works, frames, options.repetitions)
        floors[label] = statistics.median(found)
        print(f"| {label} | {floors[label]:.2f} | {min(found):.2f}-{max(found):.2f} |", flush=True)
    if options.results:
        print("\n| cell | measured | floor | goal |\n| --- | --- | --- | --- |")
        for name, measure, floor, goal in against(options.results, floors):
            print(f"| {name} | {measure:.2f} | {floor:.2f} | {goal} |")


if __name__ == "__main__":
    main()
