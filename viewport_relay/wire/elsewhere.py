"""Clients whose daemon is on another relay, and frames of peers on other relays.

    client here -> look-up -> RELAY_REDIRECT -> bus           daemon here -> bus (to the relay that owns the session)
    bus -> daemon here                                        bus -> client here

While a look-up is under way the client is not read and what it has sent already waits in order. With a daemon here
nothing of this is on a frame's way. Nobody is redirected whom routing would not have let through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from attrs import Factory, define

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
from viewport_relay.wire.websocket import SEAT_CLOSE_DELAY, Connection

if TYPE_CHECKING:
    from viewport_relay.wire.hub import Hub

#: Reasons of dropped bus frames that are counted but not worth a line each.
_COUNTED_ONLY: Final = frozenset({Reason.NO_OWNER})


@define(eq=False)
class _Inbox:
    """A client that waits for a look-up: what it was read by, and what it has sent meanwhile."""

    connection: Connection
    peer: Peer
    judge: Any
    receive: Callable[[bytes], None]
    messages: deque[bytes] = Factory(deque)
    waiting: bool = True


class _OtherRelay:
    """Stands for one relay in the queues of daemons here, so that it has a lane of its own. It cannot be paused."""

    def pause_reading(self, cause: object) -> None: ...
    def resume_reading(self, cause: object) -> None: ...


class Elsewhere:
    """The wire's side of the backplane."""

    def __init__(self, hub: Hub, backplane: Backplane) -> None:
        self._hub = hub
        self._backplane = backplane
        self._inboxes: dict[Connection, _Inbox] = {}
        self._bus: Any = _OtherRelay()

    # -- what the backplane wants to know ------------------------------------------------------------------------

    def peers_changed(self) -> None:
        """Somebody came or went."""
        self._backplane.peers_changed(sum(self._hub.registry.joined.values()))

    def seat_changed(self, target: Target) -> None:
        """A daemon sat down or left."""
        holder = target.daemon
        machine_id = None if holder is None else holder.grant.claims.machine_id
        self._backplane.seat_changed(_key(target), holder, machine_id)

    def moved(self, target: TargetKey, holder: object) -> None:
        """The daemon that sits here has come to another relay."""
        room = self._hub.registry.find(*target)
        if room is not None and room.daemon is not None and room.daemon is holder:
            _connection(room.daemon).end(
                Reason.REPLACED_BY_NEWER_DAEMON, "the daemon is on another relay", delay=SEAT_CLOSE_DELAY
            )

    # -- a client here, a daemon elsewhere -------------------------------------------------------------------------

    def greet(self, connection: Connection, peer: Peer) -> None:
        """A client has come: say where its daemon is, if it is not here."""
        if (
            self._backplane.redirects
            and peer.target.daemon is None
            and peer.grant.runtime_target_id is not None
        ):
            self._backplane.resolve(_key(peer.target)).addCallback(self._greet, connection, peer)

    def _greet(self, place: Whereabouts | None, connection: Connection, peer: Peer) -> None:
        if place is not None and connection.routed is peer and peer.target.daemon is None:
            self._redirect(connection, peer, place, None)

    def _redirect(
        self, connection: Connection, peer: Peer, place: Whereabouts, runtime_target_id: str | None
    ) -> None:
        self._hub.counters.client_redirect += 1
        text = status.relay_redirect(peer.grant.workspace_id, place.ws_base_url, runtime_target_id)
        connection.deliver(text.encode())

    def client_frame(self, connection: Connection, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        """A client's frame that was accepted, for which no daemon is here."""
        lookup = self._backplane.resolve(_key(peer.target))
        if lookup.called:
            lookup.addCallback(self._forward, connection, peer, frame, message)
            return
        inbox = self._inboxes.get(connection)
        if inbox is None:
            inbox = _Inbox(connection, peer, connection.judge, connection.receive)
            self._inboxes[connection] = inbox
        inbox.waiting = True
        connection.judge = None
        connection.receive = inbox.messages.append
        connection.pause_reading(inbox)
        lookup.addCallback(self._looked_up, inbox, frame, message)

    def _looked_up(
        self, place: Whereabouts | None, inbox: _Inbox, frame: ClientFrame, message: bytes
    ) -> None:
        connection, peer = inbox.connection, inbox.peer
        inbox.waiting = False
        self._forward(place, connection, peer, frame, message)
        while inbox.messages and not inbox.waiting:
            message = inbox.messages.popleft()
            if connection.routed is peer:
                connection.judge = inbox.judge
                connection.receive = inbox.receive
                connection.now = self._hub.clock.seconds()
                connection.receive(message)
            else:
                self._late(connection, peer, message)
        if inbox.waiting:
            return
        del self._inboxes[connection]
        if connection.routed is peer:
            connection.judge = inbox.judge
            connection.receive = inbox.receive
        connection.resume_reading(inbox)

    def _late(self, connection: Connection, peer: Peer, message: bytes) -> None:
        """What a client sent before it left is still for its daemon, wherever that is; nobody waits for answers."""
        now = self._hub.clock.seconds()
        verdict = self._hub.router.client_frame(peer, decode_client(message), message, now)
        if isinstance(verdict, Peer):
            to = _connection(verdict)
            if to.take(self._bus, to.frame(message)):
                self._hub.count_to_daemon(to, peer, 1, len(message))
            peer.target.forget_owner(peer)
        elif isinstance(verdict, NoDaemon):
            lookup = self._backplane.resolve(_key(peer.target))
            lookup.addCallback(self._forward, connection, peer, verdict.frame, message)

    def _forward(
        self,
        place: Whereabouts | None,
        connection: Connection,
        peer: Peer,
        frame: ClientFrame,
        message: bytes,
    ) -> None:
        """The fate of one frame, now that it is known where the daemon is."""
        hub, target, here = self._hub, peer.target, connection.routed is peer
        now, daemon = hub.clock.seconds(), target.daemon
        if daemon is None and place is None:
            if here:
                hub.no_daemon(connection, peer, message)
            return
        limited = hub.router.carried(peer, frame, now)
        if limited is not None:
            if here:
                hub.counters.frames_client_rejected += 1
                hub.close(connection, limited)
            return
        conflict = hub.router.note_asker(target, frame, peer, now) if here else None
        if conflict is not None:
            hub.drop(peer, conflict)
            return
        if here and isinstance(frame, KeyExchangeInit):
            connection.exchange.init_seen(frame.request_id, frame.profile, frame.previous_session_id)
        if daemon is not None:  # it came while we asked
            to = _connection(daemon)
            if to.take(connection if here else self._bus, to.frame(message)):
                hub.count_to_daemon(connection, peer, 1, len(message))
            return
        assert place is not None
        if here and self._backplane.redirects:
            self._redirect(connection, peer, place, peer.grant.runtime_target_id)
        target.active_at = now
        parcel = Parcel(_key(target), CLIENT_TO_DAEMON, place.relay_id, peer.grant.claims.machine_id, message)
        failed = partial(self._not_carried, connection, peer, frame, message)
        self._backplane.publish(parcel, failed, connection if here else None)

    def _not_carried(self, connection: Connection, peer: Peer, frame: ClientFrame, message: bytes) -> None:
        self._hub.router.forget_asker(peer.target, frame, peer, self._hub.clock.seconds())
        if connection.routed is peer:
            self._hub.no_daemon(connection, peer, message, counted=type(frame) is E2ee)

    # -- a daemon here, a client elsewhere -------------------------------------------------------------------------

    def daemon_frame(self, peer: Peer, relay_id: str, message: bytes) -> None:
        """A daemon's answer to what came from another relay."""
        parcel = Parcel(_key(peer.target), DAEMON_TO_CLIENTS, relay_id, peer.grant.claims.machine_id, message)
        self._backplane.publish(parcel, _nobody_waits)

    # -- off the bus -------------------------------------------------------------------------------------------------

    def arrived(self, arrival: Arrival) -> None:
        """A message from another relay; its signature is right."""
        target = self._hub.registry.find(*arrival.target)
        if arrival.direction == CLIENT_TO_DAEMON:
            self._to_daemon(target, arrival)
        else:
            self._to_clients(target, arrival)

    def _to_daemon(self, target: Target | None, arrival: Arrival) -> None:
        hub, now = self._hub, self._hub.clock.seconds()
        daemon = None if target is None else target.daemon
        if target is None or daemon is None:
            self._refuse(arrival, Drop(Reason.DAEMON_UNAVAILABLE, "it has left, or never was here"))
            return
        to = _connection(daemon)
        if to.outbox.blocked and to.outbox.pending >= hub.config.max_pending_bytes:
            self._refuse(arrival, Drop(Reason.BUFFER_OVERFLOW, "the daemon's queue is full"))
            return
        window = hub.windows.window(("workspace", arrival.target[0]), now)
        refused = hub.router.client_frame_of_relay(
            arrival.from_relay, daemon, decode_client(arrival.payload), window, now
        )
        if refused is not None:
            self._refuse(arrival, refused)
        elif to.take(self._bus, to.frame(arrival.payload)):
            hub.count_to_daemon(to, daemon, 1, len(arrival.payload))
            target.active_at = now

    def _to_clients(self, target: Target | None, arrival: Arrival) -> None:
        hub, now = self._hub, self._hub.clock.seconds()
        if target is None:
            self._refuse(arrival, Drop(Reason.NO_OWNER))
            return
        frame = decode_daemon(arrival.payload)
        window = hub.windows.window(("workspace-daemon", *arrival.target), now)
        verdict = hub.router.daemon_frame_of_relay(target, frame, window, now)
        if isinstance(verdict, Drop):
            self._refuse(arrival, verdict)
            return
        if isinstance(verdict, Peer):
            hub.watch_answer(_connection(verdict), frame)
            verdict = FanOut((verdict,))
        assert isinstance(verdict, FanOut)
        copies = hub.fan_out(verdict, arrival.payload)
        if copies:
            to = verdict.receivers[0]
            hub.count_to_clients(_connection(to), to, copies, copies * len(arrival.payload))
            target.active_at = now

    def _refuse(self, arrival: Arrival, drop: Drop) -> None:
        counters = self._hub.counters
        if arrival.direction == CLIENT_TO_DAEMON:
            counters.frames_client_rejected += 1
        else:
            counters.frames_daemon_rejected += 1
        counters.drops[drop.reason] += 1
        if drop.reason not in _COUNTED_ONLY:
            detail: dict[str, Any] = {"detail": drop.detail} if drop.detail else {}
            self._hub.log.event(
                "bus_drop",
                reason=drop.reason,
                sourceRelayId=arrival.from_relay,
                workspaceId=arrival.target[0],
                runtimeTargetId=arrival.target[1],
                **detail,
            )


def _nobody_waits() -> None:
    """A daemon's answer that cannot be carried is counted as a failed publish; the daemon hears nothing."""


def _key(target: Target) -> TargetKey:
    # Rooms without a target hold no daemon, and their clients' frames never ask for one.
    return target.workspace_id, target.runtime_target_id or ""


def _connection(peer: Peer) -> Connection:
    outlet = peer.outlet
    assert isinstance(outlet, Connection)
    return outlet
