"""The handshake state machine of one connection, built once when this module is imported.

    awaiting -> answered -> established -> closed

`docs/topics/noise-machine.md` is drawn from this machine. The machine has no transport, no clock
and no log: `NoiseLink` passes inputs to the machine, and the machine calls a `LinkPeer`. A connection
without a link has no machine. Records on an established link bypass the machine, because each transition costs
time; only a refused record is an input.

What the peer may be told is the reason's own text; details are for the log.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define
from automat import TypeMachineBuilder

from viewport_relay.noise.link import KeyUsed, LinkResponder
from viewport_relay.noise.policy import Pattern
from viewport_relay.noise.records import LinkRecords
from viewport_relay.reasons import Reason, Refusal


class LinkPeer(Protocol):
    """The interface that the machine calls on a connection. Its methods may give the machine new inputs."""

    def send(self, data: bytes) -> None:
        """Send one binary message."""

    def established(self, pattern: Pattern) -> None:
        """The peer may be admitted to routing."""

    def fail(self, refusal: Refusal) -> None:
        """Log the refusal and close with its reason's close code and text. Nothing else comes after it."""

    def note(self, refusal: Refusal) -> None:
        """Log the refusal; the peer has gone already."""


@define(eq=False)
class LinkCore:
    """The data of one machine, which its transitions read and change."""

    peer: LinkPeer
    link: LinkResponder
    closed: bool = False


class LinkInputs(Protocol):
    """The inputs of the machine."""

    # -- from outside
    def message(self, data: bytes) -> None:
        """A binary message of the handshake."""

    def text_message(self) -> None:
        """A text message, which has no place on a link."""

    def timeout(self) -> None:
        """RELAY_NOISE_TIMEOUT_MS have passed since the upgrade; without effect once the link is established."""

    def peer_gone(self) -> None:
        """The connection is lost, or closed by the peer."""

    def relay_closes(self) -> None:
        """The relay closes the connection for a reason of its own (drain, routing): no verdict on the handshake."""

    # -- what was made of a message
    def message_1_good(self) -> None:
        """Message 1 decrypts, its pattern is allowed, and the static key is the grant's, or the grant names none."""

    def confirm_good(self) -> None:
        """The confirm shows that the peer holds the same keys."""

    def refused(self, refusal: Refusal) -> None:
        """A message of the handshake, or a record, was refused: the refusal says why. Or no nonce is left."""


builder = TypeMachineBuilder(LinkInputs, LinkCore)
awaiting = builder.state("awaiting")
answered = builder.state("answered")
established = builder.state("established")
closed = builder.state("closed")


def _fail(core: LinkCore, refusal: Refusal) -> None:
    core.closed = True
    core.peer.fail(refusal)


# -- awaiting ------------------------------------------------------------------------------------------------------


@awaiting.upon(LinkInputs.message).loop()
def judge_message_1(inputs: LinkInputs, core: LinkCore, data: bytes) -> None:
    try:
        core.link.read_message_1(data)
    except Refusal as refusal:
        inputs.refused(refusal)
    else:
        inputs.message_1_good()


@awaiting.upon(LinkInputs.message_1_good).to(answered)
def send_message_2(inputs: LinkInputs, core: LinkCore) -> None:
    core.peer.send(core.link.write_message_2())


@awaiting.upon(LinkInputs.refused).to(closed)
@answered.upon(LinkInputs.refused).to(closed)
@established.upon(LinkInputs.refused).to(closed)
def fail(inputs: LinkInputs, core: LinkCore, refusal: Refusal) -> None:
    _fail(core, refusal)


@awaiting.upon(LinkInputs.text_message).to(closed)
def fail_text_for_message_1(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_HANDSHAKE_MALFORMED, "a text message came where message 1 is due"))


@awaiting.upon(LinkInputs.timeout).to(closed)
def fail_no_message_1(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_TIMEOUT, "no message 1 came in time"))


# -- answered: message 2 was sent ------------------------------------------------------------------------------


@answered.upon(LinkInputs.message).loop()
def judge_confirm(inputs: LinkInputs, core: LinkCore, data: bytes) -> None:
    try:
        core.link.read_confirm(data)
    except Refusal as refusal:
        inputs.refused(refusal)
    else:
        inputs.confirm_good()


@answered.upon(LinkInputs.text_message).to(closed)
def fail_text_for_confirm(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, core.link.confirm_refused("it is a text message"))


@answered.upon(LinkInputs.timeout).to(closed)
def fail_no_confirm(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_TIMEOUT, "message 2 was sent and no confirm came in time"))


@answered.upon(LinkInputs.peer_gone).to(closed)
def note_early_leave(inputs: LinkInputs, core: LinkCore) -> None:
    # Under IKpsk2 a peer with another secret cannot read message 2, and leaves. Under IK it is a lost connection.
    core.closed = True
    if core.link.pattern is Pattern.IKPSK2:
        why = "the peer left after message 2 of IKpsk2 (perhaps another pairing secret)"
        core.peer.note(Refusal(Reason.NOISE_INVALID_PSK, why))


@answered.upon(LinkInputs.confirm_good).to(established)
def establish(inputs: LinkInputs, core: LinkCore) -> None:
    assert core.link.pattern is not None  # message 1 named it
    core.peer.established(core.link.pattern)


# -- established -----------------------------------------------------------------------------------------------

established.upon(LinkInputs.timeout).loop().returns(None)  # it was on its way


@established.upon(LinkInputs.text_message).to(closed)
def fail_text_on_link(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_DECRYPT_FAILED, "a text message came on a link"))


# -- the end -------------------------------------------------------------------------------------------------------


@awaiting.upon(LinkInputs.peer_gone).to(closed)
@established.upon(LinkInputs.peer_gone).to(closed)
@awaiting.upon(LinkInputs.relay_closes).to(closed)
@answered.upon(LinkInputs.relay_closes).to(closed)
@established.upon(LinkInputs.relay_closes).to(closed)
def finish(inputs: LinkInputs, core: LinkCore) -> None:
    core.closed = True


# What was on its way when the machine closed finds it closed.
closed.upon(LinkInputs.message).loop().returns(None)
closed.upon(LinkInputs.text_message).loop().returns(None)
closed.upon(LinkInputs.timeout).loop().returns(None)
closed.upon(LinkInputs.peer_gone).loop().returns(None)
closed.upon(LinkInputs.relay_closes).loop().returns(None)
closed.upon(LinkInputs.refused).loop().returns(None)

LINK_MACHINE = builder.build()


# -- one connection ------------------------------------------------------------------------------------------------


class NoiseLink:
    """The link of one connection, from message 1 on. Nothing in it raises for what a peer does."""

    __slots__ = ("core", "inputs")

    def __init__(self, peer: LinkPeer, responder: LinkResponder) -> None:
        self.core = LinkCore(peer, responder)
        #: The inputs of the machine, for everything else that happens to the connection.
        self.inputs: LinkInputs = LINK_MACHINE(self.core)

    @property
    def key_used(self) -> KeyUsed | None:
        """The relay's key that the peer used; None before message 1."""
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
