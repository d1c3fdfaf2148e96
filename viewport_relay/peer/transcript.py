"""A generated agent session. Both ends of a demonstration have it, so that each can check the other.

The same seed gives the same session: the user's input and the agent's output, in sizes from a keystroke to a large diff.
`TranscriptRun` plays it between two peers, over connections of the caller.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, TimeoutError

from viewport_relay.peer.client import ClientPeer
from viewport_relay.peer.daemon import Conversation
from viewport_relay.peer.errors import Code, PeerError

LARGE_FRAME_BYTES = 921_600
ANSWER_SECONDS = 15.0
# What an envelope and the message inside it add around the text, in bytes of the frame.
_FRAME_OVERHEAD = 400
_BURST_EVERY = 12
_BURST_TURNS = 5
_SIZES = ((60, 40, 400), (30, 1_000, 6_000), (10, 12_000, 48_000))
_VOCABULARY = (
    "read write test fails passes the parser in module at line diff patch apply retry build cache token "
    "stream waits for approval branch commit merge lint format types résumé naïve ✓ ✗ → …"
)
_WORDS = tuple(_VOCABULARY.split())


@frozen
class Turn:
    """One application message of the client and the daemon's answer to it."""

    steer: str
    output: str


@frozen
class Transcript:
    """A generated session: its turns in order."""

    turns: tuple[Turn, ...]

    @property
    def messages(self) -> int:
        """The number of messages, both ways."""
        return 2 * len(self.turns)

    @property
    def size(self) -> int:
        """Bytes of application text, both ways."""
        return sum(len(turn.steer.encode()) + len(turn.output.encode()) for turn in self.turns)

    def batches(self) -> Iterator[range]:
        """Turns as they are sent: mostly one by one, now and then several without waiting for an answer."""
        at = count = 0
        while at < len(self.turns):
            count += 1
            step = _BURST_TURNS if count % _BURST_EVERY == 0 else 1
            yield range(at, min(at + step, len(self.turns)))
            at += step


def _text(source: random.Random, size: int) -> str:
    text = source.choice(_WORDS)
    while len(text) < size:
        text += " " + source.choice(_WORDS)
    return text


def _sized(source: random.Random) -> str:
    [(_, least, most)] = source.choices(_SIZES, weights=[weight for weight, _, _ in _SIZES])
    return _text(source, source.randint(least, most))


def _message(number: int, kind: str, text: str) -> str:
    return json.dumps({"turn": number, "kind": kind, "text": text}, ensure_ascii=False)


def make_transcript(
    turns: int, *, seed: int = 7781, large_frame_bytes: int = LARGE_FRAME_BYTES
) -> Transcript:
    """A session of `turns` >= 1 turns.

    In its middle one answer's frame has about `large_frame_bytes`, 0 for none.
    """
    source = random.Random(seed)
    made: list[Turn] = []
    for number in range(turns):
        steer = _message(number, "steer", _text(source, source.randint(8, 600)))
        output = _message(number, "output", _sized(source))
        if number == turns // 2 and large_frame_bytes:
            # base64 in the frame: four bytes for three. ASCII only, so that characters are bytes.
            letters = max(1, (large_frame_bytes - _FRAME_OVERHEAD) * 3 // 4)
            output = _message(number, "diff", "".join(source.choices("+- abcdef", k=letters // 8)) * 8)
        made.append(Turn(steer, output))
    return Transcript(tuple(made))


@define(eq=False)
class TranscriptRun:
    """Both ends of one transcript. Each compares the messages that it receives with the transcript.

    Give `at_daemon` to a DaemonPeer and `at_client` to a ClientPeer. `stop` is called once, when `failure`
    is set. `round_trips` holds seconds, of the turns that had the wire alone.
    """

    _reactor: Any
    _transcript: Transcript
    _at_daemon: int = field(default=0, init=False)
    _at_client: int = field(default=0, init=False)
    _waiting: Deferred[None] | None = field(default=None, init=False)
    _wanted: int = field(default=0, init=False)
    failure: str | None = field(default=None, init=False)
    stop: Callable[[], None] = field(default=lambda: None, init=False)
    round_trips: list[float] = field(factory=list, init=False)

    def fail(self, why: str) -> None:
        """Keep the first failure and call `stop`."""
        if self.failure is None:
            self.failure = why
            self.stop()

    def at_daemon(self, conversation: Conversation, text: str) -> None:
        """Check a message of the client and answer it."""
        number = self._at_daemon
        self._at_daemon += 1
        if number >= len(self._transcript.turns) or text != self._transcript.turns[number].steer:
            self.fail(f"the daemon got something else than message {number} of the client")
            return
        conversation.send(self._transcript.turns[number].output)

    def at_client(self, text: str) -> None:
        """Check an answer of the daemon."""
        number = self._at_client
        self._at_client += 1
        if number >= len(self._transcript.turns) or text != self._transcript.turns[number].output:
            self.fail(f"the client got something else than message {number} of the daemon")
            return
        if self._waiting is not None and self._at_client == self._wanted:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def run(self, client: ClientPeer) -> None:
        """Send all turns and wait for all answers. Raises PeerError TIMEOUT when one stays out."""
        for batch in self._transcript.batches():
            self._wanted = batch.stop
            waiting = self._waiting = Deferred()
            started = self._reactor.seconds()
            for number in batch:
                client.send(self._transcript.turns[number].steer)
            try:
                await waiting.addTimeout(ANSWER_SECONDS, self._reactor)
            except TimeoutError:
                raise PeerError(
                    Code.TIMEOUT,
                    f"no answer to message {batch.start} within {ANSWER_SECONDS:.0f} s "
                    f"(at the daemon: {self._at_daemon}, back at the client: {self._at_client})",
                ) from None
            if len(batch) == 1:
                self.round_trips.append(self._reactor.seconds() - started)
