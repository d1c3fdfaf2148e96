"""Decisions: what the router says about a frame that does not simply go to one receiver.

Where a message is forwarded to one peer the router returns that `Peer`, so that nothing is made for each frame. Every other
outcome is one of these values. The caller carries them out.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import msgspec

from viewport_relay.protocol.frames import ClientFrame, DaemonFrame
from viewport_relay.protocol.grant import PROFILES, Grant, Profile, Role
from viewport_relay.reasons import Reason
from viewport_relay.routing.model import Peer, RemoteSession


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The base of decisions: none has an `outlet`, so that the message cannot simply be sent on.

    Structs of msgspec: some are made for each frame that crosses the bus, in a third of the time that attrs takes.
    """

    outlet: ClassVar[None] = None


class Reply(Decision, frozen=True):
    """Answer the sender with this text and keep its connection open. `reason`: why the frame is rejected; None: it is not."""

    text: str
    reason: Reason | None = None


class Drop(Decision, frozen=True):
    """Do not forward the frame. `detail` says why, for the log; it holds nothing from the payload."""

    reason: Reason
    detail: str = ""


class Close(Decision, frozen=True):
    """Close the sender with the reason's close code and text, after `reply` if there is one.

    `logged_as` is the reason that the log entry names when it differs from the one on the wire.
    """

    reason: Reason
    detail: str = ""
    reply: str | None = None
    logged_as: Reason | None = None


class FanOut(Decision, frozen=True):
    """Send the message to each of these receivers, byte for byte. `lossy`: a receiver that would have to queue it misses it."""

    receivers: tuple[Peer, ...]
    lossy: bool = False


class Publish(Decision, frozen=True):
    """Publish a daemon's answer on the bus, addressed to the relay whose client it belongs to."""

    relay_id: str
    frame: DaemonFrame


class NoDaemon(Decision, frozen=True):
    """A client's frame found no daemon here: another relay may hold it, else `DAEMON_UNAVAILABLE`.

    The frame is not charged yet: `Router.carried` or `Router.charge` does that once its fate is known.
    """

    frame: ClientFrame


#: The route of a message: its one receiver, or a decision.
Route: TypeAlias = Peer | RemoteSession | Decision


# -- profiles (wire protocol, section 3) -------------------------------------------------------------------------


def mismatch(grant: Grant, named: str, *, key_exchange: bool = False) -> Close | None:
    """The close for a frame whose profile its sender's grant rules out, None where the profile is fine.

    A client names exactly what is required, a daemon that or a stronger one. Where a key exchange (`key_exchange`) with
    plain noise-ik meets a requirement of noise-ikpsk2, the log says that the pre-shared key is missing.
    """
    required, by_daemon = grant.required_profile, grant.role is Role.DAEMON
    if required is None or named == required.value or (by_daemon and named == Profile.IKPSK2.value):
        return None
    reason = Reason.DAEMON_FRAME_PROFILE_MISMATCH if by_daemon else Reason.CLIENT_FRAME_PROFILE_MISMATCH
    if key_exchange and required is Profile.IKPSK2 and named == Profile.IK.value:
        detail = "the grant requires noise-ikpsk2 and the key exchange names plain noise-ik"
        return Close(reason, detail, logged_as=Reason.NOISE_INVALID_PSK)
    shown = named if named in PROFILES else "an unknown profile"
    return Close(reason, f"the grant requires {required.value} and the frame names {shown}")
