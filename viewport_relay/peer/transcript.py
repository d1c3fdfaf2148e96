"""A made-up agent session that both ends of a demonstration know, so that each can check the other.

The same seed gives the same session: what the person steers, what the agent prints, in sizes as they occur
from a keystroke to a large diff. What it does not do: send anything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

LARGE_FRAME_BYTES = 921_600
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


@dataclass(frozen=True, slots=True)
class Turn:
    """One application message of the client and the daemon's answer to it."""

    steer: str
    output: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """The whole session."""

    turns: tuple[Turn, ...]

    @property
    def messages(self) -> int:
        """Both ways."""
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
    words: list[str] = []
    length = 0
    while length < size:
        word = source.choice(_WORDS)
        words.append(word)
        length += len(word) + 1
    return " ".join(words)


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
