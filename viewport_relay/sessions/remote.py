"""Clients whose daemon is on another relay, and frames of peers on other relays.

    client here -> look-up -> RELAY_REDIRECT -> bus           daemon here -> bus (to the relay that owns the session)
    bus -> daemon here                                        bus -> client here

While a look-up is under way the client is not read and what it has sent already waits in order. With a daemon here
nothing of this is on a frame's way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
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
from viewport_relay.protocol.frames import ClientFrame, E2ee, KeyExchangeInit
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Drop, FanOut, NoDaemon
from viewport_relay.routing.model import Peer, Target
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.sessions.contest import SEAT_CLOSE_DELAY
from viewport_relay.sessions.outcomes import COUNTED_ONLY, Outcomes
from viewport_relay.sessions.session import Session, session_of
from viewport_relay.wire.interfaces import Judge
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
        self._turn = turn
        """`max_pending`: bytes that may wait for a daemon here before frames off the bus are dropped."""
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
        machine_id = None if holder is None else holder.grant.claims.machine_id
        self._backplane.seat_changed(_key(target), holder, machine_id)

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
            self._backplane.resolve(_key(peer.target)).addCallback(self._greet, peer)

    def _greet(self, place: Whereabouts | None, peer: Peer) -> None:
        if place is not None and _is_here(peer) and peer.target.daemon is None:
            self._redirect(peer, place, None)

    def _redirect(self, peer: Peer, place: Whereabouts, runtime_target_id: str | None) -> None:
        self._outcomes.counters.client_redirect += 1
        text = status.relay_redirect(peer.grant.workspace_id, place.ws_base_url, runtime_target_id)
        session_of(peer).deliver(text.encode())

    def client_frame(self, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """A client's frame that was accepted, for which no daemon is here."""
        lookup = self._backplane.resolve(_key(peer.target))
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
            lookup = self._backplane.resolve(_key(peer.target))
            lookup.addCallback(self._forward, peer, verdict.frame, message)

    def _forward(self, place: Whereabouts | None, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """The fate of one frame, now that it is known where the daemon is."""
        outcomes, target, here = self._outcomes, peer.target, _is_here(peer)
        now, daemon = self._clock.seconds(), target.daemon
        if daemon is None and place is None:
            if here:
                outcomes.no_daemon(peer, message, now)
            return
        limited = self._router.carried(peer, frame, now)
        if limited is not None:
            if here:
                outcomes.counters.frames_client_rejected += 1
                outcomes.close(peer, limited)
            return
        conflict = self._router.note_asker(target, frame, peer, now) if here else None
        if conflict is not None:
            outcomes.drop(peer, conflict)
            return
        session = session_of(peer)
        reader = session.connection.reader
        if here and isinstance(frame, KeyExchangeInit):
            session.exchange.init_seen(frame.request_id, frame.profile, frame.previous_session_id)
        if daemon is not None:  # it came during the look-up
            if session_of(daemon).outbox.send(message, reader if here else self._bus):
                outcomes.count_to_daemon(peer, 1, len(message), now)
            return
        assert place is not None
        if here and self._backplane.redirects:
            self._redirect(peer, place, peer.grant.runtime_target_id)
        target.active_at = now
        parcel = Parcel(_key(target), CLIENT_TO_DAEMON, place.relay_id, peer.grant.claims.machine_id, message)
        self._backplane.publish(
            parcel, partial(self._not_carried, peer, frame, message), reader if here else None
        )

    def _not_carried(self, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        now = self._clock.seconds()
        self._router.forget_asker(peer.target, frame, peer, now)
        if _is_here(peer):
            self._outcomes.no_daemon(peer, message, now, counted=type(frame) is E2ee)

    # -- a daemon here, a client elsewhere -------------------------------------------------------------------------

    def daemon_frame(self, peer: Peer, relay_id: str, message: bytes) -> None:
        """A daemon's answer to what came from another relay."""
        parcel = Parcel(_key(peer.target), DAEMON_TO_CLIENTS, relay_id, peer.grant.claims.machine_id, message)
        self._backplane.publish(parcel, _not_told)

    # -- off the bus -------------------------------------------------------------------------------------------------

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Messages from other relays; their signatures are right. What one peer gets of them leaves in one write."""
        turn = self._turn
        within, turn.running = turn.within, True
        for arrival in arrivals:
            self._arrived(arrival)
        if not within:  # else the reactor sends at the end of its turn
            turn.running = False
            turn.send()

    def _arrived(self, arrival: Arrival) -> None:
        target = self._registry.find(*arrival.target)
        if arrival.direction == CLIENT_TO_DAEMON:
            self._to_daemon(target, arrival)
        else:
            self._to_clients(target, arrival)

    def _to_daemon(self, target: Target | None, arrival: Arrival) -> None:
        now = self._clock.seconds()
        daemon = None if target is None else target.daemon
        if target is None or daemon is None:
            self._refuse(arrival, Drop(Reason.DAEMON_UNAVAILABLE, "it has left, or never was here"))
            return
        outbox = session_of(daemon).outbox
        if outbox.blocked and outbox.pending >= self._max_pending:
            self._refuse(arrival, Drop(Reason.BUFFER_OVERFLOW, "the daemon's queue is full"))
            return
        window = self._windows.window(("workspace", arrival.target[0]), now)
        refused = self._router.client_frame_of_relay(
            arrival.from_relay, daemon, decode_client(arrival.payload), window, now
        )
        if refused is not None:
            self._refuse(arrival, refused)
        elif outbox.send(arrival.payload, self._bus):
            self._outcomes.count_to_daemon(daemon, 1, len(arrival.payload), now)

    def _to_clients(self, target: Target | None, arrival: Arrival) -> None:
        now = self._clock.seconds()
        if target is None:
            self._refuse(arrival, Drop(Reason.NO_OWNER))
            return
        frame = decode_daemon(arrival.payload)
        window = self._windows.window(("workspace-daemon", *arrival.target), now)
        verdict = self._router.daemon_frame_of_relay(target, frame, window, now)
        if isinstance(verdict, Drop):
            self._refuse(arrival, verdict)
            return
        if isinstance(verdict, Peer):
            self._outcomes.watch_answer(verdict, frame)
            verdict = FanOut((verdict,))
        assert isinstance(verdict, FanOut)
        copies = self._outcomes.fan_out(verdict, arrival.payload)
        if copies:
            size = copies * len(arrival.payload)
            self._outcomes.count_to_clients(verdict.receivers[0], copies, size, now)

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


def _not_told() -> None:
    """A no-op callback: an answer that cannot be carried is counted as a failed publish; the daemon is not told."""


def _is_here(peer: Peer) -> bool:
    """Whether the peer still takes part."""
    return session_of(peer).peer is peer


def _key(target: Target) -> TargetKey:
    # Rooms without a target hold no daemon, and their clients' frames never ask for one.
    return target.workspace_id, target.runtime_target_id or ""
