"""RFC 6455 by Autobahn, without what it does for users that the relay is not.

Autobahn parses, checks and keeps the protocol's state, for whatever the fast path does not take. Left out is what it
makes for each connection and each message although nobody asks (Deferreds, descriptions for debug lines, copies of its
options), and what a hostile peer could have it keep. What a message means and how a connection ends is `websocket.py`'s.
"""

from __future__ import annotations

import struct
from collections import deque
from functools import cached_property
from typing import Any, Final

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.interfaces import IReactorTime

#: Opcodes (section 5.2).
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10


def frame_header(opcode: int, length: int) -> bytes:
    """Header of an unfragmented, unmasked frame (section 5.2)."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, length)
    return struct.pack("!BBQ", 0x80 | opcode, 127, length)


class _AsOpened:
    """What Autobahn's `_connectionMade` gives each connection, said once: nearly all of it stays as it is for good.

    A test compares this with what the installed Autobahn sets.
    """

    state = WebSocketProtocol.STATE_CONNECTING
    send_state = WebSocketProtocol.SEND_STATE_GROUND
    data = b""
    triggered = False
    trackedTimings = None
    _perMessageCompress = None
    trafficStats = TrafficStats()  # of all together: nobody reads it
    wasMaxFramePayloadSizeExceeded = wasMaxMessagePayloadSizeExceeded = False
    closedByMe = failedByMe = droppedByMe = wasClean = False
    wasNotCleanReason = None
    wasServerConnectionDropTimeout = wasOpenHandshakeTimeout = wasCloseHandshakeTimeout = False
    wasServingFlashSocketPolicyFile = False
    localCloseCode = localCloseReason = remoteCloseCode = remoteCloseReason = None
    openHandshakeTimeoutCall = closeHandshakeTimeoutCall = None
    autoPingTimeoutCall = autoPingPending = autoPingPendingCall = autoPingPendingSent = None
    autoPingPendingSeq = 0
    # And of an opening handshake that went well:
    websocket_version = 13
    inside_message = False
    current_frame = None

    @cached_property
    def utf8validator(self) -> Any:
        """For messages that do not take the fast path."""
        return Utf8Validator()

    @cached_property
    def send_queue(self) -> deque[Any]:
        """For sending that does not take the outbox; nothing does."""
        return deque()


class Protocol(_AsOpened, WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """Autobahn's protocol from the open state on. `onMessage` and `onCloseFrame` are called as Autobahn's."""

    # Autobahn's own:
    current_frame: Any
    message_data: Any

    def __init__(self) -> None:
        # Without Autobahn's own, which makes two Deferreds and a description of the transport for who asks for them.
        pass

    def connectionMade(self) -> None:
        # Without Autobahn's own, see `_AsOpened`. The channel that had the transport before has set TCP_NODELAY.
        pass

    @property
    def between_messages(self) -> bool:
        """Whether the next byte begins a message, as far as Autobahn is concerned."""
        return bool(
            self.state == self.STATE_OPEN
            and self.current_frame is None
            and not self.inside_message
            and not self.data
        )

    def _dataReceived(self, data: bytes) -> None:
        if self.state != self.STATE_CLOSED:  # Autobahn would keep what it does not read any more
            super()._dataReceived(data)

    def onFrameData(self, payload: bytes) -> Any:
        # A control frame that is too long was refused by its header. Autobahn would keep what follows of it.
        if self.failedByMe and self.current_frame.opcode > 7 and self.current_frame.length > 125:
            return None
        return super().onFrameData(payload)

    def onMessageFrameData(self, payload: bytes) -> None:
        # Autobahn keeps every piece as it comes: tiny fragments cost many times their size, empty ones have no end.
        if self.failedByMe or not payload:
            return
        pieces: list[bytes | bytearray] = self.message_data
        if len(pieces) < 2:
            pieces.append(bytearray(payload) if pieces else payload)
        else:
            pieces[1] += payload

    def onMessageEnd(self) -> None:
        # Autobahn's own goes on to make a Deferred for each message, for listeners that we do not have.
        chunks: list[bytes] = self.message_data
        self.message_data = None
        if not self.failedByMe:
            self.onMessage(chunks[0] if len(chunks) == 1 else b"".join(chunks), self.message_is_binary)


class Factory(WebSocketServerFactory):  # type: ignore[misc]  # Autobahn is not typed
    """Autobahn's factory with the wire contract's options: no extension, masks and UTF-8 checked, no timers of its own."""

    def __init__(self, clock: IReactorTime, max_message: int) -> None:
        """`max_message`: bytes of the longest message, over all its fragments."""
        super().__init__(reactor=clock)
        self.setProtocolOptions(
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            perMessageCompressionAccept=lambda _: None,
            echoCloseCodeReason=True,
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            tcpNoDelay=True,
        )
        self.resetProtocolOptions = None
        self.setProtocolOptions(maxMessagePayloadSize=max_message)

    def with_options(self, protocol: type[Protocol]) -> type[Any]:
        """The same with our options as its attributes: Autobahn would copy them, two dozen, into each connection."""
        options: dict[str, Any] = {"CONFIG_ATTRS": ()}
        for name in protocol.CONFIG_ATTRS:
            value = getattr(self, name)
            options[name] = staticmethod(value) if callable(value) else value
        return type(protocol.__name__, (protocol,), options)
