"""The Noise side of one connection with a link: a handshake to run, then frames to open and to seal.

It joins the machine (the order of messages) and the link (their bytes). Sockets, timers and logging are behind
`machine.LinkPeer`.
"""

from __future__ import annotations

from viewport_relay.noise.link import KeyUsed, LinkResponder
from viewport_relay.noise.machine import LINK_MACHINE, LinkCore, LinkPeer
from viewport_relay.noise.records import LinkRecords
from viewport_relay.reasons import Refusal


class NoiseLink:
    """The link of one connection, from message 1 on. Nothing in it raises for what a peer does."""

    __slots__ = ("_core", "_machine")

    def __init__(self, peer: LinkPeer, responder: LinkResponder) -> None:
        self._core = LinkCore(peer, responder)
        self._machine = LINK_MACHINE(self._core)

    @property
    def established(self) -> bool:
        """Whether the peer may take part in routing (and is not closed)."""
        return self._core.established and not self._core.closed

    @property
    def key_used(self) -> KeyUsed | None:
        """Which of the relay's keys the peer used; None before message 1."""
        return self._core.link.key_used

    def receive(self, data: bytes) -> bytes | None:
        """Take one binary message: the frame inside, or None when there is nothing to route.

        None means that the handshake took it, or that the link failed and `fail` was called on the peer.
        """
        core = self._core
        if core.closed:
            return None
        if core.link.records is None:
            self._machine.message(data)
            return None
        try:
            return core.link.records.decrypt_message(data)
        except Refusal as refusal:
            self._machine.refused(refusal)
            return None

    @property
    def records(self) -> LinkRecords:
        """The records of the established link."""
        records = self._core.link.records
        assert records is not None  # from the confirm on
        return records

    def refuse(self, refusal: Refusal) -> None:
        """End the link for what its records raised; without effect once it is closed."""
        self._machine.refused(refusal)

    def text_message(self) -> None:
        """A text message came, which has no place on a link."""
        self._machine.text_message()

    def timeout(self) -> None:
        """RELAY_NOISE_TIMEOUT_MS have passed since the upgrade; without effect once the link is established."""
        self._machine.timeout()

    def peer_gone(self) -> None:
        """The connection is lost or closed by the peer."""
        self._machine.peer_gone()

    def relay_closes(self) -> None:
        """The relay closes the connection for another reason (drain, routing): no verdict on the handshake."""
        self._machine.relay_closes()
