"""TLS between a TCP transport and the reader and outbox of a connection: Twisted's, with a shorter way for frames.

    socket -> factory.ciphertext -> OpenSSL -> the reader's arena
    outbox -> OpenSSL -> socket

Handshake, HTTP, alerts, the end of TLS, and whatever OpenSSL cannot do at once, go Twisted's way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from viewport_relay.wire.tlsrecords import PIECE, RECORD, SEALED, RecordCount, RecordLayer, record_layer
from viewport_relay.wire.transport import DirectAccess, Sender, Sink, read_nothing

#: Seconds that the TCP connection has to send what it holds once TLS is over.
FLUSH_TIMEOUT: Final = 10.0


class TLSTransport(DirectAccess, TLSMemoryBIOProtocol):
    """Twisted's TLS transport, which decrypts into a sink, sends at once, and ends with a peer that cannot be written.

    * Twisted's usual one (`BufferingTLSTransport`) sends after a turn of the reactor. Here the outbox already joins what
      belongs together, so one call encrypts it into as few records as it takes, and sends them.
    * When TLS is over, the wrapped protocol's `peer_gone()` is called, if it has one, and the TCP connection has
      `FLUSH_TIMEOUT` seconds to send what it holds. Twisted alone would stay for ever: it resumes the paused producer
      where it should close.
    """

    factory: TLSFactory
    transport: Any  # a DirectTransport, or a wrapper of one, or another reactor's
    _flush: IDelayedCall | None = None
    _sink: Sink | None = None
    _layer: RecordLayer | None = None  # until the connection is lost

    def __init__(self, factory: TLSFactory, wrappedProtocol: Any, _connectWrapped: bool = True) -> None:
        super().__init__(factory, wrappedProtocol, _connectWrapped)  # type: ignore[no-untyped-call]
        self._count = RecordCount()
        #: Where the TCP transport reads to.
        self.space = factory.ciphertext

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        self._layer = record_layer(self._tlsConnection)

    # -- receiving ---------------------------------------------------------------------------------------------

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        self._sink = sink
        if isinstance(self.transport, DirectAccess):
            self.transport.read_into(self)
        return read_nothing

    def received(self, size: int) -> None:
        """`size` bytes of ciphertext were read into `space`."""
        self._decrypt(self.space[:size])

    def dataReceived(self, data: bytes) -> None:
        self._decrypt(data)

    def _decrypt(self, data: bytes | memoryview) -> None:
        """Decrypt the records that are whole now, and give them to the sink together, as far as its space goes."""
        count = self._count.ended(data)
        sink, layer = self._sink, self._layer
        if sink is None or layer is None or self._appSendBuffer or self._lostTLSConnection or self._aborted:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
            return
        layer.put(data)
        space, have, rest = sink.space, 0, False
        while count:
            room = len(space) - have
            size = layer.open_into(space[have:] if have else space)
            if not size:
                # A record without data (an alert, a new key), or the end: Twisted's own meets it again, and acts on it.
                rest = True
                break
            have += size
            if room >= RECORD or not layer.pending():
                count -= 1
            if have == len(space):
                sink.received(have)
                if self._sink is None or self._aborted:
                    return
                space, have = sink.space, 0
        if have:
            sink.received(have)
        if rest and self._tlsConnection is not None:
            self._flushReceiveBIO()  # type: ignore[no-untyped-call]

    # -- sending -----------------------------------------------------------------------------------------------

    @property
    def sender(self) -> Sender:
        return self

    @property
    def sent_everything(self) -> bool:
        return bool(
            self._handshakeDone
            and not self._lostTLSConnection
            and not self._appSendBuffer
            and not self.disconnecting
            and getattr(self.transport, "sent_everything", False)
        )

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Encrypt bytes and send the records; how many of the bytes were taken. Called while `sent_everything`.

        No more is encrypted once the socket is full: what waits is bounded as plaintext.
        """
        layer, at, end, piece = self._layer, 0, len(data), data
        while layer is not None:
            if end > PIECE:
                piece = memoryview(data)[at : at + PIECE]
            records = layer.seal(piece)
            if records is None:  # not taken: `write` finds out why
                break
            at += len(piece)
            self.transport.send_now(records)
            if len(records) == SEALED:  # and there may be more: what was left of a handshake
                self._flushSendBIO()  # type: ignore[no-untyped-call]
            if at == end or not self.transport.sent_everything:
                break
        return at

    # -- the end -----------------------------------------------------------------------------------------------

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]
        # Nothing can be written any more, so no producer may hold up the end of the TCP connection.
        self.transport.unregisterProducer()
        if self._flush is None and self.connected:
            self._flush = self.factory._clock.callLater(FLUSH_TIMEOUT, self.transport.abortConnection)
        peer_gone = getattr(self.wrappedProtocol, "peer_gone", None)
        if peer_gone is not None:
            peer_gone()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # may find the end of TLS itself, in what was not yet decrypted
        self._sink = self._layer = None
        if self._flush is not None and self._flush.active():
            self._flush.cancel()


class TLSFactory(TLSMemoryBIOFactory):
    """TLS around another factory's connections, which share one buffer to read ciphertext into."""

    protocol = TLSTransport

    def __init__(
        self,
        contextFactory: Any,
        isClient: bool,
        wrappedFactory: WrappingFactory[Any] | Any,
        clock: IReactorTime,
    ) -> None:
        super().__init__(contextFactory, isClient, wrappedFactory, clock)
        self.ciphertext = memoryview(bytearray(PIECE))
