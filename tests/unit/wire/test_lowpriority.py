"""LowPrioritySet: its sockets come behind the reactor's own, for a bounded time in each turn, until they are promoted."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet import main
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import Factory, Protocol
from zope.interface.verify import verifyObject

from tests.conformance import echo
from tests.memorywire import TEXT, masked_frame
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.reactor import (
    GATHER_SECONDS,
    LOOK_SECONDS,
    LOW_PRIORITY_SECONDS,
    TALK_LOOK_SECONDS,
    TALK_SECONDS,
    RelayReactor,
    adopt_stranger,
)
from viewport_relay.wire.transport import DirectTransport, TCPTransport


class Member:
    """A socket that reads and writes one byte at a time, and names itself in `heard`."""

    def __init__(self, bench: Bench, name: str, lasts: float = 0.0) -> None:
        self.ours, self.theirs = socket.socketpair()
        self._bench = bench
        self._name = name
        self._lasts = lasts
        self.also: Callable[[], object] = lambda: None
        self.lost: Any = None

    def fileno(self) -> int:
        return self.ours.fileno()

    def doRead(self) -> object:
        self.ours.recv(1)
        self._bench.heard.append(self._name)
        self._bench.time += self._lasts
        return self.also()

    def doWrite(self) -> None:
        self._bench.heard.append(self._name + " writes")
        self._bench.reactor.low_priority.removeWriter(self)

    def hung_up(self) -> None:
        self._bench.heard.append(self._name + " hung up")
        self._bench.reactor.unwatch_hang_up(self)

    def connectionLost(self, reason: Any) -> None:
        self.lost = reason
        self._bench.reactor.low_priority.removeReader(self)

    def logPrefix(self) -> str:
        return self._name


class AdmittedPeer(Member, DirectTransport):
    """A member that the reactor takes for the connection of an admitted peer."""


class Bench:
    """A reactor whose clock is `time`, with the names of the sockets in the order in which they were served."""

    def __init__(self) -> None:
        self.time = 0.0
        self.heard: list[str] = []
        self.reactor: Any = RelayReactor()
        self.reactor.seconds = self._seconds
        self.reactor.running = True
        self.low = self.reactor.low_priority
        self._members: list[Member] = []

    def _seconds(self) -> float:
        self.time += 1e-9  # so that an iteration without time is one turn
        return self.time

    def member(
        self,
        name: str,
        said: bytes = b"",
        *,
        lasts: float = 0.0,
        where: Any = None,
        kind: type[Member] = Member,
    ) -> Member:
        member = kind(self, name, lasts)
        self._members.append(member)
        (where or self.low).addReader(member)
        member.theirs.send(said)
        return member

    def turn(self) -> list[str]:
        self.heard.clear()
        self.reactor.doIteration(0)
        return self.heard

    def close(self) -> None:
        self.reactor.removeAll()
        for member in self._members:
            member.ours.close()
            member.theirs.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert not bench.reactor.turn.within and not bench.reactor.turn.running
    bench.close()


def test_it_is_a_set_of_descriptors(bench: Bench) -> None:
    assert verifyObject(IReactorFDSet, bench.low)


def test_the_reactors_own_sockets_and_their_frames_come_first(bench: Bench) -> None:
    class Outbox:
        def send_held(self) -> None:
            bench.heard.append("frames leave")

    strangers = [bench.member(f"stranger {n}", b"1") for n in range(2)]
    peers = [bench.member(f"peer {n}", b"1", where=bench.reactor) for n in range(2)]
    peers[0].also = lambda: bench.reactor.turn.outboxes.append(Outbox())
    served = bench.turn()
    assert sorted(served[:2]) == ["peer 0", "peer 1"] and served[2] == "frames leave"
    assert sorted(served[3:]) == ["stranger 0", "stranger 1"] and len(strangers) == 2


def test_what_strangers_cause_leaves_in_the_same_turn(bench: Bench) -> None:
    stranger = bench.member("stranger", b"1")
    stranger.also = lambda: bench.reactor.turn.when_sent(lambda: bench.heard.append("sent"))
    assert bench.turn() == ["stranger", "sent"]


@pytest.mark.parametrize(
    ("lasts", "each"),
    [(LOW_PRIORITY_SECONDS, 1), (LOW_PRIORITY_SECONDS * 10, 1), (LOW_PRIORITY_SECONDS * 0.6, 2)],
)
def test_a_turn_has_a_bounded_time_for_them_and_they_are_served_in_turn(
    bench: Bench, lasts: float, each: int
) -> None:
    names = [f"stranger {n}" for n in range(6)]
    for name in names:
        bench.member(name, b"123456", lasts=lasts)
    peer = bench.member("peer", b"1" * 20, where=bench.reactor, kind=AdmittedPeer)
    served = []
    for _ in range(6 // each):
        turn = list(bench.turn())
        assert turn[::2] == ["peer"] * (each + 1)  # it has something to read before and after each stranger
        assert len(turn[1::2]) == each
        served += turn[1::2]
    assert sorted(served) == names
    assert peer.lost is None


@pytest.mark.parametrize(("lasts", "each"), [(LOW_PRIORITY_SECONDS, 1), (LOW_PRIORITY_SECONDS / 4, 4)])
def test_a_fair_queue_has_the_same_bound_and_peers_are_served_between_two_pieces(
    bench: Bench, lasts: float, each: int
) -> None:
    queue = FairQueue(bench.reactor)

    def piece(name: str) -> None:
        bench.heard.append(name)
        bench.time += lasts

    names = [f"piece {n}" for n in range(9)]
    for name in names:
        queue.run(name, partial(piece, name))
    assert bench.heard == names[:1]  # nothing waited, so the first was run at once
    bench.member("peer", b"1" * 20, where=bench.reactor, kind=AdmittedPeer)
    served = []
    for _ in range(8 // each):
        turn = list(bench.turn())
        assert turn[::2] == ["peer"] * (each + 1) and len(turn[1::2]) == each
        served += turn[1::2]
    assert served == names[1:]


def test_events_and_queued_work_share_the_time_in_turn(bench: Bench) -> None:
    queue = FairQueue(bench.reactor)

    def piece() -> None:
        bench.heard.append("piece")
        bench.time += LOW_PRIORITY_SECONDS / 4

    for n in range(9):
        queue.run("key", piece)
        bench.member(f"stranger {n}", b"1", lasts=LOW_PRIORITY_SECONDS / 4)
    first, second = list(bench.turn()), list(bench.turn())
    for turn in (first, second):
        assert len(turn) == 4 and turn.count("piece") == 2


def test_what_waits_for_quiet_sockets_comes_after_what_they_brought_meanwhile(bench: Bench) -> None:
    turn = bench.reactor.turn
    first = bench.member("first", b"1", where=bench.reactor)
    second = bench.member("second", where=bench.reactor)

    def serve() -> None:
        turn.when_quiet(lambda: bench.heard.append("quiet"))
        second.theirs.send(b"1")

    first.also = serve
    assert bench.turn() == ["first", "second", "quiet"]
    turn.when_quiet(lambda: bench.heard.append("at once"))
    assert bench.heard[-1] == "at once"


def test_sockets_that_are_never_quiet_hold_nothing_up(bench: Bench) -> None:
    turn = bench.reactor.turn
    flood = bench.member("flood", b"1" * 100, where=bench.reactor, lasts=GATHER_SECONDS / 4)
    flood.also = lambda: None if turn.quiet else turn.when_quiet(lambda: bench.heard.append("sent"))
    assert bench.turn() == ["flood"] * 5 + ["sent"]


def test_sockets_that_are_no_peers_are_looked_at_less_often(bench: Bench) -> None:
    for n in range(6):
        bench.member(f"stranger {n}", b"1", lasts=LOOK_SECONDS * 0.4)
    bench.member("socket", b"1" * 20, where=bench.reactor)
    served = bench.turn()
    assert [n for n, name in enumerate(served) if name == "socket"] == [0, 4]


def test_while_admitted_peers_send_they_are_looked_at_more_often(bench: Bench) -> None:
    peer = bench.member("peer", b"1" * 8, where=bench.reactor, kind=AdmittedPeer)
    for n in range(6):
        stranger = bench.member(f"stranger {n}", b"123", lasts=TALK_LOOK_SECONDS * 1.1)
    assert bench.turn()[::2] == ["peer"] * 7
    assert bench.turn()[0] == "peer"  # the last byte
    bench.time += TALK_SECONDS  # while it is silent
    stranger.also = lambda: peer.theirs.send(b"1")
    assert "peer" not in bench.turn()
    assert bench.turn()[0] == "peer"


def test_a_peer_that_leaves_does_not_count_as_sending(bench: Bench) -> None:
    peer = bench.member("peer", b"1", where=bench.reactor, kind=AdmittedPeer)
    other = bench.member("socket", where=bench.reactor)
    peer.also = lambda: bench.reactor.removeReader(peer)
    for n in range(6):
        stranger = bench.member(f"stranger {n}", b"1", lasts=TALK_LOOK_SECONDS * 1.1)
        stranger.also = lambda: other.theirs.send(b"1")
    served = bench.turn()
    assert served[0] == "peer" and len(served) == 7  # without a look


def test_members_are_written(bench: Bench) -> None:
    member = bench.member("stranger")
    bench.low.addWriter(member)
    assert bench.low.getWriters() == bench.reactor.getWriters() == [member]
    assert bench.turn() == ["stranger writes"]
    assert bench.low.getWriters() == [] and member in bench.reactor.getReaders()


def test_a_member_that_fails_is_lost_and_no_other(bench: Bench) -> None:
    bad, good = bench.member("bad", b"1"), bench.member("good", b"1")
    bad.also = lambda: ValueError("over")
    assert sorted(bench.turn()) == ["bad", "good"]
    assert bad.lost.check(ValueError) and good.lost is None
    assert bench.low.getReaders() == [good]


def test_a_member_that_removes_another_which_is_ready(bench: Bench) -> None:
    members = [bench.member(name, b"1") for name in ("a", "b")]
    for member, other in (members, members[::-1]):
        member.also = lambda other=other: bench.low.removeReader(other)  # type: ignore[misc]
    assert len(bench.turn()) == 1


def test_a_promoted_member_is_the_reactors_own(bench: Bench) -> None:
    member = bench.member("stranger", b"12")
    bench.low.addWriter(member)
    assert bench.low.promote(member) is bench.reactor
    assert bench.low.getReaders() == bench.low.getWriters() == []
    assert bench.reactor.getReaders().count(member) == bench.reactor.getWriters().count(member) == 1
    bench.reactor.removeWriter(member)
    assert bench.turn() == ["stranger"]


def test_a_hang_up_is_noticed_of_members_that_are_not_read(bench: Bench) -> None:
    member = bench.member("paused", b"1")
    bench.low.removeReader(member)
    bench.reactor.watch_hang_up(member)
    assert bench.turn() == []
    member.theirs.close()
    assert bench.turn() == ["paused hung up"] and bench.turn() == []


def test_remove_all_empties_it(bench: Bench) -> None:
    before = set(bench.reactor.getReaders())
    members = {bench.member("a"), bench.member("b")}
    assert set(bench.reactor.getReaders()) == before | members
    found = bench.reactor.removeAll()
    assert members <= set(found) and len(found) == len(set(found))
    assert bench.low.getReaders() == []


def test_connections_of_a_listener_have_low_priority_and_an_adopted_one_where_it_is_wanted() -> None:
    reactor = RelayReactor()
    made: list[Any] = []

    def build(address: object) -> Protocol:
        made.append(Protocol())
        return made[-1]

    factory = Factory()
    factory.buildProtocol = build  # type: ignore[method-assign,assignment]
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    with contextlib.ExitStack() as open_sockets:
        open_sockets.enter_context(socket.create_connection(("127.0.0.1", port.getHost().port)))
        reactor.turn.within = True
        port.doRead()
        assert not made  # the frames of this turn leave first
        reactor.turn.within = False
        port.doRead()
        for adopt in (reactor.adoptStreamConnection, lambda *args: adopt_stranger(reactor, *args)):
            ours, _ = map(open_sockets.enter_context, socket.socketpair())
            ours.setblocking(False)
            adopt(ours.fileno(), socket.AF_UNIX, factory)
        accepted, own, stranger = (protocol.transport for protocol in made)
        assert accepted.reactor is stranger.reactor is reactor.low_priority and own.reactor is reactor
        assert set(reactor.low_priority.getReaders()) == {accepted, stranger}
        for each in (accepted, own, stranger):
            each.abortConnection()
        port.stopListening()


def test_a_stranger_is_read_in_small_pieces() -> None:
    """64 KiB of TLS records of one byte were 14 ms of work in one event."""
    reactor = RelayReactor()
    got: list[bytes] = []

    class Reader(Protocol):
        def dataReceived(self, data: bytes) -> None:
            got.append(data)

    factory = Factory.forProtocol(Reader)
    with contextlib.ExitStack() as open_sockets:
        for adopt, most in (
            (lambda *args: adopt_stranger(reactor, *args), 8192),
            (reactor.adoptStreamConnection, 65_536),
        ):
            ours, theirs = map(open_sockets.enter_context, socket.socketpair())
            ours.setblocking(False)
            got.clear()
            before = set(reactor.getReaders())
            adopt(ours.fileno(), socket.AF_UNIX, factory)
            (transport,) = set(reactor.getReaders()) - before
            theirs.sendall(bytes(20_000))
            theirs.shutdown(socket.SHUT_WR)
            ends = [transport.doRead() for _ in range(1 + -(-20_000 // most))]
            assert [len(piece) for piece in got] == [min(most, 20_000 - at) for at in range(0, 20_000, most)]
            assert ends[:-1] == [None] * len(got) and ends[-1] is main.CONNECTION_DONE
            transport.abortConnection()


def test_an_upgraded_connection_is_promoted() -> None:
    reactor = RelayReactor()
    reactor.running = True
    port = reactor.listenTCP(0, echo.site(reactor, RELAY_LISTEN_HOST="127.0.0.1"), interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as sock:
        sock.settimeout(0)
        head = (
            f"GET {echo.PATH} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        for said, expected in (
            (head.encode(), b"HTTP/1.1 101 "),
            (masked_frame(TEXT, b"hello"), b"\x81\x05hello"),
        ):
            sock.send(said)
            heard = b""
            for _ in range(50):
                reactor.iterate(0.01)
                with contextlib.suppress(BlockingIOError):
                    heard += sock.recv(4096)
                if heard:
                    break
            assert heard.startswith(expected)
            assert reactor.low_priority.getReaders() == []
            (upgraded,) = [each for each in reactor.getReaders() if isinstance(each, TCPTransport)]
            assert upgraded.reactor is reactor
        upgraded.abortConnection()
        port.stopListening()
        reactor.iterate(0)
