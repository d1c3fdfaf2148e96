"""Profiles that frames name, against what the sender's grant requires (wire protocol, section 3, "Profile")."""

from __future__ import annotations

from viewport_relay.protocol.grant import Profile, Role
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close


def profile_mismatch(
    role: Role, required: Profile | None, named: str, *, key_exchange: bool = False
) -> Close | None:
    """The close for a frame whose profile the grant rules out, None where the profile is fine.

    A client names exactly what is required, a daemon that or a stronger one. Where a key exchange (`key_exchange`) with
    plain noise-ik meets a requirement of noise-ikpsk2, the log says that the pre-shared key is missing.
    """
    if required is None:
        return None
    known = Profile.named(named)
    if role is Role.DAEMON:
        fine = known is not None and known.strength >= required.strength
        reason = Reason.DAEMON_FRAME_PROFILE_MISMATCH
    else:
        fine = known is required
        reason = Reason.CLIENT_FRAME_PROFILE_MISMATCH
    if fine:
        return None
    if key_exchange and required is Profile.IKPSK2 and known is Profile.IK:
        detail = "the grant requires noise-ikpsk2 and the key exchange names plain noise-ik"
        return Close(reason, detail, logged_as=Reason.NOISE_INVALID_PSK)
    shown = "an unknown profile" if known is None else known.value
    return Close(reason, f"the grant requires {required.value} and the frame names {shown}")
