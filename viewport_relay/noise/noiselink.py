"""The Noise side of one connection with a link: a handshake to run, then frames to open and to seal.

It joins the machine (the order of messages) and the link (their bytes). Sockets, timers and logging are behind
`machine.LinkPeer`.
"""

from __future__ import annotations

from viewport_relay.noise.link import KeyUsed, LinkResponder
from viewport_relay.noise.machine import LINK_MACHINE, LinkCore, LinkInputs, LinkPeer
from viewport_relay.noise.records import LinkRecords
from viewport_relay.reasons import Refusal


class NoiseLink:
    """The link of one connection, from message 1 on. Nothing in it raises for what a peer does."""

    __slots__ = ("core", "inputs")

    def __init__(self, peer: LinkPeer, responder: LinkResponder) -> None:
        self.core = LinkCore(peer, responder)
        #: What else happens to the connection is told to the machine.
        self.inputs: LinkInputs = LINK_MACHINE(self.core)

    @property
    def key_used(self) -> KeyUsed | None:
        """Which of the relay's keys the peer used; None before message 1."""
        return self.core.link.key_used

    def receive(self, data: bytes) -> bytes | None:
        """Take one binary message: the frame inside, or None when there is nothing to route.

        None means that the handshake took it, or that the link failed and `fail` was called on the peer.
        """
        core = self.core
        if core.closed:
            return None
        if core.link.records is None:
            self.inputs.message(data)
            return None
        try:
            return core.link.records.decrypt_message(data)
        except Refusal as refusal:
            self.inputs.refused(refusal)
            return None

    @property
    def records(self) -> LinkRecords:
        """The records of the established link."""
        records = self.core.link.records
        assert records is not None  # from the confirm on
        return records
