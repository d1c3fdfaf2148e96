"""Delivers frames that came over the bus, from peers on other relays, to the daemon or the clients of this relay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define
from twisted.internet.interfaces import IReactorTime

from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, Arrival
from viewport_relay.protocol.decoding import decode_client, decode_daemon
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Drop, FanOut
from viewport_relay.routing.model import Peer, Target
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.sessions.outcomes import COUNTED_ONLY, Outcomes
from viewport_relay.sessions.session import session_of
from viewport_relay.windows import Window, WindowTable
from viewport_relay.wire.outbox import Outbox
from viewport_relay.wire.turn import Turn


class BusFeeder:
    """The feeder of frames that came over the bus: a lane of its own in the outbox of each daemon. The feeder is never paused."""

    def pause_reading(self, cause: object) -> None: ...
    def resume_reading(self, cause: object) -> None: ...


@define(eq=False)
class Arrivals:
    """Delivers arrivals to their receivers. Several messages of one arrival are e2ee frames of one session, with one decision.

    `max_pending`: bytes that may wait for a daemon here before frames off the bus are dropped.
    """

    _clock: IReactorTime
    _registry: Registry
    _router: Router
    _windows: WindowTable
    _outcomes: Outcomes
    _max_pending: int
    _turn: Turn
    _feeder: BusFeeder

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Deliver messages of other relays whose signatures are verified. Those for one peer are sent in one write."""
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
        daemon = None if target is None else target.seat.holder
        if daemon is None:
            self._refuse(arrival, Drop(Reason.DAEMON_UNAVAILABLE, "the daemon has left, or was never here"))
            return
        outbox = session_of(daemon).outbox
        if outbox.blocked and outbox.pending >= self._max_pending:
            self._refuse(arrival, Drop(Reason.BUFFER_OVERFLOW, "the daemon's queue is full"))
            return
        window = self._windows.window(("workspace", arrival.target[0]), now)
        frame = arrival.frame or decode_client(arrival.payloads[0])
        refused = self._router.client_frame_of_relay(arrival.from_relay, daemon, frame, window, now)
        if refused is not None:
            self._refuse(arrival, refused)
            return
        if len(arrival.sizes) > 1:
            limit, over = self._router.rates.workspace, self._router.over_workspace
            arrival = self._within_rate(arrival, window, limit, over, now)
        sizes = self._send(outbox, arrival)
        if sizes:
            self._outcomes.count_to_daemon(daemon, len(sizes), sum(sizes), now)

    def _to_clients(self, target: Target | None, arrival: Arrival, now: float) -> None:
        if target is None:
            self._refuse(arrival, Drop(Reason.NO_OWNER))
            return
        frame = arrival.frame or decode_daemon(arrival.payloads[0])
        window = self._windows.window(("workspace-daemon", *arrival.target), now)
        route = self._router.daemon_frame_of_relay(target, frame, window, now)
        if type(route) is Peer:
            if arrival.frame is None:
                self._outcomes.watch_answer(route, frame)
            if len(arrival.sizes) > 1:
                limit, over = self._router.rates.daemon, self._router.over_daemon
                arrival = self._within_rate(arrival, window, limit, over, now)
            sizes = self._send(session_of(route).outbox, arrival)
            if sizes:
                self._outcomes.count_to_clients(route, len(sizes), sum(sizes), now)
        elif isinstance(route, FanOut):  # of a message that was decoded here, which is one
            copies = self._outcomes.fan_out(route, arrival.payloads[0])
            if copies:
                self._outcomes.count_to_clients(route.receivers[0], copies, copies * arrival.sizes[0], now)
        else:
            assert isinstance(route, Drop)
            self._refuse(arrival, route)

    def _within_rate(
        self, arrival: Arrival, window: Window, limit: int, over: Callable[[], Drop], now: float
    ) -> Arrival:
        """The messages that are within the rate; the first is charged already."""
        wanted = len(arrival.sizes)
        taken = 1 + window.hits(wanted - 1, now, limit)
        if taken == wanted:
            return arrival
        self._refuse(arrival, over(), wanted - taken)
        return arrival.first(taken)

    def _send(self, outbox: Outbox, arrival: Arrival) -> Sequence[int]:
        """Send an arrival at the end of the turn, or queue it; returns the sizes of the messages that the outbox takes."""
        if outbox.ready is None:
            return [len(payload) for payload in arrival.payloads if outbox.send(payload, self._feeder)]
        outbox.hold(arrival.frames)
        return arrival.sizes

    def _refuse(self, arrival: Arrival, drop: Drop, frames: int = 0) -> None:
        """Count `frames` of the arrival, or all, as dropped."""
        counters, frames = self._outcomes.counters, frames or len(arrival.sizes)
        if arrival.direction == CLIENT_TO_DAEMON:
            counters.frames_client_rejected += frames
        else:
            counters.frames_daemon_rejected += frames
        counters.drops[drop.reason] += frames
        if drop.reason not in COUNTED_ONLY:
            self._outcomes.log.event(
                "bus_drop",
                reason=drop.reason,
                sourceRelayId=arrival.from_relay,
                workspaceId=arrival.target[0],
                runtimeTargetId=arrival.target[1],
                detail=drop.detail or None,
            )
