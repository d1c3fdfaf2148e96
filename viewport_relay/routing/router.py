"""The rules of section 2: one frame in, one receiver or decision out.

`client_e2ee` and `daemon_e2ee` are the way of nearly every frame, `client_frame` and `daemon_frame` that of any. None reads
a clock or logs, and none makes an object when a frame simply goes to one receiver.
"""

from __future__ import annotations

from attrs import frozen

from viewport_relay.admission.limits import Window
from viewport_relay.noise.policy import profile_mismatch
from viewport_relay.protocol import status
from viewport_relay.protocol.frames import (
    ClientFrame,
    DaemonFrame,
    E2ee,
    KeyExchangeInit,
    KeyExchangeResponse,
    KeyUpdateRequired,
    PairingRequest,
    PairingResponse,
    SessionEventFrame,
    Subscribe,
    Unsubscribe,
    trimmed,
)
from viewport_relay.protocol.grant import Scope
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import NO_DAEMON, Close, Decision, Drop, FanOut, Reply, ToRelay
from viewport_relay.routing.peer import Peer
from viewport_relay.routing.target import Owner, Target


@frozen
class FrameRates:
    """Limits per minute, 0 for none (wire contract, section 4)."""

    key_exchange: int
    pairing: int
    runtime: int
    workspace: int
    daemon: int


class Router:
    """Judges each connection by its own grant alone. `now` is monotonic seconds, read once per read event."""

    def __init__(self, rates: FrameRates) -> None:
        self._rates = rates

    # -- from a client -----------------------------------------------------------------------------------

    def client_e2ee(self, peer: Peer, profile: str, session_id: str, now: float) -> Peer | Decision:
        """Where a client's e2ee frame goes."""
        if peer.scope is not Scope.RUNTIME:
            return self._client_rare(peer, E2ee(profile, session_id), now)
        if peer.required_profile is not None and profile != peer.required_profile:
            mismatch = self._profile_mismatch(peer, profile)
            if mismatch is not None:
                return mismatch
        limited = self._runtime_limited(peer, now, Reason.RUNTIME_RATE_LIMIT_EXCEEDED)
        if limited is not None:
            return limited
        target = peer.target
        owner = target.sessions.owner(session_id, now)
        if owner is not None and owner is not peer:
            return Drop(Reason.SESSION_NOT_OWNED, "e2ee frame for a session of another client")
        return target.seat.holder or NO_DAEMON

    def client_frame(self, peer: Peer, frame: ClientFrame | None, now: float) -> Peer | Decision:
        """Where a client's frame goes. A frame of None was not valid."""
        if type(frame) is E2ee:
            return self.client_e2ee(peer, frame.profile, frame.session_id, now)
        return self._client_rare(peer, frame, now)

    def _client_rare(self, peer: Peer, frame: ClientFrame | None, now: float) -> Peer | Decision:
        workspace_id = peer.grant.workspace_id
        if frame is None:
            return Reply(status.invalid_frame(workspace_id), Reason.INVALID_FRAME)
        if isinstance(frame, SessionEventFrame):
            if peer.scope is not Scope.SESSION_EVENTS:
                return Close(Reason.SESSION_EVENTS_SCOPE_REQUIRED)
            return self._session_event_frame(peer, frame, now)
        if peer.scope is Scope.SESSION_EVENTS:
            return Reply(status.session_events_scope_only(workspace_id), Reason.SESSION_EVENTS_SCOPE_ONLY)
        if isinstance(frame, PairingRequest):
            if peer.scope is not Scope.PAIRING:
                return Close(Reason.RUNTIME_SCOPE_ONLY)
            return self._pairing_request(peer, frame, now)
        if peer.scope is Scope.PAIRING:
            return Close(Reason.PAIRING_SCOPE_ONLY)
        assert isinstance(frame, KeyExchangeInit)  # e2ee from a runtime client never comes here
        return self._key_exchange_init(peer, frame, now)

    def _key_exchange_init(self, peer: Peer, frame: KeyExchangeInit, now: float) -> Peer | Decision:
        mismatch = self._profile_mismatch(peer, frame.profile, key_exchange=True)
        if mismatch is not None:
            return mismatch
        rates = peer.rates.key_exchange(now)
        if not rates.hit(now, self._rates.key_exchange):
            return self._limited(peer, Reason.KEY_EXCHANGE_RATE_LIMIT_EXCEEDED, rates.retry_after_ms(now))
        daemon = peer.target.seat.holder
        if daemon is None:
            return NO_DAEMON
        return self.note_asker(peer.target, frame, peer, now) or daemon

    def _pairing_request(self, peer: Peer, frame: PairingRequest, now: float) -> Peer | Decision:
        rates = peer.rates.pairing(now)
        if not rates.hit(now, self._rates.pairing):
            return self._limited(peer, Reason.PAIRING_RATE_LIMIT_EXCEEDED, rates.retry_after_ms(now))
        if peer.grant.runtime_target_id is None:
            return Reply(status.runtime_target_required(peer.grant.workspace_id))
        daemon = peer.target.seat.holder
        if daemon is None:
            return NO_DAEMON
        return self.note_asker(peer.target, frame, peer, now) or daemon

    @staticmethod
    def note_asker(target: Target, frame: ClientFrame, asker: Owner, now: float) -> Drop | None:
        """Remember who waits for the answer, if the frame is one that is answered; Drop: somebody else does."""
        if isinstance(frame, KeyExchangeInit):
            if frame.request_id and not target.key_exchanges.record(frame.request_id, asker, now):
                return Drop(Reason.REQUEST_ID_CONFLICT, "key exchange")
        elif isinstance(frame, PairingRequest) and not target.pairings.record(frame.request_id, asker, now):
            return Drop(Reason.REQUEST_ID_CONFLICT, "pairing")
        return None

    @staticmethod
    def forget_asker(target: Target, frame: ClientFrame | None, asker: Owner, now: float) -> None:
        """The frame went nowhere after all: nobody waits for an answer."""
        if isinstance(frame, KeyExchangeInit) and target.key_exchanges.owner(frame.request_id, now) == asker:
            target.key_exchanges.spend(frame.request_id)
        elif isinstance(frame, PairingRequest) and target.pairings.owner(frame.request_id, now) == asker:
            target.pairings.spend(frame.request_id)

    def _session_event_frame(self, peer: Peer, frame: SessionEventFrame, now: float) -> Decision:
        channel, target = trimmed(frame.channel), peer.target
        if isinstance(frame, Unsubscribe):
            target.unsubscribe(peer, channel)
            return Reply(status.unsubscribed(frame))
        allowed = channel in peer.grant.claims.session_channels
        if isinstance(frame, Subscribe):
            if not allowed:
                return Reply(status.channel_denied(frame, peer.grant.workspace_id))
            target.subscribe(peer, channel)
            return Reply(status.subscribed(frame))
        limited = self._runtime_limited(peer, now, Reason.PRESENCE_RATE_LIMIT_EXCEEDED)
        if limited is not None:
            return limited
        if not allowed:
            return Reply(status.channel_denied(frame, peer.grant.workspace_id))
        return FanOut(tuple(other for other in target.channels.get(channel, ()) if other is not peer))

    def _runtime_limited(self, peer: Peer, now: float, reason: Reason) -> Close | None:
        rates, limits = peer.rates, self._rates
        if not rates.runtime.hit(now, limits.runtime):
            return self._limited(peer, reason, rates.runtime.retry_after_ms(now), "of this client")
        if not rates.workspace.hit(now, limits.workspace):
            return self._limited(
                peer, reason, rates.workspace.retry_after_ms(now), "of the workspace's clients"
            )
        return None

    @staticmethod
    def _limited(peer: Peer, reason: Reason, retry_after_ms: int, detail: str = "") -> Close:
        return Close(reason, detail, reply=status.rate_limited(peer.grant.workspace_id, retry_after_ms))

    # -- off the bus -----------------------------------------------------------------------------------------

    def client_frame_of_relay(
        self, relay_id: str, daemon: Peer, frame: ClientFrame | None, workspace: Window, now: float
    ) -> Drop | None:
        """Whether a frame that a client of another relay sent may go to the daemon here; None: it may.

        The relay owns what its clients ask and open. `workspace` is the window of the workspace's rate.
        """
        if frame is None:
            return Drop(Reason.INVALID_FRAME)
        if isinstance(frame, SessionEventFrame):
            return Drop(Reason.BUS_FRAME_REFUSED, "session-event frames are for the relay of their client")
        if not workspace.hit(now, self._rates.workspace):
            return Drop(Reason.RUNTIME_RATE_LIMIT_EXCEEDED, "of the workspace's clients")
        required, target = daemon.required_profile, daemon.target
        if required is not None and not isinstance(frame, PairingRequest) and frame.profile != required:
            return Drop(
                Reason.CLIENT_FRAME_PROFILE_MISMATCH,
                f"frame names {frame.profile}, the daemon's grant {required}",
            )
        if isinstance(frame, E2ee):
            owner = target.sessions.owner(frame.session_id, now)
            if owner is not None and owner != relay_id:
                return Drop(Reason.SESSION_NOT_OWNED, "e2ee frame for a session of another client")
            return None
        return self.note_asker(target, frame, relay_id, now)

    def daemon_frame_of_relay(
        self, target: Target, frame: DaemonFrame | None, daemon: Window, now: float
    ) -> Peer | Decision:
        """Where a frame goes that a daemon of another relay sent to this target's clients here.

        `daemon` is the window of the target's rate.
        """
        if not daemon.hit(now, self._rates.daemon):
            return Drop(Reason.DAEMON_RATE_LIMIT_EXCEEDED)
        if frame is None:
            return Drop(Reason.INVALID_FRAME)
        verdict = self._answer(target, frame, now)
        return Drop(Reason.NO_OWNER) if isinstance(verdict, ToRelay) else verdict

    # -- from a daemon -------------------------------------------------------------------------------------

    def daemon_rate(self, peer: Peer, now: float) -> Close | None:
        """Charge one message to the daemon, before it is decoded."""
        if peer.rates.daemon.hit(now, self._rates.daemon):
            return None
        return Close(Reason.DAEMON_RATE_LIMIT_EXCEEDED)

    def worker_rate(self, peer: Peer, now: float) -> Close | None:
        """Charge one message to the worker, before it is decoded."""
        if peer.rates.daemon.hit(now, self._rates.daemon):
            return None
        return Close(Reason.WORKER_RATE_LIMIT_EXCEEDED)

    def daemon_e2ee(self, peer: Peer, profile: str, session_id: str, now: float) -> Peer | Decision:
        """Where a daemon's e2ee frame goes: to the client that owns the session."""
        if peer.required_profile is not None and profile != peer.required_profile:
            mismatch = self._profile_mismatch(peer, profile)
            if mismatch is not None:
                return mismatch
        owner = peer.target.sessions.owner(session_id, now)
        return owner if type(owner) is Peer else self._to_owner(owner)

    def daemon_frame(self, peer: Peer, frame: DaemonFrame | None, now: float) -> Peer | Decision:
        """Where the daemon's frame goes: to one client, never to all. A frame of None was not valid."""
        if frame is None:
            return Drop(Reason.INVALID_FRAME)
        if isinstance(frame, E2ee):
            return self.daemon_e2ee(peer, frame.profile, frame.session_id, now)
        if isinstance(frame, KeyExchangeResponse):
            mismatch = self._profile_mismatch(peer, frame.profile, key_exchange=True)
            if mismatch is not None:
                return mismatch
        return self._answer(peer.target, frame, now)

    def _answer(self, target: Target, frame: DaemonFrame, now: float) -> Peer | Decision:
        if isinstance(frame, E2ee | KeyUpdateRequired):
            return self._to_owner(target.sessions.owner(frame.session_id, now))
        if isinstance(frame, KeyExchangeResponse):
            return self._key_exchange_response(target, frame, now)
        if isinstance(frame, PairingResponse):
            owner = target.pairings.owner(frame.request_id, now)
            target.pairings.spend(frame.request_id)
            return self._to_owner(owner)
        return FanOut(tuple(target.channels.get(trimmed(frame.channel), ())))

    def _key_exchange_response(
        self, target: Target, frame: KeyExchangeResponse, now: float
    ) -> Peer | Decision:
        owner = target.key_exchanges.owner(frame.request_id, now)
        if owner is None:
            return Drop(Reason.NO_OWNER, "key exchange response")
        if not target.sessions.record(frame.session_id, owner, now):
            return Drop(Reason.SESSION_NOT_OWNED, "key exchange response names a session of another client")
        target.key_exchanges.spend(frame.request_id)
        return self._to_owner(owner)

    @staticmethod
    def _to_owner(owner: Owner | None) -> Peer | Decision:
        if owner is None:
            return Drop(Reason.NO_OWNER)
        return ToRelay(owner) if isinstance(owner, str) else owner

    @staticmethod
    def _profile_mismatch(peer: Peer, named: str, *, key_exchange: bool = False) -> Close | None:
        """The close for a frame whose profile the peer's grant rules out, None when it is fine."""
        mismatch = profile_mismatch(peer.role, peer.grant.required_profile, named, key_exchange=key_exchange)
        if mismatch is None:
            return None
        return Close(mismatch.close, mismatch.detail, logged_as=mismatch.log)
