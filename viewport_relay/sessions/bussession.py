"""A remote session: a receiver that publishes the e2ee frames of one session whose other end is on another relay.

The first frame of a session is decided about by `RemoteRelays`, which then gives the peer a `BusSession` for a moment. The
frames that follow find it in routing as they would find a receiver here, and those of one read become one parcel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from attrs import define

from viewport_relay.backplane.interface import Parcel, Publisher
from viewport_relay.protocol.frames import E2ee
from viewport_relay.protocol.json import Message
from viewport_relay.routing.model import Peer
from viewport_relay.wire.interfaces import Feeder

#: Seconds for which a session's place is not looked up again.
SERVES_FOR: Final = 0.25
#: Sessions of one peer that are kept, and characters of the longest id of one.
MOST_SESSIONS: Final = 256
LONGEST_ID: Final = 128

_Publish = Callable[[Parcel, Publisher | None], None]


@define(eq=False)
class _BusOutbox:
    """The outbox of a remote session (`wire.interfaces.MessageSink`): each parcel is `like` the first, with other messages.

    Its methods return False: the relay that delivers the frames counts them. A client is not read while too much waits for the
    other relay; a daemon is.
    """

    _publish: _Publish
    _like: Parcel

    # As for a link's outbox: messages are given to `send_all`, and no frame is made of them here.
    ready = None
    sealed = True

    @property
    def outbox(self) -> _BusOutbox:
        return self

    def send(self, message: bytes, feeder: Feeder | None = None) -> bool:
        """Publish one message."""
        return self._carry((message,), len(message), feeder)

    def send_all(self, messages: Sequence[Message], size: int, feeder: Feeder | None = None) -> bool:
        """Publish messages that leave together."""
        # A view is of memory that the next read writes over.
        kept = [bytes(message) if isinstance(message, memoryview) else message for message in messages]
        return self._carry(kept, size, feeder)

    def _carry(self, payloads: Sequence[bytes | bytearray], size: int, feeder: Feeder | None) -> bool:
        of = self._like
        parcel = Parcel(
            of.target, of.direction, of.to_relay, of.machine_id, payloads, size, of.frame, of.sender
        )
        self._publish(parcel, None if of.sender is None else feeder)
        return False

    def hold(self, data: bytes | memoryview) -> None:
        """Not called while `ready` is None."""
        raise NotImplementedError

    def take(self, data: bytes | memoryview, feeder: Feeder | None = None) -> bool:
        """Not called while `sealed`."""
        raise NotImplementedError


@define(eq=False)
class BusSession:
    """A `routing.model.RemoteSession`. `until` is monotonic seconds."""

    outlet: _BusOutbox
    profile: str
    relay_id: str
    until: float


def remember(publish: _Publish, peer: Peer, parcel: Parcel, now: float) -> None:
    """Let the router find a receiver for the next frames of this session, which are decoded to the frame of `parcel`."""
    frame = parcel.frame
    if not isinstance(frame, E2ee) or len(frame.session_id) > LONGEST_ID:
        return
    if peer.remote is None or len(peer.remote) >= MOST_SESSIONS:
        peer.remote = {}
    outlet = _BusOutbox(publish, msgspec.structs.replace(parcel, payloads=(), size=0))
    peer.remote[frame.session_id] = BusSession(outlet, frame.profile, parcel.to_relay, now + SERVES_FOR)
