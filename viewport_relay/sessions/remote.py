"""Clients whose daemon is on another relay, and frames of peers on other relays.

    client here -> look-up -> RELAY_REDIRECT -> bus           daemon here -> bus (to the relay that owns the session)
    bus -> daemon here                                        bus -> client here

While a look-up is under way the client is not read and what it has sent already waits in order. With a daemon here
nothing of this is on a frame's way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from attrs import Factory, define
from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.limits import WindowTable
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
from viewport_relay.protocol.decoding import decode_client, decode_daemon
from viewport_relay.protocol.frames import ClientFrame, DaemonFrame, E2ee, KeyExchangeInit, PairingRequest
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Drop, FanOut, NoDaemon
from viewport_relay.routing.model import Peer, Target
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.sessions.contest import SEAT_CLOSE_DELAY
from viewport_relay.sessions.outcomes import COUNTED_ONLY, Outcomes
from viewport_relay.sessions.session import Session, session_of
from viewport_relay.wire.framing import text_header
from viewport_relay.wire.interfaces import Judge
from viewport_relay.wire.outbox import Outbox
from viewport_relay.wire.turn import Turn


@define(eq=False)
class _Inbox:
    """A client that waits for a look-up: how it is read, and what it has sent meanwhile."""

    session: Session
    peer: Peer
    judge: Judge | None
    receive: Callable[[bytes], None]
    messages: deque[bytes] = Factory(deque)
    waiting: bool = True


class _Bus:
    """The feeder of frames that came over the bus: a lane of its own in the queues of daemons here. It is not paused."""

    def pause_reading(self, cause: object) -> None: ...
    def resume_reading(self, cause: object) -> None: ...


class RemoteRelays:
    """The sessions' side of the backplane."""

    def __init__(
        self,
        clock: IReactorTime,
        backplane: Backplane,
        registry: Registry,
        router: Router,
        windows: WindowTable,
        outcomes: Outcomes,
        max_pending: int,
        turn: Turn,
    ) -> None:
        """`max_pending`: bytes that may wait for a daemon here before frames off the bus are dropped."""
        self._turn = turn
        self._clock = clock
        self._backplane = backplane
        self._registry = registry
        self._router = router
        self._windows = windows
        self._outcomes = outcomes
        self._max_pending = max_pending
        self._inboxes: dict[Session, _Inbox] = {}
        self._bus = _Bus()

    # -- what the backplane wants to know ------------------------------------------------------------------------

    def peers_changed(self) -> None:
        """A peer has joined or left."""
        self._backplane.peers_changed(sum(self._registry.joined.values()))

    def seat_changed(self, target: Target) -> None:
        """A daemon has taken or left its seat."""
        holder = target.daemon
        if holder is None:
            self._backplane.seat_changed(target.key, None, None, None)
        else:
            claims = holder.grant.claims
            self._backplane.seat_changed(
                target.key, holder, claims.machine_id, claims.daemon_issue_generation
            )

    def moved(self, target: TargetKey, holder: object) -> None:
        """The daemon that sits here has come to another relay."""
        room = self._registry.find(*target)
        if room is not None and room.daemon is not None and room.daemon is holder:
            session_of(room.daemon).connection.close(
                Reason.REPLACED_BY_NEWER_DAEMON, "the daemon is on another relay", delay=SEAT_CLOSE_DELAY
            )

    # -- a client here, a daemon elsewhere -------------------------------------------------------------------------

    def greet(self, peer: Peer) -> None:
        """Tell a client that has joined where its daemon is, if it is not here."""
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
        session_of(peer).deliver(text.encode())

    def client_frame(self, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """A client's frame that was accepted, for which no daemon is here."""
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
        self._forward(place, peer, frame, message)
        while inbox.messages and not inbox.waiting:
            message = inbox.messages.popleft()
            if session.peer is peer:
                reader.judge = inbox.judge
                reader.receive = inbox.receive
                reader.receive(message)
            else:
                self._late(peer, message)
        if inbox.waiting:
            return
        del self._inboxes[session]
        if session.peer is peer:
            reader.judge = inbox.judge
            reader.receive = inbox.receive
        reader.resume_reading(inbox)

    def _late(self, peer: Peer, message: bytes) -> None:
        """Forward what a client sent before it left; answers to it go nowhere."""
        now = self._clock.seconds()
        verdict = self._router.client_frame(peer, decode_client(message), message, now)
        if isinstance(verdict, Peer):
            if session_of(verdict).outbox.send(message, self._bus):
                self._outcomes.count_to_daemon(peer, 1, len(message), now)
            peer.target.forget_owner(peer)
        elif isinstance(verdict, NoDaemon):
            lookup = self._backplane.resolve(peer.target.key)
            lookup.addCallback(self._forward, peer, verdict.frame, message)

    def _forward(self, place: Whereabouts | None, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """The fate of one frame, now that it is known where the daemon is."""
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
            feeder = session_of(peer).connection.reader if here else self._bus
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
        parcel = Parcel(target.key, CLIENT_TO_DAEMON, place.relay_id, machine_id, message, frame, peer)
        self._backplane.publish(parcel, session_of(peer).connection.reader if here else None)

    def _accepted(self, peer: Peer, frame: ClientFrame, now: float, *, here: bool) -> bool:
        """Charge a frame that is forwarded, and note who waits for its answer; False: it goes nowhere."""
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
        """Tell clients whose messages could not be carried; of a daemon's message only the failed publish is counted."""
        now = self._clock.seconds()
        for parcel in parcels:
            peer, frame = parcel.sender, parcel.frame
            if isinstance(peer, Peer) and isinstance(frame, E2ee | KeyExchangeInit | PairingRequest):
                self._router.forget_asker(peer.target, frame, peer, now)
                if _is_here(peer):
                    self._outcomes.no_daemon(peer, parcel.payload, now, counted=type(frame) is E2ee)

    # -- a daemon here, a client elsewhere -------------------------------------------------------------------------

    def daemon_frame(self, peer: Peer, relay_id: str, frame: DaemonFrame, message: bytes) -> None:
        """A daemon's answer to what came from another relay."""
        machine_id = peer.grant.claims.machine_id
        self._backplane.publish(
            Parcel(peer.target.key, DAEMON_TO_CLIENTS, relay_id, machine_id, message, frame)
        )

    # -- off the bus -------------------------------------------------------------------------------------------------

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Messages from other relays; their signatures are right. What one peer gets of them leaves in one write."""
        turn = self._turn
        within, turn.running = turn.within, True
        now, find = self._clock.seconds(), self._registry.find
        for arrival in arrivals:
            target = find(*arrival.target)
            if arrival.direction == CLIENT_TO_DAEMON:
                self._to_daemon(target, arrival, now)
            else:
                self._to_clients(target, arrival, now)
        if not within:  # else the reactor sends at the end of its turn
            turn.running = False
            turn.send()

    def _to_daemon(self, target: Target | None, arrival: Arrival, now: float) -> None:
        daemon = None if target is None else target.daemon
        if daemon is None:
            self._refuse(arrival, Drop(Reason.DAEMON_UNAVAILABLE, "it has left, or never was here"))
            return
        outbox = session_of(daemon).outbox
        if outbox.blocked and outbox.pending >= self._max_pending:
            self._refuse(arrival, Drop(Reason.BUFFER_OVERFLOW, "the daemon's queue is full"))
            return
        window = self._windows.window(("workspace", arrival.target[0]), now)
        payload = arrival.payload
        frame = arrival.frame or decode_client(payload)
        refused = self._router.client_frame_of_relay(arrival.from_relay, daemon, frame, window, now)
        if refused is not None:
            self._refuse(arrival, refused)
        elif self._send(outbox, payload):
            self._outcomes.count_to_daemon(daemon, 1, len(payload), now)

    def _to_clients(self, target: Target | None, arrival: Arrival, now: float) -> None:
        if target is None:
            self._refuse(arrival, Drop(Reason.NO_OWNER))
            return
        payload = arrival.payload
        frame = arrival.frame or decode_daemon(payload)
        window = self._windows.window(("workspace-daemon", *arrival.target), now)
        verdict = self._router.daemon_frame_of_relay(target, frame, window, now)
        if isinstance(verdict, Peer):
            if arrival.frame is None:
                self._outcomes.watch_answer(verdict, frame)
            if self._send(session_of(verdict).outbox, payload):
                self._outcomes.count_to_clients(verdict, 1, len(payload), now)
        elif isinstance(verdict, Drop):
            self._refuse(arrival, verdict)
        else:
            assert isinstance(verdict, FanOut)
            copies = self._outcomes.fan_out(verdict, payload)
            if copies:
                self._outcomes.count_to_clients(verdict.receivers[0], copies, copies * len(payload), now)

    def _send(self, outbox: Outbox, payload: bytes) -> bool:
        """Send at the end of the turn, with what else came for this receiver, or let it wait."""
        if outbox.ready is None:
            return outbox.send(payload, self._bus)
        outbox.hold(text_header(len(payload)) + payload)
        return True

    def _refuse(self, arrival: Arrival, drop: Drop) -> None:
        counters = self._outcomes.counters
        if arrival.direction == CLIENT_TO_DAEMON:
            counters.frames_client_rejected += 1
        else:
            counters.frames_daemon_rejected += 1
        counters.drops[drop.reason] += 1
        if drop.reason not in COUNTED_ONLY:
            detail: dict[str, Any] = {"detail": drop.detail} if drop.detail else {}
            self._outcomes.log.event(
                "bus_drop",
                reason=drop.reason,
                sourceRelayId=arrival.from_relay,
                workspaceId=arrival.target[0],
                runtimeTargetId=arrival.target[1],
                **detail,
            )


def _is_here(peer: Peer) -> bool:
    """Whether the peer still takes part."""
    return session_of(peer).peer is peer
