"""RFC 6455 by Autobahn, as a codec: bytes in, messages and control frames out. It sends nothing and owns no connection.

Autobahn parses, checks and keeps the protocol's state, for whatever the fast path does not take. Left out are objects that the
relay does not need (Deferreds, descriptions for debug lines and copies of options, for each connection or message), and
data that a hostile peer could make Autobahn keep.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, Protocol

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.interfaces import IReactorTime

from viewport_relay.protocol.framing import CLOSE, LONG
from viewport_relay.reasons import CloseCode, Reason


class CodecEvents(Protocol):
    """The events of a codec."""

    def long_message(self, most: int) -> None:
        """More than `LONG` bytes of a message have come, of at most `most`."""

    def message_received(self, payload: bytes, is_binary: bool) -> None:
        """A whole message."""

    def ping_received(self, payload: bytes) -> None:
        """A Ping frame."""

    def close_received(self, code: int | None, answer: bytes) -> None:
        """A valid Close frame, before one was sent; `answer` is the payload of the Close that answers it."""

    def close_answered(self) -> None:
        """A Close frame after one was sent."""

    def violated(self, reason: Reason, detail: str) -> None:
        """The protocol or the limit was violated. What follows is parsed for a Close frame only."""


class Codec(WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """One connection's codec, in the open state. A frame that Autobahn would send is reported to `events` or left out.

    Made by `CodecFactory`. The reader uses `feed`, `between_messages`, `closing`, `discard`, `onCloseFrame`, `limit`.
    """

    # As after an opening handshake that went well:
    state = WebSocketServerProtocol.STATE_OPEN
    websocket_version = 13
    inside_message = False
    current_frame: Any = None
    message_data: Any = None

    @cached_property
    def utf8validator(self) -> Any:
        """The validator of messages that do not take the fast path."""
        return Utf8Validator()

    def __init__(self, events: CodecEvents) -> None:
        # Autobahn's own `__init__` is not called: it makes two Deferreds and a description of the transport.
        self.events = events

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        if self.state != self.STATE_CLOSED:  # Autobahn would keep what it does not read any more
            self._dataReceived(data)

    @property
    def between_messages(self) -> bool:
        """Whether the next byte begins a message."""
        return bool(
            self.state == self.STATE_OPEN
            and self.current_frame is None
            and not self.inside_message
            and not self.data
        )

    def limit(self, size: int) -> None:
        """The longest message from now on, bytes over all its fragments."""
        self.maxMessagePayloadSize = size

    def discard(self) -> None:
        """Keep no message from now on, and check none for UTF-8: control frames are all that matters."""
        self.failedByMe = True
        self.utf8validateIncoming = self.utf8validateIncomingCurrentMessage = False
        if self.message_data is not None:
            self.message_data = []

    def closing(self) -> None:
        """A Close frame was sent: the next one answers it."""
        if self.state == self.STATE_OPEN:
            self.state = self.STATE_CLOSING
            self.closedByMe = True

    # -- Autobahn's hooks --------------------------------------------------------------------------------------

    def onPing(self, payload: bytes) -> None:
        if self.state == self.STATE_OPEN:
            self.events.ping_received(payload)

    def sendFrame(self, opcode: int, payload: bytes = b"", **_: Any) -> None:
        """Called for nothing but the answer to a Close frame."""
        assert opcode == CLOSE
        self.state = self.STATE_CLOSED
        self.events.close_received(self.remoteCloseCode, payload)

    def dropConnection(self, abort: bool = False) -> None:
        """Called when the closing handshake is complete, or fails again."""
        if self.state == self.STATE_CLOSING:
            self.state = self.STATE_CLOSED
            if self.closedByMe:
                self.events.close_answered()

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        self.failedByMe = True  # what follows of the message is not kept
        self.events.violated(
            Reason.FRAME_TOO_LARGE, f"{msg_size} bytes announced, RELAY_FRAME_MAX_BYTES={max_msg_size}"
        )

    def _fail_connection(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        self.failedByMe = True
        if code == CloseCode.INVALID_PAYLOAD:
            self.events.violated(Reason.FRAME_NOT_UTF8, reason)
        else:
            self.events.violated(Reason.PROTOCOL_ERROR, reason)

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
        have = sum(map(len, pieces))
        if have > LONG >= have - len(payload):
            self.events.long_message(self.maxMessagePayloadSize)

    def onMessageEnd(self) -> None:
        # Autobahn's own method also makes a Deferred for each message, for listeners that the relay does not have.
        chunks: list[bytes] = self.message_data
        self.message_data = None
        if not self.failedByMe:
            message = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self.events.message_received(message, self.message_is_binary)


class CodecFactory:
    """Makes codecs. `max_message` is the longest message, bytes over all its fragments.

    The wire protocol's options: no extension, masks and UTF-8 checked, no timers of Autobahn's.
    """

    def __init__(self, clock: IReactorTime, max_message: int) -> None:
        factory: Final = WebSocketServerFactory(reactor=clock)
        factory.setProtocolOptions(
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            perMessageCompressionAccept=lambda _: None,
            echoCloseCodeReason=True,
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            tcpNoDelay=True,
            maxMessagePayloadSize=max_message,
        )
        # The options and first values, some sixty, that Autobahn would set on each connection, as attributes of a class.
        opened: Any = WebSocketServerProtocol()
        opened.factory = factory
        opened._connectionMade()
        given = {name: value for name, value in vars(opened).items() if name not in vars(Codec)}
        given["perMessageCompressionAccept"] = staticmethod(given["perMessageCompressionAccept"])  # no method
        self._made: type[Codec] = type("Codec", (Codec,), given)

    def codec(self, events: CodecEvents) -> Codec:
        """The codec of a connection that was just opened."""
        return self._made(events)
