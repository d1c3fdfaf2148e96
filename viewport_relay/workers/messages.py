"""What parent and workers tell each other.

    parent -> worker   one packet each on a SOCK_SEQPACKET pair, in order, `Adopt` with a descriptor:
                       Adopt, Ask, Disconnect, Apply, Flush, Stop
    worker -> parent   one line of JSON each on a stream:
                       Up, Said, Left, Picture, Disconnected

Both sides are of one installation and one user. Lengths are bounded all the same: a worker that went wrong must not
take the parent along.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct
from msgspec.json import Decoder, Encoder

from viewport_relay.observe.problems import Problem
from viewport_relay.observe.ring import Record
from viewport_relay.reasons import Level
from viewport_relay.routing.views import TargetView

#: The worker's descriptors of its two channels.
PACKETS_FD: Final = 3
WORDS_FD: Final = 4

#: Longest packet to a worker, bytes: a request's head (16 KiB) and what came behind it (16 KiB and one read of 64).
MAX_PACKET: Final = 131_072

#: Longest line of a worker, bytes: its picture, at about 1 KB for each connection.
MAX_LINE: Final = 67_108_864


# -- parent -> worker ------------------------------------------------------------------------------------------


class Adopt(Struct, tag="adopt", frozen=True):
    """A connection: the descriptor comes with the packet, and behind the first line what was read of it already."""

    family: int
    ip: str  # the client's address as the parent counts it


class Ask(Struct, tag="ask", frozen=True):
    """Answer with a Picture."""

    number: int


class Disconnect(Struct, tag="disconnect", frozen=True):
    """Close connections as `POST /disconnect` says; answer with Disconnected."""

    number: int
    workspace_id: str | None
    runtime_target_id: str | None
    connection_id: str | None
    token_id: str | None = None


class Apply(Struct, tag="apply", frozen=True):
    """Take up reloaded settings: variable -> text, empty for one that is unset now."""

    settings: dict[str, str]


class Flush(Struct, tag="flush", frozen=True):
    """Empty the caches."""


class Stop(Struct, tag="stop", frozen=True):
    """Drain and end; `now`: cut whoever is left."""

    now: bool = False


Order = Adopt | Ask | Disconnect | Apply | Flush | Stop


# -- worker -> parent ------------------------------------------------------------------------------------------


class Up(Struct, tag="up", frozen=True):
    """Connections may come."""


class Said(Struct, tag="said", frozen=True):
    """One entry of the worker's log."""

    record: Record


class Left(Struct, tag="left", frozen=True):
    """A connection of this address has ended, or never became one."""

    ip: str


class OpenFold(Struct, frozen=True):
    """Entries that were counted and not written yet (`observe.folding.Fold`)."""

    event: str
    reason: str | None
    ip: str | None
    workspace_id: str | None
    role: str | None
    message: str | None
    level: Level
    opened: float
    count: int
    first: float
    last: float
    detail: str | None = None


class Picture(Struct, tag="picture", frozen=True):
    """Everything the operator's door needs to know of one worker."""

    number: int
    ready: bool
    why: str
    jwks_age: float | None
    backplane: dict[str, Any]
    connections: dict[str, int]
    targets: list[TargetView]
    counters: dict[str, Any]
    folds: list[OpenFold]
    last_seen: list[tuple[str, str | None, float]]
    log_entries_lost: int = 0
    problems: list[Problem] = []
    recent: tuple[int, int] = (0, 0)  # admitted and refused lately
    clock_offset: float | None = None
    platform_age: float | None = None
    folded: list[tuple[str, str]] = []  # entries that were folded away: connection id and JSON text


class Disconnected(Struct, tag="disconnected", frozen=True):
    """How many connections were closed."""

    number: int
    count: int


Word = Up | Said | Left | Picture | Disconnected

encode: Final = Encoder().encode
decode_order: Final = Decoder(Order).decode
decode_word: Final = Decoder(Word).decode
