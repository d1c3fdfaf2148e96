"""Clients whose daemon is on another relay, and daemons whose clients are.

    client here -> look-up -> RELAY_REDIRECT -> bus           daemon here -> bus (to the relay that owns the session)

While a look-up is in flight the client is not read and what it has sent already waits in order. With a daemon here
nothing of this is on a frame's way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from attrs import Factory, define
from twisted.internet.interfaces import IReactorTime

from viewport_relay.backplane.interface import (
    CLIENT_TO_DAEMON,
    DAEMON_TO_CLIENTS,
    Arrival,
    Backplane,
    Parcel,
    TargetKey,
    Whereabouts,
)
from viewport_relay.protocol import status
from viewport_relay.protocol.decoding import decode_client
from viewport_relay.protocol.frames import ClientFrame, DaemonFrame, E2ee, KeyExchangeInit, PairingRequest
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close, NoDaemon
from viewport_relay.routing.model import Peer, Target
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.sessions.bussession import remember
from viewport_relay.sessions.contest import SEAT_CLOSE_DELAY
from viewport_relay.sessions.outcomes import Outcomes
from viewport_relay.sessions.session import Session, session_of
from viewport_relay.wire.interfaces import Feeder, Judge


@define(eq=False)
class _Inbox:
    """A client that waits for a look-up: the functions of its reader, and the messages that came meanwhile."""

    session: Session
    peer: Peer
    judge: Judge | None
    receive: Callable[[bytes], None]
    messages: deque[bytes] = Factory(deque)
    waiting: bool = True


@define(eq=False)
class RemoteRelays:
    """The sessions' side of the backplane (`backplane.interface.Receiver`).

    `arrived` delivers what comes over the bus. `feeder` stands for clients that have left.
    """

    _clock: IReactorTime
    _backplane: Backplane
    _registry: Registry
    _router: Router
    _outcomes: Outcomes
    arrived: Callable[[Sequence[Arrival]], None]
    _feeder: Feeder
    _inboxes: dict[Session, _Inbox] = Factory(dict)

    # -- what the backplane wants to know ------------------------------------------------------------------------

    def peers_changed(self) -> None:
        """Announce the number of peers: one has joined or left."""
        self._backplane.peers_changed(sum(self._registry.joined.values()))

    def seat_changed(self, target: Target) -> None:
        """Announce the daemon of a target, or that there is none any more."""
        holder = target.daemon
        if holder is None:
            self._backplane.seat_changed(target.key, None, None, None)
        else:
            claims = holder.grant.claims
            self._backplane.seat_changed(
                target.key, holder, claims.machine_id, claims.daemon_issue_generation
            )

    def moved(self, target: TargetKey, holder: object) -> None:
        """Close the daemon that has the seat here: it has joined another relay."""
        found = self._registry.find(*target)
        if found is not None and found.daemon is not None and found.daemon is holder:
            session_of(found.daemon).connection.close(
                Reason.REPLACED_BY_NEWER_DAEMON, "the daemon is on another relay", delay=SEAT_CLOSE_DELAY
            )

    # -- a client here, a daemon elsewhere -------------------------------------------------------------------------

    def greet(self, peer: Peer) -> None:
        """Redirect a client that has joined, if its daemon is on another relay."""
        if (
            self._backplane.redirects
            and peer.target.daemon is None
            and peer.grant.runtime_target_id is not None
        ):
            self._backplane.resolve(peer.target.key).addCallback(self._greet, peer)

    def _greet(self, place: Whereabouts | None, peer: Peer) -> None:
        if place is not None and _is_here(peer) and peer.target.daemon is None:
            self._redirect(peer, place, None)

    def _redirect(self, peer: Peer, place: Whereabouts, runtime_target_id: str | None) -> None:
        self._outcomes.counters.client_redirect += 1
        text = status.relay_redirect(peer.grant.workspace_id, place.ws_base_url, runtime_target_id)
        session_of(peer).outbox.send(text.encode())

    def client_frame(self, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """Forward a client's accepted frame for which no daemon is here."""
        place = self._backplane.known(peer.target.key)
        if place is not None:
            self._publish(place, peer, frame, message, here=True)
            return
        lookup = self._backplane.resolve(peer.target.key)
        if lookup.called:
            lookup.addCallback(self._forward, peer, frame, message)
            return
        session = session_of(peer)
        reader = session.connection.reader
        inbox = self._inboxes.get(session)
        if inbox is None:
            inbox = self._inboxes[session] = _Inbox(session, peer, reader.judge, reader.receive)
        inbox.waiting = True
        reader.judge = None
        reader.receive = inbox.messages.append
        reader.pause_reading(inbox)
        lookup.addCallback(self._looked_up, inbox, frame, message)

    def _looked_up(
        self, place: Whereabouts | None, inbox: _Inbox, frame: ClientFrame, message: bytes
    ) -> None:
        session, peer = inbox.session, inbox.peer
        reader = session.connection.reader
        inbox.waiting = False
        here = _is_here(peer)
        self._forward(place, peer, frame, message)
        while inbox.messages and not inbox.waiting:
            if here and not _is_here(peer):
                inbox.messages.clear()  # the message before closed the connection: what follows it is thrown away
                break
            message = inbox.messages.popleft()
            if here:
                reader.judge = inbox.judge
                reader.receive = inbox.receive
                reader.receive(message)
            elif not self._late(peer, message):
                inbox.messages.clear()
        if inbox.waiting:
            return
        del self._inboxes[session]
        if session.peer is peer:
            reader.judge = inbox.judge
            reader.receive = inbox.receive
        reader.resume_reading(inbox)

    def _late(self, peer: Peer, message: bytes) -> bool:
        """Forward a message that a client sent before it left; the answer to it will be dropped.

        False: the message would have closed the connection.
        """
        now = self._clock.seconds()
        route = self._router.client_frame(peer, decode_client(message), message, now)
        if isinstance(route, Peer):
            if session_of(route).outbox.send(message, self._feeder):
                self._outcomes.count_to_daemon(peer, 1, len(message), now)
            peer.target.forget_owner(peer)
        elif isinstance(route, NoDaemon):
            lookup = self._backplane.resolve(peer.target.key)
            lookup.addCallback(self._forward, peer, route.frame, message)
        return not isinstance(route, Close)

    def _forward(self, place: Whereabouts | None, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """Forward one frame after the look-up, or answer that there is no daemon."""
        daemon = peer.target.daemon
        if daemon is not None:  # it came during the look-up
            self._to_daemon_here(daemon, peer, frame, message)
        elif place is not None:
            self._publish(place, peer, frame, message, here=_is_here(peer))
        elif _is_here(peer):
            self._outcomes.no_daemon(peer, message, self._clock.seconds())

    def _to_daemon_here(self, daemon: Peer, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        now, here = self._clock.seconds(), _is_here(peer)
        if self._accepted(peer, frame, now, here=here):
            feeder = session_of(peer).connection.reader if here else self._feeder
            if session_of(daemon).outbox.send(message, feeder):
                self._outcomes.count_to_daemon(peer, 1, len(message), now)

    def _publish(
        self, place: Whereabouts, peer: Peer, frame: ClientFrame, message: bytes, *, here: bool
    ) -> None:
        now, target = self._clock.seconds(), peer.target
        if not self._accepted(peer, frame, now, here=here):
            return
        if here and self._backplane.redirects:
            self._redirect(peer, place, peer.grant.runtime_target_id)
        target.active_at = now
        machine_id = peer.grant.claims.machine_id
        parcel = Parcel(
            target.key, CLIENT_TO_DAEMON, place.relay_id, machine_id, (message,), len(message), frame, peer
        )
        publish = self._backplane.publish
        publish(parcel, session_of(peer).connection.reader if here else None)
        # Where each frame is answered with a redirect, each is decided about.
        if here and not self._backplane.redirects:
            remember(publish, peer, parcel, now)

    def _accepted(self, peer: Peer, frame: ClientFrame, now: float, *, here: bool) -> bool:
        """Charge a frame that is forwarded, and note which peer waits for its answer; False: the frame is dropped."""
        limited = self._router.carried(peer, frame, now)
        if limited is not None:
            if here:
                self._outcomes.counters.frames_client_rejected += 1
                self._outcomes.close(peer, limited)
            return False
        if type(frame) is E2ee or not here:
            return True
        conflict = self._router.note_asker(peer.target, frame, peer, now)
        if conflict is not None:
            self._outcomes.drop(peer, conflict)
            return False
        if isinstance(frame, KeyExchangeInit):
            exchange = session_of(peer).exchange
            exchange.init_seen(frame.request_id, frame.profile, frame.previous_session_id)
        return True

    def lost(self, parcels: Sequence[Parcel]) -> None:
        """Answer clients whose messages could not be published; of a daemon's message only the failure is counted."""
        now = self._clock.seconds()
        for parcel in parcels:
            peer, frame = parcel.sender, parcel.frame
            if isinstance(peer, Peer) and isinstance(frame, E2ee | KeyExchangeInit | PairingRequest):
                self._router.forget_asker(peer.target, frame, peer, now)
                self._answer_lost(peer, parcel, now)

    def _answer_lost(self, peer: Peer, parcel: Parcel, now: float) -> None:
        for payload in parcel.payloads:
            if _is_here(peer):  # the answers may exceed its rate
                self._outcomes.no_daemon(peer, payload, now, counted=type(parcel.frame) is E2ee)

    # -- a daemon here, a client elsewhere -------------------------------------------------------------------------

    def daemon_frame(self, peer: Peer, relay_id: str, frame: DaemonFrame, message: bytes) -> None:
        """Publish a daemon's answer for a client of another relay."""
        machine_id = peer.grant.claims.machine_id
        parcel = Parcel(
            peer.target.key, DAEMON_TO_CLIENTS, relay_id, machine_id, (message,), len(message), frame
        )
        publish = self._backplane.publish
        publish(parcel, None)
        if _is_here(peer):
            remember(publish, peer, parcel, self._clock.seconds())


def _is_here(peer: Peer) -> bool:
    """Whether the peer is still joined."""
    return session_of(peer).peer is peer
