"""A peer with a Noise link over the relay's real connection: in-memory transport, fake clock.

    peer = LinkOnTheWire(MemoryRelay(), Role.CLIENT)
    peer.say(peer.initiator.message_1())
    peer.closed, peer.messages

The class asserts nothing about results; tests compare received messages, log and routing.
"""

from __future__ import annotations

from typing import Any

from tests.memorywire import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameReader,
    MemoryRelay,
    MemoryTransport,
    masked_frame,
    routed,
)
from tests.unit.noise.peers import CONFIRM, CURRENT, KEYS, SECRET, Initiator, b64
from viewport_relay.noise.policy import Pattern
from viewport_relay.protocol.grant import Claims, Role, Scope, UpgradeQuery
from viewport_relay.routing.model import Peer
from viewport_relay.wire.connection import Connection, ConnectionInfo

LINK = "viewport.noise-link.v1"


def relay(**environ: Any) -> MemoryRelay:
    """A relay with the keys of `peers`."""
    return MemoryRelay(keys=KEYS, **environ)


class LinkOnTheWire:
    """A peer with a link, and the relay's connection for it."""

    def __init__(
        self,
        house: MemoryRelay,
        pattern: Pattern = Pattern.IK,
        role: Role = Role.CLIENT,
        transport: type[MemoryTransport] = MemoryTransport,
        **initiator: Any,
    ) -> None:
        query = UpgradeQuery(role, "w", "t")
        claims = Claims(
            workspace_id="w",
            runtime_target_id="t",
            scope=Scope.RUNTIME if role is Role.CLIENT else None,
            pairing_secret=b64(SECRET),
        )
        self._house = house
        self._frames = FrameReader()
        self.initiator = Initiator(pattern, relay=CURRENT, query=query, **initiator)
        self.messages: list[bytes] = []
        self.pongs: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.transport = transport(house.clock, self._received)
        info = ConnectionInfo(f"link-{len(house.peers)}", "127.0.0.1", subprotocol=LINK)
        self.connection: Connection = house.factory.open(self.transport, b"", info)
        peers: list[Any] = house.peers
        peers.append(self)
        house.relaying.sessions.opened(self.connection, query, claims)
        house.pump()

    def _received(self, data: bytes) -> None:
        for opcode, payload, fin in self._frames.feed(data):
            assert fin and self.closed is None
            assert opcode in (BINARY, CLOSE, PING, PONG), "nothing is text on a link"
            if opcode == BINARY:
                self.messages.append(payload)
            elif opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                self.closed = int.from_bytes(payload[:2], "big"), payload[2:].decode()
                self.transport.arrive(masked_frame(CLOSE, payload[:2]))

    @property
    def routed(self) -> Peer | None:
        """The peer as routing sees it, while it is joined."""
        return routed(self.connection)

    # -- what it does ------------------------------------------------------------------------------------

    def say(self, message: bytes, *, text: bool = False, cuts: tuple[int, ...] = ()) -> None:
        """Send one message in WebSocket fragments that end at `cuts`."""
        edges = sorted({min(cut, len(message)) for cut in cuts})
        pieces = [message[a:b] for a, b in zip([0, *edges], [*edges, len(message)], strict=True)]
        for number, piece in enumerate(pieces):
            opcode = (TEXT if text else BINARY) if number == 0 else 0
            self.raw(masked_frame(opcode, piece, fin=number == len(pieces) - 1))

    def raw(self, data: bytes) -> None:
        """Send raw bytes of the TCP stream."""
        self.transport.arrive(data)
        self._house.pump()

    def vanish(self) -> None:
        self.transport.vanish()
        self._house.pump()

    def establish(self) -> None:
        self.say(self.initiator.message_1())
        self.initiator.read_message_2(self.messages[0])
        self.say(self.initiator.seal(CONFIRM))
        assert self.routed is not None

    def frames(self) -> list[bytes]:
        """The frames that were received over the established link."""
        opened = [self.initiator.open(message) for message in self.messages[1:]]
        self.messages[1:] = []
        return opened
