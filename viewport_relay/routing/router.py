"""The router: one frame in, one receiver or decision out (wire protocol, section 3).

`client_e2ee` and `daemon_e2ee` are for e2ee frames, nearly all there are; `client_frame` and `daemon_frame` are for any. None
of them makes an object when a frame goes to one receiver. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Final

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
    ViewerPresence,
)
from viewport_relay.protocol.grant import Scope
from viewport_relay.reasons import Reason
from viewport_relay.routing.charging import Charging
from viewport_relay.routing.decisions import Close, Drop, FanOut, NoDaemon, Publish, Reply, Route, mismatch
from viewport_relay.routing.model import Owner, Peer, Target
from viewport_relay.windows import Window

_FOREIGN_SESSION: Final = "e2ee frame for a session of another client"


class Router(Charging):
    """Decides about each frame by its sender's own grant alone."""

    # -- from a client -----------------------------------------------------------------------------------

    def client_e2ee(self, peer: Peer, profile: str, session_id: str, message: Sized, now: float) -> Route:
        """The route of a client's e2ee frame."""
        if peer.scope is not Scope.RUNTIME:
            return self._client_rare(peer, E2ee(profile, session_id), message, now)
        if peer.required_profile is not None and profile != peer.required_profile:
            wrong = mismatch(peer.grant, profile)
            if wrong is not None:
                return wrong
        target = peer.target
        owner = target.sessions.owner(session_id, now)
        if owner is not None and owner is not peer:
            return self._dropped(peer, message, now, Reason.SESSION_NOT_OWNED, _FOREIGN_SESSION)
        daemon = target.seat.holder
        if daemon is not None:
            return self._runtime_limited(peer, now) or daemon
        remote = None if peer.remote is None else peer.remote.get(session_id)
        if remote is not None and now < remote.until and profile == remote.profile:
            return self._runtime_limited(peer, now) or remote
        return NoDaemon(E2ee(profile, session_id))

    def client_frame(self, peer: Peer, frame: ClientFrame | None, message: Sized, now: float) -> Route:
        """The route of a client's frame. A frame of None was not valid; `message` is charged by its length."""
        if type(frame) is E2ee:
            return self.client_e2ee(peer, frame.profile, frame.session_id, message, now)
        return self._client_rare(peer, frame, message, now)

    def _client_rare(self, peer: Peer, frame: ClientFrame | None, message: Sized, now: float) -> Route:
        workspace_id = peer.grant.workspace_id
        if frame is None:
            return self.charge(peer, message, now) or Reply(
                status.invalid_frame(workspace_id), Reason.INVALID_FRAME
            )
        if isinstance(frame, SessionEventFrame):
            if peer.scope is not Scope.SESSION_EVENTS:
                return Close(Reason.SESSION_EVENTS_SCOPE_REQUIRED)
            return self._session_event_frame(peer, frame, message, now)
        if peer.scope is Scope.SESSION_EVENTS:
            return self.charge(peer, message, now) or Reply(
                status.session_events_scope_only(workspace_id), Reason.SESSION_EVENTS_SCOPE_ONLY
            )
        if isinstance(frame, PairingRequest):
            if peer.scope is not Scope.PAIRING:
                return Close(Reason.RUNTIME_SCOPE_ONLY)
            return self._pairing_request(peer, frame, message, now)
        if peer.scope is Scope.PAIRING:
            return Close(Reason.PAIRING_SCOPE_ONLY)
        assert isinstance(frame, KeyExchangeInit)  # e2ee from a runtime client never comes here
        return self._key_exchange_init(peer, frame, message, now)

    def _key_exchange_init(self, peer: Peer, frame: KeyExchangeInit, message: Sized, now: float) -> Route:
        wrong = mismatch(peer.grant, frame.profile, key_exchange=True)
        if wrong is not None:
            return wrong
        limited = self._rare_limited(peer, "key_exchange", Reason.KEY_EXCHANGE_RATE_LIMIT_EXCEEDED, now)
        return limited or self._asked(peer, frame, message, now)

    def _pairing_request(self, peer: Peer, frame: PairingRequest, message: Sized, now: float) -> Route:
        limited = self._rare_limited(peer, "pairing", Reason.PAIRING_RATE_LIMIT_EXCEEDED, now)
        if limited is not None:
            return limited
        if peer.grant.runtime_target_id is None:
            return self.charge(peer, message, now) or Reply(
                status.runtime_target_required(peer.grant.workspace_id)
            )
        return self._asked(peer, frame, message, now)

    def _asked(
        self, peer: Peer, frame: KeyExchangeInit | PairingRequest, message: Sized, now: float
    ) -> Route:
        """The route of a frame that the daemon answers."""
        daemon = peer.target.seat.holder
        if daemon is None:
            return NoDaemon(frame)
        conflict = self.note_asker(peer.target, frame, peer, now)
        return daemon if conflict is None else self.charge(peer, message, now) or conflict

    @staticmethod
    def note_asker(target: Target, frame: ClientFrame, asker: Owner, now: float) -> Drop | None:
        """Remember the owner that waits for the answer to a frame, if there will be one; Drop: another owner has its id."""
        if isinstance(frame, KeyExchangeInit):
            if frame.request_id and not target.key_exchanges.record(frame.request_id, asker, now):
                return Drop(Reason.REQUEST_ID_CONFLICT, "key exchange")
        elif isinstance(frame, PairingRequest) and not target.pairings.record(frame.request_id, asker, now):
            return Drop(Reason.REQUEST_ID_CONFLICT, "pairing")
        return None

    @staticmethod
    def forget_asker(target: Target, frame: ClientFrame | None, asker: Owner, now: float) -> None:
        """Forget the owner that `note_asker` remembered: the frame was not forwarded after all."""
        if isinstance(frame, KeyExchangeInit) and target.key_exchanges.owner(frame.request_id, now) == asker:
            target.key_exchanges.spend(frame.request_id)
        elif isinstance(frame, PairingRequest) and target.pairings.owner(frame.request_id, now) == asker:
            target.pairings.spend(frame.request_id)

    def _session_event_frame(self, peer: Peer, frame: SessionEventFrame, message: Sized, now: float) -> Route:
        presence = isinstance(frame, ViewerPresence)
        over = Reason.PRESENCE_RATE_LIMIT_EXCEEDED if presence else Reason.RUNTIME_RATE_LIMIT_EXCEEDED
        limited = self.charge(peer, message, now, over)
        if limited is not None:
            return limited
        claims, target, channel = peer.grant.claims, peer.target, frame.channel
        if channel not in claims.session_channels:
            return Reply(status.channel_denied(frame, peer.grant.workspace_id))
        if isinstance(frame, Subscribe):
            target.subscribe(peer, channel)
            return Reply(status.subscribed(frame))
        if isinstance(frame, Unsubscribe):
            target.unsubscribe(peer, channel)
            return Reply(status.unsubscribed(frame))
        if claims.user_id is not None and frame.user_id != claims.user_id:
            return Drop(Reason.PRESENCE_USER_MISMATCH)
        others = tuple(other for other in target.channels.get(channel, ()) if other is not peer)
        return FanOut(others, lossy=True)

    # -- off the bus -----------------------------------------------------------------------------------------

    def client_frame_of_relay(
        self, relay_id: str, daemon: Peer, frame: ClientFrame | None, workspace: Window, now: float
    ) -> Drop | None:
        """Whether a frame that a client of another relay sent may go to the daemon here; None: it may.

        The relay owns what its clients ask and open. `workspace` is the window of the workspace's rate, which only
        frames that go on are charged to.
        """
        if frame is None:
            return Drop(Reason.INVALID_FRAME)
        if isinstance(frame, SessionEventFrame):
            return Drop(
                Reason.BUS_FRAME_REFUSED, "session-event frames are handled by the relay of their client"
            )
        required, target = daemon.required_profile, daemon.target
        if required is not None and not isinstance(frame, PairingRequest) and frame.profile != required:
            detail = f"frame names {frame.profile}, the daemon's grant {required}"
            return Drop(Reason.CLIENT_FRAME_PROFILE_MISMATCH, detail)
        if isinstance(frame, E2ee):
            owner = target.sessions.owner(frame.session_id, now)
            if owner is not None and owner != relay_id:
                return Drop(Reason.SESSION_NOT_OWNED, _FOREIGN_SESSION)
        conflict = self.note_asker(target, frame, relay_id, now)
        if conflict is not None:
            return conflict
        if not workspace.hit(now, self.rates.workspace):
            self.forget_asker(target, frame, relay_id, now)
            return self.over_workspace()
        return None

    def daemon_frame_of_relay(
        self, target: Target, frame: DaemonFrame | None, daemon: Window, now: float
    ) -> Route:
        """The route of a frame that a daemon of another relay sent to clients of this target here.

        `daemon` is the window of the target's rate.
        """
        if not daemon.hit(now, self.rates.daemon):
            return self.over_daemon()
        if frame is None:
            return Drop(Reason.INVALID_FRAME)
        if type(frame) is E2ee:
            owner = target.sessions.owner(frame.session_id, now)
            return owner if type(owner) is Peer else Drop(Reason.NO_OWNER)
        route = self._answer(target, frame, now)
        return Drop(Reason.NO_OWNER) if isinstance(route, Publish) else route

    # -- from a daemon -------------------------------------------------------------------------------------

    def daemon_e2ee(self, peer: Peer, profile: str, session_id: str, now: float) -> Route:
        """The route of a daemon's e2ee frame: the client that owns the session."""
        if peer.required_profile is not None and profile != peer.required_profile:
            wrong = mismatch(peer.grant, profile)
            if wrong is not None:
                return wrong
        owner = peer.target.sessions.owner(session_id, now)
        if type(owner) is Peer:
            return owner
        remote = None if peer.remote is None else peer.remote.get(session_id)
        if (
            remote is not None
            and owner == remote.relay_id
            and now < remote.until
            and profile == remote.profile
        ):
            return remote
        return self._to_owner(owner, E2ee(profile, session_id))

    def daemon_frame(self, peer: Peer, frame: DaemonFrame | None, now: float) -> Route:
        """The route of a daemon's frame: one client, or the subscribers of a channel. A frame of None was not valid."""
        if frame is None:
            return Drop(Reason.INVALID_FRAME)
        if isinstance(frame, E2ee):
            return self.daemon_e2ee(peer, frame.profile, frame.session_id, now)
        if isinstance(frame, KeyExchangeResponse):
            wrong = mismatch(peer.grant, frame.profile, key_exchange=True)
            if wrong is not None:
                return wrong
        return self._answer(peer.target, frame, now)

    def _answer(self, target: Target, frame: DaemonFrame, now: float) -> Route:
        if isinstance(frame, E2ee | KeyUpdateRequired):
            return self._to_owner(target.sessions.owner(frame.session_id, now), frame)
        if isinstance(frame, KeyExchangeResponse):
            return self._key_exchange_response(target, frame, now)
        if isinstance(frame, PairingResponse):
            owner = target.pairings.owner(frame.request_id, now)
            target.pairings.spend(frame.request_id)
            return self._to_owner(owner, frame)
        return FanOut(tuple(target.channels.get(frame.channel, ())))

    def _key_exchange_response(self, target: Target, frame: KeyExchangeResponse, now: float) -> Route:
        owner = target.key_exchanges.owner(frame.request_id, now)
        if owner is None:
            return Drop(Reason.NO_OWNER, "key exchange response")
        if not target.sessions.record(frame.session_id, owner, now):
            return Drop(Reason.SESSION_NOT_OWNED, "key exchange response names a session of another client")
        target.key_exchanges.spend(frame.request_id)
        return self._to_owner(owner, frame)

    @staticmethod
    def _to_owner(owner: Owner | None, frame: DaemonFrame) -> Route:
        if owner is None:
            return Drop(Reason.NO_OWNER)
        return Publish(owner, frame) if isinstance(owner, str) else owner
