"""TLS records: counted like OpenSSL for any chunks; a record layer opens and seals what OpenSSL seals and opens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.drill.certificates import Identity
from viewport_relay.wire.arena import Arena
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlsrecords import (
    PIECE,
    RECORD,
    SEALED,
    RecordCount,
    RecordLayer,
    SharedMemory,
    record_layer,
)

MEMORY = SharedMemory(Arena())
Pair = tuple[SSL.Connection, SSL.Connection]


def moved(source: SSL.Connection, target: SSL.Connection) -> bytes:
    """Move all pending ciphertext from one side to the other."""
    try:
        data = source.bio_read(1_000_000)
    except SSL.WantReadError:
        return b""
    target.bio_write(data)
    return data


def read(connection: SSL.Connection) -> bytes:
    """All plaintext that has arrived."""
    found = b""
    try:
        while True:
            found += connection.recv(100_000)
    except SSL.WantReadError:
        return found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> SSL.Context:
    files = Identity.self_signed("localhost").write(tmp_path_factory.mktemp("tls"), "relay")
    return ServerContext(files.cert, files.key).getContext()


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest, context: SSL.Context) -> Pair:
    return handshaken(context, request.param)


def handshaken(context: SSL.Context, version: int = SSL.TLS1_3_VERSION) -> Pair:
    """A server and its client after the handshake."""
    of_client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    of_client.set_max_proto_version(version)
    server, client = SSL.Connection(context, None), SSL.Connection(of_client, None)
    server.set_accept_state()
    client.set_connect_state()
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            try:
                one.do_handshake()
            except SSL.WantReadError:
                pass
            moved(one, other)
    assert read(client) == b""
    return server, client


def layer(connection: SSL.Connection) -> RecordLayer:
    return RecordLayer(connection, MEMORY)


def test_connections_of_the_installed_pyopenssl_have_a_record_layer(context: SSL.Context) -> None:
    assert isinstance(record_layer(SSL.Connection(context, None), MEMORY), RecordLayer)


def test_a_connection_with_other_private_names_has_no_record_layer() -> None:
    class Other:
        pass

    assert record_layer(Other(), MEMORY) is None  # type: ignore[arg-type]


# -- counting ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 700), max_size=8), st.lists(st.integers(0, 6000), max_size=12))
def test_records_are_counted_for_any_chunks(sizes: list[int], cuts: list[int]) -> None:
    stream, ends = b"", []
    for size in sizes:
        stream += b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size)
        ends.append(len(stream))
    stream += b"\x17\x03\x03"  # the beginning of another record
    count = RecordCount()
    for begin, end in pairwise([0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]):
        assert count.ended(memoryview(stream)[begin:end]) == sum(begin < at <= end for at in ends)


def test_records_of_openssl_are_counted(context: SSL.Context) -> None:
    server, client = handshaken(context)
    for size in (1, RECORD, RECORD + 1, 3 * RECORD):
        for at in range(0, size, RECORD):
            client.send(bytes(min(RECORD, size - at)))
        assert RecordCount().ended(moved(client, server)) == -(-size // RECORD)


# -- opening and sealing ----------------------------------------------------------------------------------------------


def opened(layer: RecordLayer, size: int) -> bytes:
    space = memoryview(bytearray(size + 10))
    have = 0
    while have < size:
        got = layer.open_into(space[have:])
        assert got
        have += got
    assert layer.open_into(space[have:]) == 0
    return bytes(space[:have])


@pytest.mark.parametrize("size", [1, 1000, RECORD, RECORD + 1, PIECE])
def test_sealed_data_is_opened(pair: Pair, size: int) -> None:
    server, client = pair
    data = os.urandom(size)
    sealed = layer(server).seal(memoryview(data))
    assert sealed is not None and size < len(sealed) < SEALED
    client.bio_write(sealed)
    assert read(client) == data
    for at in range(0, size, RECORD):
        client.send(data[at : at + RECORD])
    receiver = layer(server)
    receiver.put(client.bio_read(1_000_000))
    assert opened(receiver, size) == data


def test_a_record_is_opened_in_parts_if_the_space_is_small(pair: Pair) -> None:
    server, client = pair
    receiver = layer(server)
    client.send(b"abcdefgh")
    receiver.put(client.bio_read(100_000))
    space = memoryview(bytearray(5))
    assert (receiver.open_into(space), receiver.pending(), bytes(space)) == (5, 3, b"abcde")
    assert (receiver.open_into(space), receiver.pending(), bytes(space[:3])) == (3, 0, b"fgh")


def test_nothing_to_open_and_nothing_to_seal(pair: Pair) -> None:
    server, client = pair
    assert layer(server).open_into(memoryview(bytearray(100))) == 0
    assert not layer(server).seal(b"")
    client.send(b"x" * 100)
    data = client.bio_read(1000)
    receiver = layer(server)
    receiver.put(data[:50])
    assert receiver.open_into(memoryview(bytearray(100))) == 0
    receiver.put(data[50:])
    assert receiver.open_into(memoryview(bytearray(100))) == 100


@pytest.fixture
def broken(pair: Pair) -> Iterator[SSL.Connection]:
    """A server whose client has sent a damaged record."""
    server, client = pair
    client.send(b"x" * 100)
    data = bytearray(client.bio_read(1000))
    data[-1] ^= 1
    server.bio_write(bytes(data))
    yield server


def test_an_error_does_not_affect_other_connections(broken: SSL.Connection, context: SSL.Context) -> None:
    """OpenSSL has one error queue per thread: an error left there would end another connection at its next WantRead."""
    assert layer(broken).open_into(memoryview(bytearray(100))) == 0
    assert layer(broken).seal(b"more") is None
    other, _ = handshaken(context)
    with pytest.raises(SSL.WantReadError):
        other.recv(100)
    with pytest.raises(SSL.Error) as error:  # the damaged connection still reports its own error
        broken.recv(100)
    assert not isinstance(error.value, SSL.WantReadError)


def test_a_closed_connection_seals_nothing(pair: Pair, context: SSL.Context) -> None:
    server, _ = pair
    server.shutdown()
    assert layer(server).seal(b"x") is None
    other, _ = handshaken(context)
    with pytest.raises(SSL.WantReadError):
        other.recv(100)


def test_connections_share_the_buffer_of_sealed_records(context: SSL.Context) -> None:
    """A sealed record must be used before the next: the layers share one buffer."""
    (one, client), (two, peer) = handshaken(context), handshaken(context)
    first, second = RecordLayer(one, MEMORY), RecordLayer(two, MEMORY)
    for server, reader, text in ((first, client, b"one"), (second, peer, b"two"), (first, client, b"three")):
        sealed = server.seal(text)
        assert isinstance(sealed, memoryview) and sealed.obj is MEMORY.sealed.obj
        reader.bio_write(sealed)
        assert read(reader) == text


def test_a_context_with_partial_writes_is_refused(tmp_path: Path) -> None:
    """Partial writes would lose data; the relay's own context does not enable them."""
    files = Identity.self_signed("localhost").write(tmp_path, "relay")
    context = ServerContext(files.cert, files.key).getContext()
    context.set_mode(1)  # SSL_MODE_ENABLE_PARTIAL_WRITE
    server, _ = handshaken(context)
    with pytest.raises(AssertionError):
        layer(server).seal(bytes(PIECE))


# -- shared memory ------------------------------------------------------------------------------------------------

#: Shared memory and its views become garbage together, the views first.
COLLECTED = """
import gc
from viewport_relay.wire.arena import Arena
from viewport_relay.wire.tlsrecords import SharedMemory
for views_first in True, False:
    memory = SharedMemory(Arena())
    views = [memory.arena, memory.space, memory.sealed]
    cycle = [*views, memory] if views_first else [memory, *views]
    cycle.append(cycle)
    gc.collect(0)
    del memory, views, cycle
    gc.collect()
"""


def test_shared_memory_can_be_collected() -> None:
    """CPython before 3.11.9 and 3.12.3 crashes when it collects a view that a kept pointer refers to."""
    done = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_openssl_writes_into_the_space_alone(pair: Pair) -> None:
    server, client = pair
    receiver = layer(server)
    client.send(b"x" * RECORD)
    receiver.put(client.bio_read(100_000))
    for size in (1, 100, RECORD):
        around = bytearray(size + 20)
        got = receiver.open_into(memoryview(around)[10 : 10 + size])
        assert around == bytes(10) + b"x" * got + bytes(size - got + 10)


@pytest.mark.parametrize("space", [bytes(100), bytearray(200)[::1]], ids=["read-only", "released"])
def test_memory_that_must_not_be_written_is_refused(pair: Pair, space: bytes | bytearray) -> None:
    server, client = pair
    receiver, view = layer(server), memoryview(space)
    client.send(b"x" * 100)
    receiver.put(client.bio_read(1000))
    if isinstance(space, bytearray):
        view.release()
    with pytest.raises((BufferError, ValueError)):
        receiver.open_into(view)
    assert not any(space)
    assert opened(receiver, 100) == b"x" * 100


def test_the_arena_is_written_from_its_beginning(pair: Pair) -> None:
    server, client = pair
    arena = Arena()
    receiver = RecordLayer(server, SharedMemory(arena))
    client.send(b"x" * RECORD)
    receiver.put(client.bio_read(100_000))
    assert receiver.open_into(arena.space) == RECORD
    assert arena.data[: RECORD + 10] == b"x" * RECORD + bytes(10)
