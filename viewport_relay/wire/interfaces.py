"""Interfaces between the parts of `wire`, so that each part is built and tested alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.interfaces import IPushProducer

from viewport_relay.protocol.json import Message

#: Judges one message of a peer: (peer, message, monotonic seconds) -> its route. A route has `outlet`: the receiver to
#: which the message goes, or None when `Decide` has to carry the route out. The route None means: not UTF-8.
Judge: TypeAlias = Callable[[Any, Message, float], Any]

#: Carries out a route that is no receiver: (peer, route, message).
Decide: TypeAlias = Callable[[Any, Any, bytes], None]

#: Counts messages of a peer that were forwarded: (peer, messages, their bytes, monotonic seconds).
Count: TypeAlias = Callable[[Any, int, int, float], None]

#: Sends a Pong frame with this payload (RFC 6455 section 5.5.3).
Pong: TypeAlias = Callable[[bytes], None]


class Feeder(Protocol):
    """A sender of messages to a connection, paused while its messages wait. `cause` names the receiver."""

    def pause_reading(self, cause: object) -> None: ...
    def resume_reading(self, cause: object) -> None: ...


class MessageSink(Protocol):
    """The outbox of a receiver, as the fast path uses it."""

    #: Not None while an unsealed frame may be given to `hold` without asking anything else.
    ready: object | None
    #: Whether messages leave as a link's records, so that no frame can be made of them here.
    sealed: bool

    def hold(self, data: bytes) -> None:
        """Send frames at the end of the turn."""

    def take(self, data: bytes | memoryview, feeder: Feeder | None = None) -> bool:
        """Send frames now or in the feeder's lane; False when they are not taken. A memoryview is used up on return."""

    def send(self, message: bytes, feeder: Feeder | None = None) -> bool:
        """Make a frame of the message (on a link, records) and take it."""

    def send_all(self, messages: Sequence[Message], size: int, feeder: Feeder | None = None) -> bool:
        """Make records of messages that have `size` bytes together, and take all or none of them. Only while `sealed`."""


class HasOutbox(Protocol):
    """A connection that messages go to."""

    @property
    def outbox(self) -> MessageSink: ...


class StreamTransport(Protocol):
    """The part of a Twisted stream transport that a connection uses."""

    def write(self, data: bytes, /) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class Handler(Protocol):
    """The handler of a connection (glossary)."""

    def closed(self, ending: Any) -> None:
        """The connection is over (`ending.Ending` says why): called exactly once, at the first sign."""


class Closing(Protocol):
    """A reader's reports about the end of its connection (inputs of `life.LifeInputs`)."""

    def peer_closed(self, code: int | None, answer: bytes) -> None:
        """A Close frame began the closing handshake; `answer` is the payload of the Close that answers it."""

    def close_answered(self) -> None:
        """A Close frame answered the relay's."""

    def failed(self, reason: Any, detail: str) -> None:
        """The peer broke RFC 6455 or the frame limit."""


class LinkCipher(Protocol):
    """The records of a Noise link that is up. What the methods raise ends the link: `Refusal`, for the handshake's owner."""

    def encrypt_records(
        self, plaintexts: Sequence[Message], headers: Sequence[bytes], parts: list[bytes]
    ) -> None:
        """Append to `parts`, for each short message, the header for its length and its record."""

    def message_size(self, length: int, /) -> int:
        """The length of the records of a message."""

    def encrypt_into(self, plaintext: Message, out: memoryview) -> None:
        """Write the records of a message."""

    def decrypt_record(self, record: memoryview) -> bytes:
        """The frame inside a message that is one record, which is given without its length."""

    def decrypt_into(self, message: memoryview, out: memoryview) -> int:
        """Write the frame inside any message; its length."""
