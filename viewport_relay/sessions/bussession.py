"""A remote session: a receiver that publishes the e2ee frames of one session whose other end is on another relay.

The first frame of a session is decided about by `RemoteRelays`, which then gives the peer a `BusSession` for a moment. The
frames that follow find it in routing as they would find a receiver here, and those of one read become one parcel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, Direction, Parcel, Publisher, TargetKey
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


class _BusOutbox:
    """The outbox of a remote session (`wire.interfaces.MessageSink`).

    It returns False: the relay that delivers the frames counts them. A client is not read while too much waits for the
    other relay; a daemon is.
    """

    __slots__ = ("_direction", "_frame", "_machine_id", "_publish", "_relay_id", "_sender", "_target")

    #: As of a link's outbox: messages are given to `send_all`, and no frame is made of them here.
    ready: Final = None
    sealed: Final = True

    def __init__(
        self, publish: _Publish, peer: Peer, direction: Direction, frame: E2ee, relay_id: str
    ) -> None:
        self._publish = publish
        self._target: TargetKey = peer.target.key
        self._direction: Direction = direction
        self._machine_id = peer.grant.claims.machine_id
        self._frame = frame
        self._sender = peer if direction == CLIENT_TO_DAEMON else None
        self._relay_id = relay_id

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
        sender = self._sender
        parcel = Parcel(
            self._target,
            self._direction,
            self._relay_id,
            self._machine_id,
            payloads,
            size,
            self._frame,
            sender,
        )
        self._publish(parcel, None if sender is None else feeder)
        return False

    def hold(self, data: bytes | memoryview) -> None:
        """Not called while `ready` is None."""
        raise NotImplementedError

    def take(self, data: bytes | memoryview, feeder: Feeder | None = None) -> bool:
        """Not called while `sealed`."""
        raise NotImplementedError


class BusSession:
    """A `routing.model.RemoteSession`: what routing keeps of a session whose other end is on another relay."""

    __slots__ = ("outlet", "profile", "relay_id", "until")

    def __init__(self, outlet: _BusOutbox, profile: str, relay_id: str, until: float) -> None:
        """`until` is monotonic seconds."""
        self.outlet = outlet
        self.profile = profile
        self.relay_id = relay_id
        self.until = until


def remember(
    publish: _Publish, peer: Peer, direction: Direction, frame: E2ee, relay_id: str, now: float
) -> None:
    """Let the router find a receiver for the next frames of this session. `frame` is the decoded form of each."""
    if len(frame.session_id) > LONGEST_ID:
        return
    if peer.remote is None or len(peer.remote) >= MOST_SESSIONS:
        peer.remote = {}
    outlet = _BusOutbox(publish, peer, direction, frame, relay_id)
    peer.remote[frame.session_id] = BusSession(outlet, frame.profile, relay_id, now + SERVES_FOR)
