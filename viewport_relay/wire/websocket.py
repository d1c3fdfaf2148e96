"""One WebSocket connection after its upgrade: RFC 6455 by Autobahn, our queues, closes and clocks around it.

    peer  -> relay   text (or binary, taken as text): one frame of section 3 each; with a Noise link, records
    relay -> peer    the same, pings, pongs, and at the end one Close

Autobahn parses, checks and keeps the protocol's state (`rfc6455.py`). This module decides nothing about frames: whole
messages go to `Connection.receive`, which the hub sets. It owns what Autobahn does otherwise than the contract: messages
that are too large, queued data before a Close, input after one, pongs to a peer that does not read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from viewport_relay.protocol.json import is_utf8
from viewport_relay.reasons import CloseCode, Reason
from viewport_relay.routing.decisions import Decision
from viewport_relay.routing.model import Peer
from viewport_relay.wire.fastpath import Judge, Reader, can_read_directly
from viewport_relay.wire.outbox import TURN, Outbox, Unsealed
from viewport_relay.wire.rfc6455 import BINARY, CLOSE, PING, PONG, TEXT, Factory, Protocol, frame_header

if TYPE_CHECKING:
    from viewport_relay.noise.exchange import ExchangeWatch
    from viewport_relay.wire.hub import Hub
    from viewport_relay.wire.link import ConnectionLink

#: Seconds that a closing connection has: to take what is queued, and to answer the Close.
CLOSE_TIMEOUT: Final = 10.0

#: Most bytes that the kernel keeps for a daemon beyond what is already on its way to it.
KERNEL_QUEUE: Final = 131_072

#: Seconds before a Close that the peer would answer with an immediate reconnect (wire contract, section 2).
SEAT_CLOSE_DELAY: Final = 1.0

#: Seconds that plain Autobahn works at one connection's input before the others get their turn, and the bytes of the
#: first slice: tiny frames cost 20 µs each.
TURN_SECONDS: Final = 0.004
_SLICE: Final = 512

#: Why a connection that is not done with its input is not read.
_TURN: Final = object()

#: Of most connections; a set of its own would be 200 bytes each.
_BY_NOBODY: Final[frozenset[object]] = frozenset()

#: How many times RELAY_MAX_PENDING_BYTES may be queued for all clients of one target together.
TARGET_QUEUES: Final = 8

#: Counts messages (and their bytes) that a connection's peer had forwarded.
Count: TypeAlias = "Callable[[Connection, Peer, int, int], None]"

#: Carries out what was decided about a message of a connection's peer.
Decide: TypeAlias = "Callable[[Connection, Peer, Peer | Decision, bytes], None]"


def _uncounted(connection: Connection, peer: Peer, messages: int, size: int) -> None:
    raise AssertionError("nobody counts yet")


def _undecided(connection: Connection, peer: Peer, verdict: Peer | Decision, message: bytes) -> None:
    raise AssertionError("nobody carries out decisions yet")


def _ignored(payload: bytes) -> None:
    """Nobody listens: before the hub does, and after the end."""


def text_frame(message: bytes) -> bytes:
    """One message as an unfragmented text frame (RFC 6455 section 5.6)."""
    return frame_header(TEXT, len(message)) + message


@frozen
class Ending:
    """Why and how the relay ends a connection."""

    reason: Reason
    code: int
    text: str


class _Hot:
    """What every frame looks at, together at the beginning of the object: a frame finds it in a line or two of memory."""

    __slots__ = (
        "count_forwarded", "ending", "judge", "last_seen", "now", "outbox", "routed", "sealed",
    )  # fmt: skip


class _Slots(_Hot):
    """The rest of our attributes: in a dict with all of Autobahn's they would be slow and large."""

    __slots__ = (
        "_deadline",
        "_gone",
        "_paused_by",
        "_pong_due",
        "_seal",
        "_when_lost",
        "announced",
        "connection_id",
        "decide",
        "early",
        "ip",
        "is_daemon",
        "link",
        "link_side",
        "lost",
        "noise",
        "pinged_at",
        "postponed",
        "reader",
        "receive",
        "subprotocol",
        "unanswered_since",
        "version",
    )  # fmt: skip


class Connection(_Slots, Protocol):
    """An upgraded connection. It is created by the factory and adopted by the upgrade resource."""

    factory: ConnectionFactory
    outbox: Outbox

    def __init__(self, connection_id: str, ip: str) -> None:
        super().__init__()
        self.connection_id = connection_id
        self.ip = ip
        self.version: str | None = None
        self.subprotocol: str | None = None
        self.noise = "none"
        self.receive: Callable[[bytes], None] = _ignored
        # For connections whose messages are routed: `judge` gives the receiver or a decision, which `decide`
        # carries out, and `count_forwarded` counts a peer's messages and their bytes. `receive` is then `_route`.
        self.judge: Judge | None = None
        self.decide: Decide = _undecided
        self.count_forwarded: Count = _uncounted
        self.is_daemon = False
        self.reader: Reader | None = None
        self.link_side: ConnectionLink | None = None
        self.sealed = False  # whether messages travel in the link's records
        self._seal: Callable[[bytes], bytes | None] | None = None
        self.announced = False  # whether its joining was logged
        self.early = b""  # received before the 101
        self.routed: Peer | None = None  # what routing knows it as, while it is part of it
        self.ending: Ending | None = None
        self.lost = False
        self.last_seen = 0.0  # when anything was received, monotonic seconds
        self.now = 0.0  # the clock at the read event that is handled
        self.pinged_at = 0.0
        self.unanswered_since: float | None = None
        self.link = False  # whether the peer chose the Noise link
        self._when_lost: list[Callable[[], None]] = []
        self._paused_by: frozenset[object] = _BY_NOBODY
        self.postponed = b""  # received, and left to the next turn
        self._gone = False  # TLS is over
        self._pong_due: bytes | None = None
        self._deadline: IDelayedCall | None = None

    # -- opening -----------------------------------------------------------------------------------------

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this once, when the TCP connection is gone."""
        self._when_lost.append(callback)

    def adopt(self, response: bytes, subprotocol: str | None, *, link: bool = False) -> None:
        """Take over after the resource has admitted: send the 101 and be open (RFC 6455 section 4.2.2)."""
        now = self.factory.clock.seconds()
        self.last_seen = self.pinged_at = self.now = now
        self.subprotocol = (
            subprotocol if subprotocol is None or not subprotocol.startswith("auth.") else "auth"
        )
        self.link = link
        self.outbox = Outbox(self.transport, self._resumed)
        self.reader = None if link or not self.factory.fast_path else self._fast_reader()
        self.outbox.hold(response)
        # What Autobahn's own succeedHandshake leaves behind.
        self.state = self.STATE_OPEN
        self.websocket_protocol_in_use = subprotocol
        self.factory.connections.add(self)

    def _fast_reader(self) -> Reader:
        reader = Reader(self, self.factory.frame_max_bytes)
        reader.start(self.transport)
        if can_read_directly(self.transport):
            self.outbox.write_directly(self.transport, self.transport.socket)
        return reader

    # -- receiving ---------------------------------------------------------------------------------------

    def route(
        self,
        judge: Judge,
        decide: Decide,
        count_forwarded: Count,
        *,
        is_daemon: bool,
    ) -> None:
        """Messages are routed from now on."""
        self.judge = judge
        self.decide = decide
        self.count_forwarded = count_forwarded
        self.is_daemon = is_daemon
        self.receive = self._route
        if is_daemon:
            self._keep_kernel_queue_short()

    def _keep_kernel_queue_short(self) -> None:
        # What waits in the kernel is past our turns: one client's flood would be megabytes ahead of all the others.
        sock = getattr(self.transport, "socket", None)  # of TLS too
        if sock is not None and sock.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_QUEUE)

    def dataReceived(self, data: bytes) -> None:
        if self.reader is not None:
            self.reader.feed(data)
        else:
            self.now = self.last_seen = self.factory.clock.seconds()
            self.autobahn_received(data)

    def autobahn_received(self, data: bytes) -> None:
        """What the fast path does not handle: in slices, so that a flood of tiny frames does not hold everybody up."""
        if self.postponed:
            self.postponed += data
            return
        end = len(data)
        if end <= _SLICE:
            self._dataReceived(data)
            return
        seconds = self.factory.clock.seconds
        until = seconds() + TURN_SECONDS
        at, size = 0, _SLICE
        while at < end:
            self._dataReceived(data[at : at + size])
            at += size
            size *= 2  # in few steps for what is quickly done, as large frames are
            if at < end and seconds() >= until:
                self.postpone(data[at:])
                return

    def postpone(self, data: bytes) -> None:
        """Handle this in the reactor's next turn: the other connections come first. Until then nothing is read."""
        if self.lost:
            return
        first, self.postponed = not self.postponed, self.postponed + data
        if first:
            self._paused_by |= {_TURN}
            self.transport.pauseProducing()
            self.factory.clock.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        data, self.postponed = self.postponed, b""
        if not data or self.lost:
            return
        if self.reader is not None:
            self.reader.feed(data)
        else:
            self.autobahn_received(data)
        if self.postponed or self.lost:
            return
        if self._gone:
            self._tls_over()
        self._paused_by -= {_TURN}
        if not self._paused_by or self.ending is not None:
            self._read_on()

    def _route(self, message: bytes) -> None:
        peer = self.routed
        assert self.judge is not None and peer is not None
        verdict = self.judge(peer, message, self.now)
        if type(verdict) is Peer:
            to: Any = verdict.outlet
            if to.take(self, to.frame(message)):
                self.count_forwarded(self, peer, 1, len(message))
        elif verdict is None:
            self.end_not_utf8()
        else:
            self.decide(self, peer, verdict, message)

    def end_not_utf8(self) -> None:
        """A message was none that RFC 6455 section 8.1 allows."""
        self.end(Reason.FRAME_NOT_UTF8, "a text message is not UTF-8")

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.ending is not None:
            return
        if self.link:
            self._link_message(payload, isBinary)
        elif isBinary and not is_utf8(payload):
            self.end(Reason.FRAME_NOT_UTF8, "a binary message is not UTF-8")
        else:
            self.receive(payload)

    def _link_message(self, payload: bytes, is_binary: bool) -> None:
        link = self.link_side
        if link is None:
            return
        if not is_binary:
            link.noise.text_message()
            return
        message = link.noise.receive(payload)
        if message is None:
            return
        if is_utf8(message):
            self.receive(message)
        else:
            self.end(Reason.FRAME_NOT_UTF8, "a frame on the link is not UTF-8")

    def onPing(self, payload: bytes) -> None:
        if self.state != self.STATE_OPEN:
            return
        if self.outbox.blocked:
            self._pong_due = payload  # RFC 6455 section 5.5.3: the most recent one is enough
        else:
            self.sendFrame(PONG, payload)

    # -- sending -----------------------------------------------------------------------------------------

    def sendFrame(self, opcode: int, payload: bytes = b"", **_: Any) -> None:
        """Autobahn's way out (and ours for control frames): everything passes the outbox, Close as the last."""
        data = frame_header(opcode, len(payload)) + payload
        if opcode == CLOSE:
            # A Close from us is answered; with the answer to the peer's, Autobahn drops the connection.
            self.outbox.write_last(data, ends=self.ending is None)
        else:
            self.outbox.write(data)

    def frame(self, message: bytes) -> bytes:
        """One message for `take`: a text frame, or on a link the message, which is sealed when it leaves."""
        return Unsealed(message) if self.sealed else text_frame(message)

    def seal_with(self, seal: Callable[[bytes], bytes | None]) -> None:
        """From now on messages travel as records; `seal` gives None when the link cannot carry any more."""
        self.sealed = True
        self._seal = seal
        self.outbox.seal_with(self._record)

    def _record(self, message: bytes) -> bytes:
        assert self._seal is not None
        records = self._seal(message)
        return b"" if records is None else frame_header(BINARY, len(records)) + records

    def send_binary(self, payload: bytes) -> None:
        """A message of the link's handshake."""
        self.outbox.write(frame_header(BINARY, len(payload)) + payload)

    def deliver(self, message: bytes) -> bool:
        """Send a message; False when it is not taken."""
        return self.take(None, self.frame(message))

    def take(self, feeder: Connection | None, data: bytes | memoryview) -> bool:
        """Send whole frames that `feeder` brought; a memoryview is used up when this returns.

        A daemon's queue grows in the feeder's lane, and the feeder is not read until that has gone. A client or
        worker is closed instead when RELAY_MAX_PENDING_BYTES wait for it. False: they are not taken.
        """
        if self.ending is not None:
            return False
        outbox = self.outbox
        if self.is_daemon:
            outbox.write(data, feeder)
            return True
        if outbox.blocked and outbox.pending >= self.factory.max_pending:
            self.factory.counters.ws_slow_client_terminated += 1
            self.end(Reason.BUFFER_OVERFLOW, f"{outbox.pending} bytes are queued")
            return False
        outbox.write(data)
        if outbox.blocked and self.routed is not None:
            self._bound_target(self.routed)
        return True

    def _bound_target(self, peer: Peer) -> None:
        """Close the client for which most is queued, when too much is for all of this target together."""
        heaviest = peer.target.heaviest(TARGET_QUEUES * self.factory.max_pending)
        if heaviest is not None:
            to: Any = heaviest.outlet
            self.factory.counters.ws_slow_client_terminated += 1
            to.end(
                Reason.BUFFER_OVERFLOW,
                f"{to.backlog} bytes are queued, the most of this target's clients",
            )

    def ping(self, now: float) -> None:
        """Ask for a sign of life (RFC 6455 section 5.5.2)."""
        self.pinged_at = now
        if self.unanswered_since is None:
            self.unanswered_since = now
        elif self.outbox.blocked:
            return  # the last one still waits to leave
        self.sendFrame(PING)

    @property
    def exchange(self) -> ExchangeWatch:
        """What was seen of this connection's end-to-end key exchanges."""
        assert self.link_side is not None  # made before the connection is routed
        return self.link_side.noise.exchange

    @property
    def end_to_end(self) -> str | None:
        """The latest end-to-end session in words, for `/state`."""
        return None if self.link_side is None else self.link_side.noise.exchange.summary

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be sent, in the transport too."""
        return self.outbox.pending

    @property
    def backlog(self) -> int:
        """Bytes that wait until the transport takes more."""
        return self.outbox.queued

    # -- back-pressure on what this connection sends us ----------------------------------------------------

    @property
    def paused(self) -> bool:
        return bool(self._paused_by)

    def pause_reading(self, cause: object) -> None:
        if not self._paused_by and not self.lost and self.ending is None:
            self.transport.pauseProducing()
        self._paused_by |= {cause}

    def resume_reading(self, cause: object) -> None:
        if cause not in self._paused_by:
            return
        self._paused_by -= {cause}
        if not self._paused_by:
            self._read_on()

    def _read_on(self) -> None:
        if not self.lost and not self.postponed:
            # While we did not read, no clock ran against the peer.
            self.last_seen = self.pinged_at = self.factory.clock.seconds()
            self.unanswered_since = None
            self.transport.resumeProducing()

    def _resumed(self) -> None:
        if self._pong_due is not None and self.state == self.STATE_OPEN:
            payload, self._pong_due = self._pong_due, None
            self.sendFrame(PONG, payload)
        elif self.state == self.STATE_CLOSED:
            self._let_go()

    # -- ending ------------------------------------------------------------------------------------------

    def end(
        self,
        reason: Reason,
        detail: str = "",
        *,
        reply: str | None = None,
        logged_as: Reason | None = None,
        code: int | None = None,
        text: str | None = None,
        delay: float = 0.0,
        details: dict[str, Any] | None = None,
        logged: bool = True,
    ) -> None:
        """Close from our side: what is queued goes first, then `reply`, then the Close frame, after `delay` seconds.

        From now on the connection is no part of the routing and whatever it sends is thrown away.
        """
        if self.ending is not None:
            return
        if reply is not None and not (
            self.outbox.blocked and self.outbox.pending >= self.factory.max_pending
        ):
            self.outbox.write(self.frame(reply.encode()))
        entry = reason.entry
        self.ending = Ending(reason, code or entry.close, entry.close_text if text is None else text)
        self._stop_listening()
        if self.link_side is not None:
            self.link_side.relay_closes()
        if logged:
            self.factory.hub.ended(self, logged_as or reason, detail, details or {})
        if self._paused_by:
            self._read_on()  # thrown away, but it must be read, or the peer never sees our Close
        if delay:
            self._deadline = self.factory.clock.callLater(delay, self._send_close)
        else:
            self._send_close()

    def _stop_listening(self) -> None:
        self.receive = _ignored
        self.judge = None
        self.decide = _undecided
        self.count_forwarded = _uncounted

    def _send_close(self) -> None:
        self._deadline = self.factory.clock.callLater(CLOSE_TIMEOUT, self._out_of_time)
        assert self.ending is not None
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(
                code=self.ending.code, reasonUtf8=self.ending.text.encode()[:123], isReply=False
            )

    def cut(self, reason: Reason) -> None:
        """Drop the connection without a Close: nobody is there to read it."""
        if self.ending is None:
            self.ending = Ending(reason, CloseCode.GOING_AWAY, "")
            self._stop_listening()
            if self.link_side is not None:
                self.link_side.relay_closes()
            self.factory.hub.ended(self, reason, "", {})
        self._give_up()

    def _out_of_time(self) -> None:
        if self.outbox.idle and self.state != self.STATE_CLOSED:
            # Everything has left, only the answer is missing: an orderly FIN, since a reset could still take
            # what the peer has not read from its own buffer.
            self.dropConnection()
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._cancel_deadline()
        if not self.lost:
            self.transport.abortConnection()

    def _let_go(self) -> None:
        """Give the TCP connection up once everything queued has gone."""
        if self.lost or not self.outbox.idle:
            return
        self.transport.unregisterProducer()  # TLS waits for it before it says good-bye
        if self.outbox.drained:
            TURN.lose(self.transport)
        else:
            self.transport.loseConnection()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    # -- what Autobahn decides, done our way -----------------------------------------------------------------

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        self.failedByMe = True  # what follows of the message is not kept
        if self.ending is None:
            self.factory.counters.ws_frame_too_large += 1
            self.end(Reason.FRAME_TOO_LARGE, f"{msg_size} bytes announced, {max_msg_size} allowed")

    def _fail_connection(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        self.failedByMe = True
        if code == CloseCode.INVALID_PAYLOAD:
            self.end(Reason.FRAME_NOT_UTF8, reason)
        else:
            self.end(Reason.PROTOCOL_ERROR, reason)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> Any:
        valid = code is None or code in self.CLOSE_STATUS_CODES_ALLOWED or 3000 <= code <= 4999
        if valid and self.ending is None and self.state == self.STATE_OPEN:
            self._peer_gone()
            self.factory.hub.left(self, "closed by peer", code)
        return super().onCloseFrame(code, reasonRaw)

    def _peer_gone(self) -> None:
        if self.link_side is not None:
            self.link_side.peer_gone()

    def peer_gone(self) -> None:
        """Take the connection out of routing: TLS is over (close_notify, or an error), and nothing can be sent.

        The TLS transport ends the TCP connection, within its own time limit. Input that was postponed comes first.
        """
        if not self.lost and not self._gone:
            self._gone = True
            if not self.postponed:
                self._tls_over()

    def _tls_over(self) -> None:
        self.state = self.STATE_CLOSED
        self._cancel_deadline()
        self._peer_gone()
        self.factory.hub.left(self, "closed by peer", None)
        self._stop_listening()
        self.outbox.stopProducing()

    def dropConnection(self, abort: bool = False) -> None:
        """The closing handshake is done. Autobahn would abort here and lose what is still queued."""
        if self.state != self.STATE_CLOSED:
            self.state = self.STATE_CLOSED
            self._cancel_deadline()
        TURN.when_sent(self._drop)

    def _drop(self) -> None:
        self._let_go()
        if not self.lost and self._deadline is None:
            self._deadline = self.factory.clock.callLater(CLOSE_TIMEOUT, self._give_up)

    def connectionLost(self, reason: Failure) -> None:
        if self.lost:
            return
        self.lost = True
        self._cancel_deadline()
        self.state = self.STATE_CLOSED
        self.factory.connections.discard(self)
        self._peer_gone()
        self.factory.hub.left(self, "connection lost", None)
        self.outbox.stopProducing()
        self._paused_by = _BY_NOBODY
        self.postponed = b""
        self._stop_listening()
        callbacks, self._when_lost = self._when_lost, []
        for callback in callbacks:
            callback()
        self._forget()

    def _forget(self) -> None:
        """Let go of all who know us, so that everything is freed now, while it is in the caches, and not by the collector."""
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.close(self.transport)
        link, self.link_side = self.link_side, None
        if link is not None:
            link.close()


class ConnectionFactory(Factory):
    """Makes connections and knows them all. The handshake is the upgrade resource's."""

    def __init__(self, clock: IReactorTime, hub: Hub, protocol: type[Connection] = Connection) -> None:
        super().__init__(clock, hub.config.frame_max_bytes)
        self.clock = clock
        self.hub = hub
        self.counters = hub.counters
        self.max_pending = hub.config.max_pending_bytes
        self.frame_max_bytes = hub.config.frame_max_bytes
        self.fast_path = hub.config.fast_path
        self.connections: set[Connection] = set()
        self.protocol = self.with_options(protocol)

    def buildProtocol(self, addr: object) -> Connection:
        raise NotImplementedError("connections come through the upgrade resource: use `adopt`")

    def connection(self, connection_id: str, ip: str) -> Connection:
        """A connection that is not yet on a transport."""
        made: Connection = self.protocol(connection_id, ip)
        made.factory = self
        return made
