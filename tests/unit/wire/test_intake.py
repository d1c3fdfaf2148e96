"""Intake: a limit for the bytes of long messages that one client may send at once, over all its connections."""

from __future__ import annotations

import gc
import weakref

import pytest
from twisted.internet.task import Clock

from tests.memorywire import MemoryPeer, MemoryRelay, masked_frame
from tests.unit.wire.test_connection import bytes_kept
from tests.wireframes import encoded
from viewport_relay.protocol.grant import Scope
from viewport_relay.routing.views import Selection
from viewport_relay.wire.codec import Codec
from viewport_relay.wire.intake import MOST_BYTES, PATIENCE, Intake, Intakes

MIB = 1024 * 1024


class Waiting:
    """A reader that counts how often it was let in."""

    def __init__(self) -> None:
        self.times = 0

    def let_in(self) -> None:
        self.times += 1


def test_long_messages_are_received_up_to_the_limit_then_in_order() -> None:
    intake = Intake(Clock())
    readers = [Waiting() for _ in range(5)]
    assert [intake.enter(reader, MOST_BYTES // 2) for reader in readers] == [True, True, False, False, False]
    assert intake.enter(readers[0], MOST_BYTES // 2)  # the reader has its place already
    assert not intake.leave(readers[1])
    assert [reader.times for reader in readers] == [0, 0, 1, 0, 0]
    assert intake.enter(readers[2], MOST_BYTES // 2)
    assert intake.leave(readers[3])  # the reader was waiting
    intake.leave(readers[0])
    assert [reader.times for reader in readers] == [0, 0, 1, 0, 1]


def test_a_short_message_does_not_overtake_a_waiting_one() -> None:
    intake = Intake(Clock())
    first, large, small = Waiting(), Waiting(), Waiting()
    assert intake.enter(first, MOST_BYTES - 10)
    assert not intake.enter(large, 20)
    assert not intake.enter(small, 10)


def test_one_message_may_exceed_the_limit() -> None:
    intake = Intake(Clock())
    first, second = Waiting(), Waiting()
    assert intake.enter(first, 4 * MOST_BYTES)
    assert not intake.enter(second, 4 * MOST_BYTES)
    intake.leave(first)
    assert second.times == 1


def test_a_long_wait_ends_with_admission() -> None:
    """The network of the connection in progress may be lost."""
    clock = Clock()
    intake = Intake(clock)
    readers = [Waiting() for _ in range(3)]
    assert [intake.enter(reader, MOST_BYTES) for reader in readers] == [True, False, False]
    clock.advance(PATIENCE)
    assert [reader.times for reader in readers] == [0, 1, 0]
    clock.advance(PATIENCE)
    assert [reader.times for reader in readers] == [0, 1, 1]
    assert clock.getDelayedCalls() == []


def test_no_timer_runs_when_no_reader_waits() -> None:
    clock = Clock()
    intake = Intake(clock)
    first, second = Waiting(), Waiting()
    intake.enter(first, MOST_BYTES)
    intake.enter(second, MOST_BYTES)
    assert len(clock.getDelayedCalls()) == 1
    intake.leave(second)
    assert clock.getDelayedCalls() == []


def test_an_intake_is_freed_with_its_last_connection() -> None:
    intakes = Intakes(Clock())
    held = intakes.of(("w", "c"))
    assert intakes.of(("w", "c")) is held and intakes.of(("w", "d")) is not held
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None
    assert isinstance(intakes.of(("w", "c")), Intake)


# -- connections ---------------------------------------------------------------------------------------------------


def client_of(relay: MemoryRelay, name: str = "client-1") -> MemoryPeer:
    return relay.client(client_id=name)


@pytest.mark.parametrize("path", ["1", "0"])
def test_many_connections_of_one_client_hold_few_long_messages(path: str) -> None:
    relay = MemoryRelay(RELAY_FAST_PATH=path)
    relay.daemon()
    clients = [client_of(relay) for _ in range(50)]
    wire = masked_frame(1, b"[" + b"1," * (MIB // 2 - 2) + b"1]")

    def begin() -> None:
        for client in clients:
            client.raw(wire[:-1000])

    # Unread bytes stay in the transports, which represent the kernel.
    kept = bytes_kept(begin) - sum(client.transport.unread for client in clients)
    assert kept < MOST_BYTES + 50 * 140_000
    assert sum(client.transport.unread > 800_000 for client in clients) == 48


@pytest.mark.parametrize("path", ["1", "0"])
def test_long_frames_of_many_connections_all_arrive(path: str) -> None:
    relay = MemoryRelay(RELAY_FAST_PATH=path)
    daemon = relay.daemon()
    clients = [client_of(relay) for _ in range(8)]
    frames = [encoded("e2ee", ciphertext="A" * 700_000, sessionId=f"s-{n}") for n in range(8)]
    wires = [masked_frame(1, frame) for frame in frames]
    for at in range(0, len(wires[0]), 50_000):
        for client, wire in zip(clients, wires, strict=True):
            client.raw(wire[at : at + 50_000])
        relay.wait(0.001, 0.001)
    relay.wait(0.1)
    assert sorted(daemon.heard()) == sorted(frames)


@pytest.mark.parametrize("path", ["1", "0"])
def test_a_lost_connection_frees_its_place(path: str) -> None:
    relay = MemoryRelay(RELAY_FAST_PATH=path)
    daemon = relay.daemon()
    clients = [client_of(relay) for _ in range(5)]
    frame = encoded("e2ee", ciphertext="A" * 900_000)
    wire = masked_frame(1, frame)
    for client in clients[:4]:
        client.raw(wire[:-10])  # two are received, two wait
    clients[4].raw(wire)
    clients[0].vanish()
    clients[2].vanish()
    clients[1].vanish()
    clients[3].vanish()
    relay.wait(0.1)
    assert daemon.heard() == [frame]


def test_another_client_does_not_wait() -> None:
    relay = MemoryRelay()
    daemon = relay.daemon()
    frame = encoded("e2ee", ciphertext="A" * 900_000)
    for _ in range(4):
        client_of(relay).raw(masked_frame(1, frame)[:-10])
    client_of(relay, "client-2").raw(masked_frame(1, frame))
    assert daemon.heard() == [frame]


def test_a_client_with_stalled_connections_waits_a_second() -> None:
    relay = MemoryRelay()
    daemon = relay.daemon()
    frame = encoded("e2ee", ciphertext="A" * 900_000)
    for _ in range(2):
        client_of(relay).raw(masked_frame(1, frame)[:-10])
    client_of(relay).raw(masked_frame(1, frame))
    relay.wait(PATIENCE - 0.1)
    assert daemon.heard() == []
    relay.wait(0.2)
    assert daemon.heard() == [frame]


def test_a_waiting_client_answers_the_relays_close() -> None:
    relay = MemoryRelay()
    relay.daemon()
    wire = masked_frame(1, encoded("e2ee", ciphertext="A" * 900_000))
    clients = [client_of(relay) for _ in range(3)]
    for client in clients:
        client.raw(wire[:-10])
    assert relay.relaying.sessions.disconnect(Selection(workspace_id="w"))
    for client in clients:
        client.transport.arrive(wire[-10:])
    relay.wait(1.0, 0.01)
    assert all(client.connection.is_lost for client in clients)


# -- after the close -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536])
def test_what_a_closed_client_still_sends_is_thrown_away_up_to_its_close(size: int) -> None:
    relay = MemoryRelay(RELAY_RUNTIME_RATE_PER_MINUTE="5")
    relay.daemon()
    client = relay.client(Scope.RUNTIME)
    client.answers_close = False
    for _ in range(6):
        client.say(b"no frame")
    assert client.closed == (4008, "runtime rate limit exceeded")
    lengths = (0, 5, 125, 126, 300, 65_535, 65_536) if size > 100 else (0, 5, 125, 126, 300)
    wire = b"".join(masked_frame(1, b"x" * length) for length in lengths) + masked_frame(8, b"\x03\xe8")
    for at in range(0, len(wire), size):
        client.raw(wire[at : at + size])
    relay.wait(3.0)
    assert client.connection.is_lost


def test_a_flood_after_the_close_is_read_slowly() -> None:
    relay = MemoryRelay(RELAY_RUNTIME_RATE_PER_MINUTE="5")
    relay.daemon()
    client = relay.client()
    client.answers_close = False
    for _ in range(6):
        client.say(b"no frame")
    client.transport.arrive(masked_frame(1, b"x" * 1000) * 20_000)
    sent = client.transport.unread
    relay.wait(1.0, 0.01)
    assert 50_000 < sent - client.transport.unread < 8 * MIB
    assert client.transport.unread


def test_long_reads_behind_a_costly_one_wait_for_the_next_turn() -> None:
    """On the codec's way too, or fifty connections would make one long turn. Short frames go on."""
    relay = MemoryRelay(RELAY_FAST_PATH="0")
    daemon = relay.daemon()
    costly, behind, short = (client_of(relay, f"client-{n}") for n in range(3))
    long_frame, short_frame = encoded("e2ee", ciphertext="A" * 5000), encoded("e2ee", sessionId="s-2")
    costly.raw(masked_frame(1, b"[" * 100_000))
    behind.raw(masked_frame(1, long_frame))
    short.raw(masked_frame(1, short_frame))
    assert daemon.heard() == [short_frame]
    relay.wait(0.01)
    assert daemon.heard() == [long_frame]


def test_a_long_read_that_ends_no_message_is_costly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty connections that send fragments of 64 KiB made a turn of 19 ms."""
    relay = MemoryRelay(RELAY_FAST_PATH="0")
    daemon = relay.daemon()
    fragments, behind = (client_of(relay, f"client-{n}") for n in range(2))
    feed = Codec.feed

    def slow(codec: Codec, data: bytes) -> None:
        feed(codec, data)
        relay.clock.rightNow += len(data) * 6e-9  # as measured

    monkeypatch.setattr(Codec, "feed", slow)
    fragments.raw(masked_frame(1, b"[" * 60_000, fin=False))
    long_frame = encoded("e2ee", ciphertext="A" * 5000)
    behind.raw(masked_frame(1, long_frame))
    assert daemon.heard() == []
    relay.wait(0.01)
    assert daemon.heard() == [long_frame]
