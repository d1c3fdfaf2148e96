"""The handshake state machine of one connection, built once when this module is imported.

    awaiting -> message_1_read -> message_2_sent -> confirmed -> established -> closed

`docs/topics/noise-machine.md` is drawn from this machine. It knows no transport, no clock and no log: it is told
what came, and tells a `LinkPeer` what to do. A connection without a link has none. `connection` is the door through which the wire uses it; records on an established link do not pass
through the machine (that would double their cost), only one that is refused does.

What the peer may be told is the reason's own text; details are for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attrs import define
from automat import TypeMachineBuilder

from viewport_relay.noise.link import LinkResponder
from viewport_relay.noise.policy import Pattern
from viewport_relay.reasons import Reason, Refusal


class LinkPeer(Protocol):
    """What the machine wants from a connection. The methods may call back into it: that waits its turn."""

    def send(self, data: bytes) -> None:
        """Send one binary message."""

    def established(self, pattern: Pattern | None) -> None:
        """The peer may be admitted to routing. None: there is no link."""

    def fail(self, reason: Reason, detail: str, details: Mapping[str, Any]) -> None:
        """Log the reason and close with its close code and text. Nothing else comes after it."""

    def note(self, reason: Reason, detail: str, details: Mapping[str, Any]) -> None:
        """Log the reason; the peer has gone already."""


@define(eq=False)
class LinkCore:
    """What the transitions work on."""

    peer: LinkPeer
    link: LinkResponder
    established: bool = False
    closed: bool = False


class LinkInputs(Protocol):
    """All that can happen to the machine."""

    # -- from outside
    def message(self, data: bytes) -> None:
        """A binary message of the handshake."""

    def text_message(self) -> None:
        """A text message, which has no place on a link."""

    def timeout(self) -> None:
        """RELAY_NOISE_TIMEOUT_MS have passed since the upgrade."""

    def peer_gone(self) -> None:
        """The connection is over."""

    def relay_closes(self) -> None:
        """The relay closes the connection for a reason of its own."""

    # -- what was made of a message
    def message_1_good(self) -> None:
        """It decrypts, and its pattern is allowed."""

    def garbage(self, refusal: Refusal) -> None:
        """Wrong length, version or pattern byte, relay key or binding; a low-order point; under IK, no confirm."""

    def wrong_pattern(self, refusal: Refusal) -> None:
        """IK where IKpsk2 is required."""

    def psk_unavailable(self, refusal: Refusal) -> None:
        """IKpsk2, and the grant has no usable secret."""

    def static_key_good(self) -> None:
        """It is the grant's, or the grant names none."""

    def wrong_static_key(self, refusal: Refusal) -> None:
        """A daemon's static key is not the grant's."""

    def confirm_good(self) -> None:
        """The peer holds the same keys."""

    def wrong_psk(self, refusal: Refusal) -> None:
        """Under IKpsk2, a confirm that does not decrypt or is something else."""

    def admitted(self) -> None:
        """The connection was told that it is established."""

    def broken(self, refusal: Refusal) -> None:
        """A record was refused, or no nonce is left."""


builder = TypeMachineBuilder(LinkInputs, LinkCore)
awaiting = builder.state("awaiting")
message_1_read = builder.state("message_1_read")
message_2_sent = builder.state("message_2_sent")
confirmed = builder.state("confirmed")
established = builder.state("established")
closed = builder.state("closed")


def _fail(core: LinkCore, refusal: Refusal) -> None:
    core.closed = True
    core.peer.fail(refusal.reason, refusal.detail, refusal.details)


# -- awaiting ------------------------------------------------------------------------------------------------------


@awaiting.upon(LinkInputs.message).loop()
def judge_message_1(inputs: LinkInputs, core: LinkCore, data: bytes) -> None:
    try:
        core.link.read_message_1(data)
    except Refusal as refusal:
        if refusal.reason is Reason.NOISE_INVALID_PSK:
            inputs.wrong_pattern(refusal)
        elif refusal.reason is Reason.NOISE_PSK_UNAVAILABLE:
            inputs.psk_unavailable(refusal)
        else:
            inputs.garbage(refusal)
    else:
        inputs.message_1_good()


@awaiting.upon(LinkInputs.message_1_good).to(message_1_read)
def judge_static_key(inputs: LinkInputs, core: LinkCore) -> None:
    try:
        core.link.check_static_key()
    except Refusal as refusal:
        inputs.wrong_static_key(refusal)
    else:
        inputs.static_key_good()


@awaiting.upon(LinkInputs.garbage).to(closed)
@awaiting.upon(LinkInputs.wrong_pattern).to(closed)
@awaiting.upon(LinkInputs.psk_unavailable).to(closed)
@message_1_read.upon(LinkInputs.wrong_static_key).to(closed)
@message_2_sent.upon(LinkInputs.garbage).to(closed)
@message_2_sent.upon(LinkInputs.wrong_psk).to(closed)
@confirmed.upon(LinkInputs.broken).to(closed)
@established.upon(LinkInputs.broken).to(closed)
def fail(inputs: LinkInputs, core: LinkCore, refusal: Refusal) -> None:
    _fail(core, refusal)


@awaiting.upon(LinkInputs.text_message).to(closed)
@message_1_read.upon(LinkInputs.text_message).to(closed)
def fail_text_for_message_1(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_HANDSHAKE_MALFORMED, "a text message came where message 1 is due"))


@awaiting.upon(LinkInputs.timeout).to(closed)
@message_1_read.upon(LinkInputs.timeout).to(closed)
def fail_no_message_1(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_TIMEOUT, "no message 1 came in time"))


# -- message 1 read ------------------------------------------------------------------------------------------------


@message_1_read.upon(LinkInputs.static_key_good).to(message_2_sent)
def send_message_2(inputs: LinkInputs, core: LinkCore) -> None:
    core.peer.send(core.link.write_message_2())


@message_1_read.upon(LinkInputs.message).to(closed)
def fail_out_of_turn(inputs: LinkInputs, core: LinkCore, data: bytes) -> None:
    _fail(core, Refusal(Reason.NOISE_HANDSHAKE_MALFORMED, "a message came before message 2"))


# -- message 2 sent ------------------------------------------------------------------------------------------------


@message_2_sent.upon(LinkInputs.message).loop()
def judge_confirm(inputs: LinkInputs, core: LinkCore, data: bytes) -> None:
    try:
        core.link.read_confirm(data)
    except Refusal as refusal:
        if refusal.reason is Reason.NOISE_INVALID_PSK:
            inputs.wrong_psk(refusal)
        else:
            inputs.garbage(refusal)
    else:
        inputs.confirm_good()


@message_2_sent.upon(LinkInputs.text_message).to(closed)
def fail_text_for_confirm(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, core.link.confirm_refused("it is a text message"))


@message_2_sent.upon(LinkInputs.timeout).to(closed)
def fail_no_confirm(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_TIMEOUT, "message 2 was sent and no confirm came in time"))


@message_2_sent.upon(LinkInputs.peer_gone).to(closed)
def note_early_leave(inputs: LinkInputs, core: LinkCore) -> None:
    # Under IKpsk2 a peer with another secret cannot read message 2, and leaves. Under IK it is a lost connection.
    core.closed = True
    if core.link.pattern is Pattern.IKPSK2:
        core.peer.note(
            Reason.NOISE_INVALID_PSK, "the peer left after message 2 of IKpsk2 (another pairing secret?)", {}
        )


@message_2_sent.upon(LinkInputs.confirm_good).to(confirmed)
def establish(inputs: LinkInputs, core: LinkCore) -> None:
    core.established = True
    core.peer.established(core.link.pattern)
    inputs.admitted()


# -- confirmed, established ------------------------------------------------------------------------------------------

confirmed.upon(LinkInputs.admitted).to(established).returns(None)
confirmed.upon(LinkInputs.timeout).loop().returns(None)  # a sweep that comes late
established.upon(LinkInputs.timeout).loop().returns(None)


@confirmed.upon(LinkInputs.text_message).to(closed)
@established.upon(LinkInputs.text_message).to(closed)
def fail_text_on_link(inputs: LinkInputs, core: LinkCore) -> None:
    _fail(core, Refusal(Reason.NOISE_DECRYPT_FAILED, "a text message came on a link"))


# -- the end -------------------------------------------------------------------------------------------------------


@awaiting.upon(LinkInputs.peer_gone).to(closed)
@message_1_read.upon(LinkInputs.peer_gone).to(closed)
@confirmed.upon(LinkInputs.peer_gone).to(closed)
@established.upon(LinkInputs.peer_gone).to(closed)
@awaiting.upon(LinkInputs.relay_closes).to(closed)
@message_1_read.upon(LinkInputs.relay_closes).to(closed)
@message_2_sent.upon(LinkInputs.relay_closes).to(closed)
@confirmed.upon(LinkInputs.relay_closes).to(closed)
@established.upon(LinkInputs.relay_closes).to(closed)
def finish(inputs: LinkInputs, core: LinkCore) -> None:
    core.closed = True


# What was on its way when the machine closed finds it closed.
closed.upon(LinkInputs.message).loop().returns(None)
closed.upon(LinkInputs.text_message).loop().returns(None)
closed.upon(LinkInputs.timeout).loop().returns(None)
closed.upon(LinkInputs.peer_gone).loop().returns(None)
closed.upon(LinkInputs.relay_closes).loop().returns(None)
closed.upon(LinkInputs.admitted).loop().returns(None)
closed.upon(LinkInputs.broken).loop().returns(None)

LINK_MACHINE = builder.build()
