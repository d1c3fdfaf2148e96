"""The outbox of a connection on a Noise link: messages leave as the link's records.

A link counts its records in the order in which they leave, so a message is encrypted at the last moment: just before the
socket or the transport gets it. What is held until the end of a turn, and what waits, is still plaintext.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viewport_relay.protocol.framing import BINARY, COPIED, RECORD_HEADERS, USUAL, frame_header
from viewport_relay.protocol.json import Message
from viewport_relay.reasons import Refusal
from viewport_relay.wire.interfaces import Feeder, LinkCipher, StreamTransport
from viewport_relay.wire.outbox import Outbox
from viewport_relay.wire.turn import MOST_HELD, Turn


class Unsealed(bytes):
    """A message that waits, and is encrypted when it leaves."""

    __slots__ = ()


class LinkOutbox(Outbox):
    """The outbox of a connection on a Noise link. Before `link_up` it sends as any other outbox does."""

    __slots__ = ("_cipher", "_holds_messages", "_refuse")

    def __init__(self, turn: Turn, transport: StreamTransport, may_wait: Callable[[int], bool]) -> None:
        super().__init__(turn, transport, may_wait)
        self._cipher: LinkCipher | None = None
        self._refuse: Callable[[Refusal], None] | None = None
        self._holds_messages = False  # whether what is held is messages, and no frames

    def link_up(self, cipher: LinkCipher, refuse: Callable[[Refusal], None]) -> None:
        """Send messages as records from now on. What `cipher` raises, when the link can carry no more, goes to `refuse`."""
        self._cipher = cipher
        self._refuse = refuse
        self.sealed = True
        self.ready = None

    def send(self, message: bytes, feeder: Feeder | None = None) -> bool:
        if self._cipher is None:
            return super().send(message, feeder)
        return self.send_all((message,), len(message), feeder)

    def send_all(self, messages: Sequence[Message], size: int, feeder: Feeder | None = None) -> bool:
        if not self._may_take():
            return False
        if self._held is not None and not self._holds_messages:
            self.send_held()
        turn = self._turn
        if (
            size < COPIED
            and turn.running
            and not self.blocked
            and (self._free or self._emptied()) is not None
        ):
            self._hold_messages(messages, turn, size)
            return True
        if self._held is not None:
            self.send_held()
        self._leave(messages, feeder if self._may_wait is None else None)
        if self.blocked:
            self.on_backlog()
        return True

    def hold(self, data: bytes | memoryview) -> None:
        if self._holds_messages:
            self.send_held()
        super().hold(data)

    def _hold_messages(self, messages: Sequence[Message], turn: Turn, size: int) -> None:
        if self._held is None:
            self._held = []
            self._holds_messages = True
            turn.outboxes.append(self)
        self._held.extend(messages)
        turn.held += size
        if turn.held >= MOST_HELD:
            turn.send()

    def send_held(self) -> None:
        if not self._holds_messages:
            super().send_held()
            return
        held, self._held, self._holds_messages = self._held, None, False
        assert held is not None
        self._leave(held, None)

    def _leave(self, messages: Sequence[Message], feeder: Feeder | None) -> None:
        """Encrypt and send messages; or let them wait. Nothing is held."""
        cipher = self._cipher
        if cipher is None:  # lost meanwhile
            return
        if self.blocked:
            for message in messages:
                self._wait(feeder, Unsealed(message))
            return
        parts: list[bytes] = []
        refused: Refusal | None = None
        try:
            if max(map(len, messages)) <= USUAL:
                cipher.encrypt_records(messages, RECORD_HEADERS, parts)
            elif len(messages) == 1:
                self.write(self._framed(cipher, messages[0]), feeder)
            else:
                for message in messages:
                    parts.append(bytes(self._framed(cipher, message)))
        except Refusal as refusal:
            refused = refusal
        if parts:
            self.write(b"".join(parts), feeder)
        if refused is not None and self._refuse is not None:
            self._refuse(refused)

    def _framed(self, cipher: LinkCipher, message: Message) -> memoryview:
        """A message of any size as a frame of records, to be used up at once: the next long message may come to the same memory."""
        size = cipher.message_size(len(message))
        header = frame_header(BINARY, size)
        start, stop = len(header), len(header) + size
        buffers = self._turn.arena.buffers
        buffer = buffers.take(stop)
        buffer.view[:start] = header
        cipher.encrypt_into(message, buffer.view[start:stop])
        buffers.give(buffer)
        return buffer.view[:stop]

    def _as_sent(self, data: bytes) -> bytes:
        if type(data) is not Unsealed:
            return data
        assert self._cipher is not None and self._refuse is not None
        try:
            return bytes(self._framed(self._cipher, data))
        except Refusal as refusal:
            self._refuse(refusal)
            return b""

    def stopProducing(self) -> None:
        super().stopProducing()
        self._cipher = self._refuse = None
        self._holds_messages = False
