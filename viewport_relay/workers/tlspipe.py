"""The worker's side of TLS with several workers: it ends TLS and pipes plaintext to where the request is read.

    peer <- TLS -> worker (TLSPipe) <- socket pair -> parent (HTTP request) -> the workspace's worker

`tlsincoming` is the parent's side.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason
from viewport_relay.service.timers import with_deadline
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.reactor import adopt_stranger
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlsrecords import SharedMemory
from viewport_relay.wire.tlstransport import FLUSH_TIMEOUT, TLSFactory
from viewport_relay.wire.transport import Sender, promote
from viewport_relay.wire.turn import turn_of
from viewport_relay.workers.channels import OneProtocol

#: Seconds that pipes may take to end after the relay of their worker has drained.
DRAIN_LIMIT: Final = 2.0

#: The beginning of the answer to an upgrade whose peer is admitted.
SWITCHING: Final = b"HTTP/1.1 101 "

#: Seconds that a peer has at least for what is left, when its connection is closed.
_LEAST_FLUSH: Final = 1.0


class TLSPipes:
    """The connections for which this worker ends TLS."""

    def __init__(self, reactor: Any, context: ServerContext, queue: FairQueue, log: EventSink) -> None:
        """Handshakes take their turn in `queue`."""
        self._reactor = reactor
        self._log = log
        self._queue = queue
        self._memory = SharedMemory(turn_of(reactor).arena)
        self.context = context
        self._pipes: set[TLSPipe] = set()
        self._over: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._pipes)

    def begin(self, family: int, tcp: int, pair: int, data: bytes) -> None:
        """End TLS on the TCP connection `tcp`, of which `data` was read. Closes both descriptors, which it copies."""
        pipe = TLSPipe(self._reactor, self._ended)
        self._pipes.add(pipe)
        try:
            for descriptor in (tcp, pair):
                os.set_blocking(descriptor, False)
            self._reactor.adoptStreamConnection(pair, socket.AF_UNIX, OneProtocol(pipe.inner))
            factory = TLSFactory(
                self.context, OneProtocol(pipe.outer), self._reactor, self._queue, self._memory
            )
            transport = adopt_stranger(self._reactor, tcp, family, factory)
        except OSError as error:  # the peer has disconnected already, or there is no descriptor
            pipe.abort()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                message = f"a worker could not begin TLS: {error.strerror}"
                self._log.event("http_dropped", reason=Reason.TOO_MANY_CONNECTIONS, message=message)
        else:
            transport.protocol.dataReceived(data)
        finally:
            os.close(tcp)
            os.close(pair)

    def _ended(self, pipe: TLSPipe) -> None:
        self._pipes.discard(pipe)
        if not self._pipes and self._over is not None:
            over, self._over = self._over, None
            over.callback(None)

    def abort(self) -> None:
        """Abort every connection."""
        for pipe in tuple(self._pipes):
            pipe.abort()

    def drain(self) -> Deferred[None]:
        """Fire when every connection has ended. Those that are left after `DRAIN_LIMIT` are aborted."""
        if not self._pipes:
            return succeed(None)
        self._over = Deferred()
        return with_deadline(self._reactor, DRAIN_LIMIT, self._over, self.abort)


class TLSPipe:
    """Carries plaintext between the TLS connection of a peer (`outer`) and a socket pair (`inner`), with back-pressure."""

    def __init__(self, reactor: Any, ended: Callable[[TLSPipe], None]) -> None:
        self._reactor = reactor
        self._ended = ended
        space = turn_of(reactor).arena.space
        self.outer = _Outer(self, space, reactor)
        self.inner = _Inner(self, space, reactor)
        self._late: IDelayedCall | None = None

    def connected(self) -> None:
        """Called by each end. When both are connected, each pauses the other while its own peer does not read."""
        if self.inner.transport is not None and self.outer.transport is not None:
            self.inner.transport.registerProducer(self.outer, True)
            self.outer.transport.registerProducer(self.inner, True)

    def over(self, end: _End) -> None:
        """Called when one end is over. The other end sends what it holds and closes.

        Its peer has FLUSH_TIMEOUT seconds to read, counted from when that peer stopped reading.
        """
        if self._late is not None:
            return
        other = self.outer if end is self.inner else self.inner
        limit = max(FLUSH_TIMEOUT - end.paused_for(), _LEAST_FLUSH)
        self._late = self._reactor.callLater(limit, self.abort)
        for each in (end, other):
            if each.transport is not None:
                each.transport.unregisterProducer()
        if other is self.inner and other.transport is not None and other.transport.sent_everything:
            # Not loseConnection: a Unix socket whose peer has much to read yet is not writable, though nothing is to be sent.
            turn = turn_of(self._reactor)
            turn.when_sent(partial(turn.lose, other.transport))
        elif other.transport is not None:
            other.transport.loseConnection()

    def lost(self) -> None:
        """Called when an end's connection is lost."""
        if self.inner.transport is None and self.outer.transport is None:
            if self._late is not None and self._late.active():
                self._late.cancel()
            self._ended(self)

    def abort(self) -> None:
        """Abort both ends."""
        for end in (self.inner, self.outer):
            if end.transport is not None:
                end.transport.abortConnection()
        self.lost()


@implementer(IPushProducer)
class _End(Protocol):
    """One end of a pipe: the producer of the other end, and a sink, where its transport is read into memory."""

    transport: Any = None
    _paused_at: float | None = None

    def __init__(self, pipe: TLSPipe, space: memoryview, clock: IReactorTime) -> None:
        self._pipe = pipe
        self._clock = clock
        #: Memory that the transport reads into.
        self.space = space

    def pauseProducing(self) -> None:
        self._paused_at = self._clock.seconds()
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused_at = None
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """No-op: `TLSPipe.over` closes the other end, after what it holds was sent."""

    def paused_for(self) -> float:
        """Seconds for which the peer of the other end has not read what was sent; 0 if it reads."""
        return 0.0 if self._paused_at is None else self._clock.seconds() - self._paused_at

    def connectionMade(self) -> None:
        self._pipe.connected()

    def received(self, size: int) -> None:
        """`size` bytes were read into `space`."""
        self._take(self.space[:size])

    def dataReceived(self, data: bytes) -> None:
        self._take(data)

    def _take(self, data: bytes | memoryview) -> None:
        """Send what was received through the other end. A memoryview is used up on return."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.transport = None
        self._pipe.over(self)
        self._pipe.lost()


@implementer(IHandshakeListener)
class _Outer(_End):
    """The end towards the peer, over TLS."""

    #: Encrypts and sends at once, after the handshake.
    sender: Sender | None = None

    def handshakeCompleted(self) -> None:
        """Read and send without Twisted's buffers from now on."""
        self.sender = self.transport.sender
        self.transport.read_into(self)

    def _take(self, data: bytes | memoryview) -> None:
        inner = self._pipe.inner.transport
        if inner is not None:
            inner.send_now(data)

    def peer_gone(self) -> None:
        """Called by `TLSTransport` when TLS is over, also while the TCP connection still sends. `TLSTransport` closes it."""
        self._pipe.over(self)


class _Inner(_End):
    """The end towards the parent, later the workspace's worker."""

    _admitted = False
    _tail = b""  # of what was received before the 101, which may come in two reads

    def connectionMade(self) -> None:
        self.transport.read_into(self)
        super().connectionMade()

    def _take(self, data: bytes | memoryview) -> None:
        outer = self._pipe.outer
        if not self._admitted:
            seen = self._tail + bytes(data)
            self._tail = seen[1 - len(SWITCHING) :]
            if SWITCHING in seen:
                self._admitted, self._tail = True, b""
                promote(outer.transport)
        if outer.transport is not None:
            sent = 0 if outer.sender is None else outer.sender.send(data)
            if sent < len(data):
                outer.transport.write(bytes(data[sent:]))
