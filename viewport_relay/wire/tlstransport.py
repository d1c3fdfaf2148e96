"""TLS between a TCP transport and the protocol above it: Twisted's, with a shorter way for frames (`tlsflow`).

Handshake, HTTP, alerts, the end of TLS, and whatever OpenSSL cannot do at once, are left to Twisted's transport.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from viewport_relay.admission.addresses import counted_as, peer_host
from viewport_relay.reasons import Reason
from viewport_relay.windows import Window
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlsflow import TLSFlow
from viewport_relay.wire.tlsrecords import (
    SharedMemory,
    ciphertext_left,
    record_layer,
    stop_at_records_without_data,
)
from viewport_relay.wire.transport import DirectAccess, Sender, Sink, read_nothing
from viewport_relay.wire.turn import turn_of

#: Seconds that the TCP connection has to send what it holds once TLS is over.
FLUSH_TIMEOUT: Final = 10.0

#: Bytes of a handshake that are kept until its turn; then the transport is paused. One read comes on top.
_EARLY_MAX: Final = 16_384

#: Records without data that a peer may send within a minute: new keys, attempts to renegotiate. Each costs 15 µs and is
#: answered; peers have no need for more than a few in a day.
WITHOUT_DATA_MAX: Final = 32


class TLSTransport(DirectAccess, TLSMemoryBIOProtocol):
    """Twisted's TLS transport, which decrypts into a sink, sends at once, and ends when the peer can no longer be written to.

    * Twisted's usual one (`BufferingTLSTransport`) sends after a turn of the reactor. Here the outbox already joins what
      belongs together, so one call encrypts it into as few records as it takes, and sends them.
    * When TLS is over, the wrapped protocol's `peer_gone()` is called, if it has one, and the TCP connection has
      `FLUSH_TIMEOUT` seconds to send what it holds. Twisted alone would stay for ever: it resumes the paused producer
      where it should close.
    * A peer that sends more than `WITHOUT_DATA_MAX` records without data within a minute is cut off, and the wrapped
      protocol's `failed()` is called, if it has one.
    """

    factory: TLSFactory
    transport: Any  # a DirectTransport, or a wrapper of one, or another reactor's
    _flush: IDelayedCall | None = None
    _early = b""  # received while the handshake waits for its turn
    _without_data: Window | None = None  # made for the first record without data

    def __init__(self, factory: TLSFactory, wrappedProtocol: Any, _connectWrapped: bool = True) -> None:
        super().__init__(factory, wrappedProtocol, _connectWrapped)  # type: ignore[no-untyped-call]
        self._flow = TLSFlow(factory.memory, self)

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        stop_at_records_without_data(self._tlsConnection)

    def _begun(self) -> TLSFlow:
        """The flow, which takes over from Twisted's transport once the handshake is over."""
        flow = self._flow
        if not flow.begun and self._handshakeDone and not (self._lostTLSConnection or self.disconnecting):
            layer = record_layer(self._tlsConnection, self.factory.memory)
            if layer is not None:
                flow.begin(layer, self.transport)
        return flow

    # -- receiving ---------------------------------------------------------------------------------------------

    def read_into(self, sink: Sink) -> Callable[[memoryview], int]:
        flow = self._begun()
        return flow.read_into(sink) if flow.sends else read_nothing

    def dataReceived(self, data: bytes) -> None:
        if self._handshakeDone:
            self._flow.take(data)
            return
        waits = bool(self._early)
        self._early += data
        if not waits:
            self.factory.queue.run(counted_as(peer_host(self.transport)), self._handshake)
        if len(self._early) > _EARLY_MAX:
            self.transport.pauseProducing()

    def _handshake(self) -> None:
        """Go on with the handshake, and with what the peer has sent behind it."""
        if self._tlsConnection is None:  # lost meanwhile
            return
        data, self._early = self._early, b""
        if len(data) > _EARLY_MAX:
            self.transport.resumeProducing()
        self._flow.take(data)

    # -- TwistedTLS ---------------------------------------------------------------------------------------------

    def take_ciphertext(self, data: bytes) -> None:
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        self._read_on()

    def read_rest(self) -> None:
        if self._tlsConnection is not None:
            self._flushReceiveBIO()  # type: ignore[no-untyped-call]
            self._read_on()

    def _read_on(self) -> None:
        """Read what is left: Twisted stops behind each record without data, as OpenSSL does."""
        while self._handshakeDone and not self._lostTLSConnection and self._tlsConnection is not None:
            if not ciphertext_left(self._tlsConnection) or not self.without_data():
                break
            self._flushReceiveBIO()  # type: ignore[no-untyped-call]

    def without_data(self) -> bool:
        if self._without_data is None:
            self._without_data = Window()
        if self._without_data.hit(self.factory._clock.seconds(), WITHOUT_DATA_MAX):
            return True
        failed = getattr(self.wrappedProtocol, "failed", None)
        if failed is not None:
            failed(
                Reason.PROTOCOL_ERROR,
                f"more than {WITHOUT_DATA_MAX} TLS records without data within a minute",
            )
        self.abortConnection()
        return False

    def send_rest(self) -> None:
        self._flushSendBIO()  # type: ignore[no-untyped-call]

    # -- sending -----------------------------------------------------------------------------------------------

    @property
    def sender(self) -> Sender:
        return self._begun()

    @property
    def sent_everything(self) -> bool:
        return bool(
            self._flow.sends and not self._appSendBuffer and getattr(self.transport, "sent_everything", False)
        )

    def _bufferedWrite(self, octets: bytes) -> None:
        super()._bufferedWrite(octets)  # type: ignore[no-untyped-call]
        self._flow.end()  # OpenSSL takes no more before something is read; it does so in a handshake only

    # -- the end -----------------------------------------------------------------------------------------------

    def loseConnection(self) -> None:
        self._flow.end_sending()
        super().loseConnection()  # type: ignore[no-untyped-call]

    def abortConnection(self) -> None:
        self._flow.end()
        if self._tlsConnection is not None:  # else it is lost already
            super().abortConnection()  # type: ignore[no-untyped-call]

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        self._flow.end()
        if reason is not None:
            reason.tb = None  # its frames refer to it: only the collector would free that cycle
            if reason.value is not None:
                reason.value.__traceback__ = None
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
        self._flow.forget()
        if not self.disconnecting:  # else Twisted's would go on with the end of TLS
            self.unregisterProducer()  # type: ignore[no-untyped-call]  # it refers to this transport
        if self._flush is not None and self._flush.active():
            self._flush.cancel()


class TLSFactory(TLSMemoryBIOFactory):
    """The server side of TLS around another factory's connections."""

    protocol = TLSTransport

    def __init__(
        self,
        context: ServerContext,
        wrapped: Any,
        clock: IReactorTime,
        queue: FairQueue,
        memory: SharedMemory | None = None,
    ) -> None:
        """`wrapped` makes the protocols above TLS. Handshakes take their turn in `queue`, by address.

        `memory` is for factories of few connections, which share it.
        """
        super().__init__(context, False, wrapped, clock)
        self.queue = queue
        self.memory = memory or SharedMemory(turn_of(clock).arena)
