"""The Noise side of one connection, as the wire uses it: a handshake to run, then frames to open and to seal.

It joins the machine (what comes when), the link (bytes) and the watch over end-to-end exchanges. What it does not
do: sockets, timers and logging, which are the wire's, behind `machine.LinkPeer`.
"""

from __future__ import annotations

from viewport_relay.noise.exchange import ExchangeWatch
from viewport_relay.noise.link import KeyUsed, LinkResponder
from viewport_relay.noise.machine import LINK_MACHINE, LinkCore, LinkPeer
from viewport_relay.reasons import Reason, Refusal


class ConnectionNoise:
    """The Noise side of one connection, with a link or without. Nothing in it raises for what a peer does.

    `link` is the responder when the link's sub-protocol was selected, else None; then `link_required` says whether
    that is refused. Call `begin` once the connection is open.
    """

    __slots__ = ("_core", "_exchange", "_let_in", "_machine", "_peer", "_required")

    def __init__(
        self, peer: LinkPeer, link: LinkResponder | None = None, *, link_required: bool = False
    ) -> None:
        self._peer = peer
        # Without a link there is no handshake, and so no machine.
        self._core = None if link is None else LinkCore(peer, link)
        self._machine = None if self._core is None else LINK_MACHINE(self._core)
        self._required = link_required
        self._let_in = False  # a peer without a link, which has not left
        self._exchange: ExchangeWatch | None = None

    def begin(self) -> None:
        """Start. Without a link, `established` or `fail` is called on the peer before this returns."""
        if self._core is not None:
            return
        if self._required:
            refusal = Refusal(Reason.NOISE_LINK_REQUIRED, "the peer offered no viewport.noise-link.v1")
            self._peer.fail(refusal.reason, refusal.detail, refusal.details)
        else:
            self._let_in = True
            self._peer.established(None)

    # -- what the wire asks --------------------------------------------------------------------------------------

    @property
    def has_link(self) -> bool:
        """Whether the connection speaks the link, so that all its messages are binary and sealed."""
        return self._core is not None

    @property
    def established(self) -> bool:
        """Whether the peer may take part in routing (and is not closed)."""
        core = self._core
        return self._let_in if core is None else core.established and not core.closed

    @property
    def label(self) -> str:
        """ "none", "IK" or "IKpsk2", for metrics and `/state`."""
        pattern = None if self._core is None else self._core.link.pattern
        return "none" if pattern is None else pattern.label

    @property
    def key_used(self) -> KeyUsed | None:
        """Which of the relay's keys the peer used; None before message 1 and without a link."""
        return None if self._core is None else self._core.link.key_used

    @property
    def exchange(self) -> ExchangeWatch:
        """What was seen of this connection's end-to-end key exchanges."""
        if self._exchange is None:
            self._exchange = ExchangeWatch()
        return self._exchange

    # -- what the wire tells -------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes | None:
        """Take one binary message of a link: the frame inside, or None when there is nothing to route.

        None means that the handshake took it, or that the link failed and `fail` was called on the peer.
        """
        core, machine = self._core, self._machine
        if core is None or machine is None or core.closed:
            return None
        if core.link.records is None:
            machine.message(data)
            return None
        try:
            return core.link.records.decrypt_message(data)
        except Refusal as refusal:
            machine.refused(refusal)
            return None

    def seal(self, frame: bytes) -> bytes | None:
        """The binary message for one frame to the peer, or None when the link cannot carry it any more.

        Works until the object is dropped, so that what is queued can still go out while the relay closes. Messages
        must be sent in the order in which they were sealed.
        """
        core, machine = self._core, self._machine
        if core is None or machine is None or core.link.records is None:
            return None
        try:
            return core.link.records.encrypt_frame(frame)
        except Refusal as refusal:
            machine.refused(refusal)
            return None

    def text_message(self) -> None:
        """A text message came on a link."""
        if self._machine is not None:
            self._machine.text_message()

    def timeout(self) -> None:
        """RELAY_NOISE_TIMEOUT_MS are over; harmless once established, so a sweep may call it for anybody."""
        if self._machine is not None:
            self._machine.timeout()

    def peer_gone(self) -> None:
        """The connection is lost or closed by the peer."""
        self._let_in = False
        if self._machine is not None:
            self._machine.peer_gone()

    def relay_closes(self) -> None:
        """The relay closes the connection for another reason (drain, routing): no verdict on the handshake."""
        self._let_in = False
        if self._machine is not None:
            self._machine.relay_closes()
