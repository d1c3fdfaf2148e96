"""Interfaces of the backplane: towards the sessions, and towards a carrier between relays.

    sessions  <->  Backplane (single.Single or fleet.Fleet)  <->  Carrier (redis.RedisCarrier, platform.PlatformCarrier)

Values and protocols only; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from attrs import frozen
from twisted.internet.defer import Deferred

from viewport_relay.protocol.frames import ClientFrame, DaemonFrame, E2ee
from viewport_relay.protocol.framing import text_frames_length, text_header
from viewport_relay.reasons import Reason

#: (workspaceId, runtimeTargetId)
TargetKey: TypeAlias = tuple[str, str]
#: A signed frame or batch as it leaves.
BusFrame: TypeAlias = bytes | memoryview
Frame: TypeAlias = ClientFrame | DaemonFrame
#: An index in a relay's queue, and what names the element before it.
Place: TypeAlias = tuple[int, bytes]
BEGINNING: Place = 0, b""

Direction: TypeAlias = Literal["client_to_daemon", "daemon_to_clients"]
CLIENT_TO_DAEMON: Direction = "client_to_daemon"
DAEMON_TO_CLIENTS: Direction = "daemon_to_clients"


class CarrierFailed(Exception):
    """A call of the carrier failed. `why` says it in a few words, without anything secret.

    `reason` is BACKPLANE_UNREACHABLE, or BACKPLANE_REFUSED when the other side answers and refuses. `outage` says whether
    the next call would most likely fail too.
    """

    def __init__(
        self, why: str, *, reason: Reason = Reason.BACKPLANE_UNREACHABLE, outage: bool = True
    ) -> None:
        super().__init__(why)
        self.why = why
        self.reason = reason
        self.outage = outage


@frozen
class Whereabouts:
    """The place of a target's daemon: the relay that holds it, and the URL of that relay."""

    relay_id: str
    ws_base_url: str


@frozen
class SeatClaim:
    """A relay's claim to a seat: the higher generation has precedence, then the later time."""

    generation: int | None
    since_ms: int  # since the epoch


class Parcel(msgspec.Struct, gc=False):
    """Messages of one sender for a peer on another relay, in order. `payloads` are the messages as they came, UTF-8.

    `frame` is what the messages were decoded to, where they were; several have the same. `sender` is for the
    `Receiver` alone, in `lost`.
    """

    target: TargetKey
    direction: Direction
    to_relay: str
    machine_id: str | None  # the sending peer's claim
    payloads: Sequence[bytes | bytearray]
    size: int  # bytes of all payloads
    frame: Frame | None = None
    sender: object = None

    def singles(self) -> Sequence[Parcel]:
        """Parcels of one message each."""
        if len(self.payloads) == 1:
            return (self,)
        replace = msgspec.structs.replace
        return [replace(self, payloads=(payload,), size=len(payload)) for payload in self.payloads]


class Arrival(msgspec.Struct, gc=False):
    """Messages off the bus for one receiver, in order: authentic, fresh, new and meant for this relay.

    `frames` are text frames (RFC 6455 section 5.2) as a receiver gets them, `sizes` the lengths of their payloads. `frame` is what
    the sending relay decoded each of them to and checked; None: one message, to be decoded here.
    """

    target: TargetKey
    direction: Direction
    from_relay: str
    frames: bytes | memoryview
    sizes: Sequence[int]
    frame: E2ee | None = None

    @classmethod
    def of(cls, target: TargetKey, direction: Direction, from_relay: str, payload: bytes) -> Arrival:
        """One message, to be decoded here."""
        return cls(target, direction, from_relay, text_header(len(payload)) + payload, (len(payload),))

    @property
    def payloads(self) -> list[bytes]:
        """The messages without the headers of their frames."""
        found, at = [], 0
        for size in self.sizes:
            at += len(text_header(size)) + size
            found.append(bytes(self.frames[at - size : at]))
        return found

    def first(self, count: int) -> Arrival:
        """The first `count` messages."""
        sizes = self.sizes[:count]
        frames = self.frames[: text_frames_length(sizes)]
        return msgspec.structs.replace(self, frames=frames, sizes=sizes)


class Publisher(Protocol):
    """A connection whose messages go onto the bus; it is not read while too much of them waits."""

    def pause_reading(self, cause: object) -> None: ...
    def resume_reading(self, cause: object) -> None: ...


class Receiver(Protocol):
    """The receiver of the backplane's messages and notices."""

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Deliver messages for peers of this relay, in order; those for one receiver may leave together."""

    def lost(self, parcels: Sequence[Parcel]) -> None:
        """The parcels could not be carried, or were not read by the other relay."""

    def moved(self, target: TargetKey, holder: object) -> None:
        """The daemon `holder` is now on another relay: close its connection here."""


class Backplane(Protocol):
    """The other relays, as the sessions use them. No method raises: failures are reported or counted."""

    @property
    def redirects(self) -> bool:
        """Whether clients are redirected to the relay of their daemon."""

    def seat_changed(
        self, target: TargetKey, holder: object | None, machine_id: str | None, generation: int | None
    ) -> None:
        """The daemon here is now `holder` (compared by identity), or there is none; the rest are its claims."""

    def peers_changed(self, number: int) -> None:
        """`number` peers are connected now."""

    def known(self, target: TargetKey) -> Whereabouts | None:
        """The other relay that holds the daemon, from the cache. None: not cached, or there is none; `resolve` asks."""

    def resolve(self, target: TargetKey) -> Deferred[Whereabouts | None]:
        """The other relay that holds the daemon, None if there is none. Never fails."""

    def publish(self, parcel: Parcel, publisher: Publisher | None = None) -> None:
        """Carry a message to another relay. The receiver's `lost` is called, perhaps at once, when it cannot be."""

    def start(self, receiver: Receiver) -> None: ...

    def stop(self) -> Deferred[None]:
        """Withdraw the announcements and send the queue; fires when done or after `fleet.STOP_LIMIT`."""

    def describe(self) -> Mapping[str, Any]:
        """For the operator: `mode`; with several relays `up`, and in an outage `reason` (a code) and `why`."""


class Carrier(Protocol):
    """The store between relays, Redis or the platform: it keeps presence and queues bus frames.

    Calls raise CarrierFailed. Each has a time limit of its own.
    """

    @property
    def batch(self) -> int:
        """Bus frames of one `publish` at most."""

    @property
    def publishes(self) -> int:
        """Calls of `publish` at a time; those of one series are never side by side."""

    @property
    def calls(self) -> int:
        """Presence calls at a time."""

    def start(self) -> None: ...

    async def stop(self) -> None:
        """Stop; returns when no call is in flight any more."""

    def peers_changed(self, number: int) -> None:
        """Note the number of connected peers; with none, no bus frames are expected."""

    def series(self, parcel: Parcel) -> object:
        """Parcels for one relay whose series are equal are published one call after the other."""

    async def take(
        self, target: TargetKey, entry: Mapping[str, object], claim: SeatClaim, *, new: bool
    ) -> str | None:
        """Write that this relay holds the daemon; the id of another relay whose claim stands, and then nothing is changed.

        `new`: the daemon has just joined. Of two claims with equal generations it has precedence, otherwise the later one.
        """

    async def moved(self) -> Sequence[TargetKey]:
        """Seats that other relays took from this one since the last call, as far as the carrier tells."""

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        """Delete the entry of a daemon that has left; an entry of another relay stays."""

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        """The entry that any relay has written, unchecked; None if there is none."""

    async def publish(self, relay_id: str, frames: Sequence[BusFrame]) -> int | None:
        """Queue bus frames for a relay, in order; the length of its queue then, None where the carrier does not tell."""

    async def take_back(
        self, relay_id: str, marks: Sequence[bytes], place: Place
    ) -> tuple[Sequence[bytes], Place | None]:
        """Take frames out of the part of a relay's queue that begins here (see `unread.mark_of`).

        The marks of those that were in it, and where the next part begins. None: there is no other.
        """

    async def pull(self) -> Sequence[bytes | Mapping[str, object]]:
        """The next bus frames for this relay, waiting for some time if there are none."""
