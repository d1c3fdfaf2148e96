"""A relay without sockets: real sessions, router and wire over in-memory transports.

    relay = MemoryRelay(RELAY_PONG_TIMEOUT_MS="400")
    daemon = relay.daemon(generation=1)
    client = relay.client()
    client.say(encoded("init v3"))
    assert daemon.heard() == [encoded("init v3")]

The transport is Twisted's `FileDescriptor` (buffer, high-water mark, producers, orderly close) over a bytearray in place
of a socket; time is a `Clock`. The bytes for a peer that does not read stay in the transport, as with full kernel
buffers. There is no upgrade: peers start admitted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.wireframes import masked_frame as masked_frame  # re-exported
from viewport_relay.backplane.interface import Backplane
from viewport_relay.backplane.single import Single
from viewport_relay.config import load
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Claims, Role, Scope, UpgradeQuery
from viewport_relay.routing.model import Peer
from viewport_relay.sessions.build import build
from viewport_relay.sessions.session import Session
from viewport_relay.wire.connection import Connection, ConnectionFactory, ConnectionInfo
from viewport_relay.wire.heartbeat import Heartbeat
from viewport_relay.wire.turn import Turn

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

#: Seconds between a ping and its pong.
ROUND_TRIP = 0.01

#: Settings without rate limits, for tests of other behaviour.
GENEROUS = {
    "RELAY_MODE": "dev",
    "RELAY_LISTEN_HOST": "127.0.0.1",
    "SERVER_URL": "http://127.0.0.1:1",
    "RELAY_KEX_INIT_RATE_PER_MINUTE": "0",
    "RELAY_PAIRING_RATE_PER_MINUTE": "0",
    "RELAY_RUNTIME_RATE_PER_MINUTE": "0",
    "RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE": "0",
    "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE": "0",
}


def timed_calls(clock: Clock) -> None:
    """One turn of the reactor: make the calls that are due now. Those that they add for now come in the next turn."""
    due = [call for call in clock.calls if call.getTime() <= clock.seconds()]
    clock.calls = [call for call in clock.calls if call not in due]
    for call in due:
        call.called = 1
        call.func(*call.args, **call.kw)


class FrameReader:
    """Parses a server's bytes into frames (opcode, payload, fin)."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        self._kept += data
        frames = []
        while len(self._kept) >= 2:
            opcode, length, head = self._kept[0] & 0x0F, self._kept[1], 2
            assert length < 0x80, "a server's frame is not masked"
            assert not self._kept[0] & 0x70, "no extension was agreed"
            if length >= 126:
                head = 4 if length == 126 else 10
                if len(self._kept) < head:
                    break
                length = int.from_bytes(self._kept[2:head], "big")
            if len(self._kept) < head + length:
                break
            frames.append((opcode, self._kept[head : head + length], bool(self._kept[0] & 0x80)))
            self._kept = self._kept[head + length :]
        return frames


class Poll:
    """Test double of the reactor of a transport: the sets of readers and writers."""

    def __init__(self) -> None:
        self.reading: set[object] = set()
        self.writing: set[object] = set()

    def addReader(self, who: object) -> None:
        self.reading.add(who)

    def removeReader(self, who: object) -> None:
        self.reading.discard(who)

    def addWriter(self, who: object) -> None:
        self.writing.add(who)

    def removeWriter(self, who: object) -> None:
        self.writing.discard(who)


@implementer(ITransport)
class MemoryTransport(FileDescriptor):
    """The relay's end of a connection. `taken` receives the bytes written; `window` is the receive window of the peer."""

    def __init__(self, clock: Clock, taken: Callable[[bytes], None]) -> None:
        self._poll = Poll()
        FileDescriptor.__init__(self, self._poll)  # type: ignore[arg-type]
        self._clock = clock
        self._taken = taken
        self.buffered = bytearray()  # bytes from the peer that are unread
        self.protocol: Any = None
        self.window = 1 << 62
        self.aborted = False
        self.connected = 1
        self.startReading()

    # -- the rest of Twisted's TCP connection ----------------------------------------------------------------

    def writeSomeData(self, data: bytes) -> int:
        size = min(len(data), self.window)
        self.window -= size
        if size:
            self._taken(bytes(data[:size]))
        return size

    def connectionLost(self, reason: Failure) -> None:
        if self.connected:
            FileDescriptor.connectionLost(self, reason)
            self.protocol.connectionLost(reason)

    def abortConnection(self) -> None:
        if self.disconnected or self.aborted:
            return
        self.aborted = True
        self.disconnecting = 1
        self.stopReading()
        self.stopWriting()
        self._clock.callLater(0, self.connectionLost, Failure(ConnectionAborted()))

    def getPeer(self) -> str:
        return "memory"

    getHost = getPeer

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    # -- for tests ---------------------------------------------------------------------------------------------

    def arrive(self, data: bytes) -> None:
        """Receive bytes from the peer."""
        self.buffered += data

    @property
    def is_read(self) -> bool:
        return self in self._poll.reading

    @property
    def unread(self) -> int:
        return len(self.buffered)

    @property
    def unsent(self) -> int:
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def turn(self) -> bool:
        """Run one turn of the reactor for this connection; True if bytes moved."""
        moved = False
        if self.buffered and self.is_read and self.connected:
            piece, self.buffered = bytes(self.buffered[:65_536]), self.buffered[65_536:]
            self.protocol.dataReceived(piece)
            moved = True
        if self in self._poll.writing and self.connected and (self.window or not self.unsent):
            before = self.window
            result = self.doWrite()
            if result is not None:
                self.connectionLost(Failure(ConnectionDone()))
                return True
            moved = moved or self.window != before
        return moved

    def vanish(self) -> None:
        """Lose the connection without FIN."""
        if self.connected:
            self.connectionLost(Failure(ConnectionLost()))


class Log:
    """An event sink that records its calls."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, event: str, **rest: Any) -> None:
        self.events.append({"event": event, **rest})

    def names(self) -> list[str]:
        return [entry["event"] for entry in self.events]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.events if entry["event"] == event]

    def reasons(self) -> list[str]:
        """Reason codes of all entries that have one."""
        return [entry["reason"].code for entry in self.events if entry.get("reason") is not None]


class MemoryPeer:
    """The peer's end of a connection: answers pings and Close frames unless disabled."""

    def __init__(self, relay: MemoryRelay, info: ConnectionInfo) -> None:
        self._relay = relay
        self._frames = FrameReader()
        self.transport = MemoryTransport(relay.clock, self._received)
        self.connection: Connection = relay.factory.open(self.transport, b"", info)
        self.inbox: list[bytes] = []  # payloads of messages, in order
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.closed: tuple[int | None, str] | None = None  # the relay's Close
        self.after_close: list[object] = []  # must stay empty
        self.answers_pings = True
        self.answers_close = True

    def _received(self, data: bytes) -> None:
        for opcode, payload, fin in self._frames.feed(data):
            assert fin, "the relay does not fragment"
            if self.closed is not None:
                self.after_close.append((opcode, payload))
            if opcode in (TEXT, BINARY):
                assert opcode == TEXT
                self.inbox.append(payload)
            elif opcode == PING:
                self.pings.append(payload)
                if self.answers_pings:
                    # A pong takes a round trip, and the relay's clock measures it.
                    pong = masked_frame(PONG, payload)
                    self._relay.clock.callLater(ROUND_TRIP, self.transport.arrive, pong)
            elif opcode == PONG:
                self.pongs.append(payload)
            else:
                assert opcode == CLOSE
                code = int.from_bytes(payload[:2], "big") if payload else None
                self.closed = (code, payload[2:].decode())
                if self.answers_close:
                    self.transport.arrive(masked_frame(CLOSE, payload[:2]))

    # -- for tests ---------------------------------------------------------------------------------------------

    def say(self, *messages: bytes, pump: bool = True) -> None:
        """Send text messages."""
        self.raw(b"".join(masked_frame(TEXT, message) for message in messages), pump=pump)

    def raw(self, data: bytes, *, pump: bool = True) -> None:
        self.transport.arrive(data)
        if pump:
            self._relay.pump()

    def heard(self) -> list[bytes]:
        """The messages received since the last call."""
        messages, self.inbox = self.inbox, []
        return messages

    def stop_reading(self) -> None:
        self.transport.window = 0

    def read_on(self, size: int = 1 << 62) -> None:
        self.transport.window = size
        self._relay.pump()

    def leave(self) -> None:
        """Send Close 1000."""
        self.answers_close = False
        self.raw(masked_frame(CLOSE, struct.pack("!H", 1000)))

    def vanish(self) -> None:
        self.transport.vanish()
        self._relay.pump()

    @property
    def is_open(self) -> bool:
        """True while the relay has neither closed nor lost the connection."""
        return self.closed is None and self.connection.ending is None

    @property
    def routed(self) -> Peer | None:
        """The peer as routing sees it, while it is joined."""
        return routed(self.connection)


def routed(connection: Connection) -> Peer | None:
    """A connection's peer as routing sees it, while it is joined."""
    session = connection.handler
    return session.peer if isinstance(session, Session) else None


class MemoryRelay:
    """Sessions, connection factory and heartbeat of one relay, with a clock that the test advances."""

    def __init__(
        self,
        client: Any = None,
        backplane: Backplane | None = None,
        keys: RelayKeys | None = None,
        clock: Clock | None = None,
        **environ: str,
    ) -> None:
        """`client` replaces the HTTP client of the platform; relays of a fleet share a `clock`."""
        if clock is None:
            clock = Clock()
            clock.advance(1000.0)
        self.clock = clock
        self.config = load({**GENEROUS, **environ})
        self.log = Log()
        self.counters = Counters()
        self.relaying = build(
            self.config,
            self.clock,
            self.log,
            self.counters,
            client,
            keys or RelayKeys.load(None, None, None),
            backplane or Single(),
        )
        self.registry = self.relaying.registry
        self.factory = ConnectionFactory(
            self.clock,
            Turn(),
            self.counters,
            frame_max_bytes=self.config.frame_max_bytes,
            max_pending=self.config.max_pending_bytes,
            fast_path=self.config.fast_path,
        )
        self.heartbeat = Heartbeat(self.config, self.clock, lambda: self.factory.connections, self.counters)
        self.peers: list[MemoryPeer] = []
        self._made = 0

    def join(
        self,
        role: Role,
        workspace: str = "w",
        target: str | None = "t",
        *,
        ip: str = "127.0.0.1",
        pump: bool = True,
        **claims: Any,
    ) -> MemoryPeer:
        """Join a peer that was admitted with these claims (attributes of `Claims`)."""
        self._made += 1
        peer = MemoryPeer(self, ConnectionInfo(f"{role.value}-{self._made}", ip))
        self.peers.append(peer)
        said = Claims(**{"workspace_id": workspace, "runtime_target_id": target, **claims})
        self.relaying.sessions.opened(peer.connection, UpgradeQuery(role, workspace, target), said)
        if pump:
            self.pump()
        return peer

    def daemon(self, generation: int | None = None, **rest: Any) -> MemoryPeer:
        return self.join(Role.DAEMON, daemon_issue_generation=generation, **rest)

    def client(self, scope: Scope = Scope.RUNTIME, **rest: Any) -> MemoryPeer:
        return self.join(Role.CLIENT, scope=scope, **rest)

    def worker(self, **rest: Any) -> MemoryPeer:
        return self.join(Role.WORKER, **{"managed_executor_id": "x", **rest})

    def clean_up(self) -> None:
        """Run the clean-up that the service runs every RELAY_CLEANUP_INTERVAL_MS."""
        self.registry.clean_up(self.clock.seconds(), self.config.empty_workspace_ttl_ms / 1000)

    def pump(self) -> None:
        """Run turns of the reactor until no bytes move. The clock does not advance."""
        moved = True
        while moved:
            moved = False
            for peer in self.peers:
                moved = peer.transport.turn() or moved

    def wait(self, seconds: float, step: float = 0.05) -> None:
        """Advance the clock in steps smaller than the relay's timers."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(step, end - self.clock.seconds()))
            self.pump()
