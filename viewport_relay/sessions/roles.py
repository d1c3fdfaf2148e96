"""The handlers of the client's and the daemon's role. Frames go to their receivers, here or on other relays.

All peers of a role share one `judge` function, which stays in the processor's cache.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from viewport_relay.protocol.decoding import decode_client, decode_daemon, fast_e2ee
from viewport_relay.protocol.frames import KeyExchangeInit
from viewport_relay.protocol.json import Message, is_utf8
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close, Decision, Drop, FanOut, NoDaemon, Publish, Reply, Route
from viewport_relay.routing.model import Peer
from viewport_relay.routing.router import Router
from viewport_relay.sessions.outcomes import Outcomes
from viewport_relay.sessions.remote import RemoteRelays
from viewport_relay.sessions.session import Session, session_of
from viewport_relay.wire.intake import Intakes
from viewport_relay.wire.interfaces import Judge

#: Most bytes queued for all clients of one target together, in units of RELAY_MAX_PENDING_BYTES.
TARGET_QUEUES: Final = 8


class ClientRole:
    """The handler of the client role: frames go to the daemon of the client's target."""

    def __init__(
        self, router: Router, outcomes: Outcomes, remote: RemoteRelays, intakes: Intakes, max_pending: int
    ) -> None:
        """`max_pending` is RELAY_MAX_PENDING_BYTES."""
        self._intakes = intakes
        self._most_queued = TARGET_QUEUES * max_pending
        self._outcomes = outcomes
        self._remote = remote
        self._judge = _client_judge(router)

    def begin(self, session: Session, peer: Peer) -> None:
        """Start to route the client's messages."""
        session.outbox.on_backlog = partial(self._bound_target, peer)
        intake = self._intakes.of(peer.rates.client)
        session.connection.reader.route(
            peer, self._judge, self._decide, self._outcomes.count_to_daemon, intake
        )
        self._remote.greet(peer)

    def _bound_target(self, peer: Peer) -> None:
        """Close the client with the longest queue when the queues of its target are too long together."""
        heaviest = peer.target.heaviest(self._most_queued)
        if heaviest is not None:
            session = session_of(heaviest)
            self._outcomes.counters.ws_slow_client_terminated += 1
            session.connection.close(
                Reason.BUFFER_OVERFLOW,
                f"{session.backlog} bytes are queued, the most of this target's clients",
            )

    def _decide(self, peer: Peer, decision: Decision, message: bytes) -> None:
        outcomes = self._outcomes
        match decision:
            case Reply(text, reason):
                if reason is not None:
                    outcomes.counters.frames_client_rejected += 1
                    outcomes.counters.drops[reason] += 1
                session_of(peer).outbox.send(text.encode())
            case NoDaemon(frame):
                self._remote.client_frame(peer, frame, message)
            case Drop() | Close():
                outcomes.refuse(peer, decision)
            case FanOut():
                outcomes.fan_out(decision, message)
            case _:
                raise AssertionError(f"not a decision about a client's frame: {decision!r}")


def _client_judge(router: Router) -> Judge:
    client_e2ee, client_frame = router.client_e2ee, router.client_frame

    def judge(peer: Peer, message: Message, now: float) -> Route | None:
        envelope = fast_e2ee(message)
        if envelope is not None:
            return client_e2ee(peer, envelope.profile, envelope.session_id, message, now)
        if not is_utf8(message):
            return None
        rare = decode_client(message, fast=False)
        route = client_frame(peer, rare, message, now)
        if type(rare) is KeyExchangeInit and type(route) is Peer:
            exchange = session_of(peer).exchange
            exchange.init_seen(rare.request_id, rare.profile, rare.previous_session_id)
        return route

    return judge


class DaemonRole:
    """The handler of the daemon role: frames go to the clients that asked or subscribed."""

    def __init__(self, router: Router, outcomes: Outcomes, remote: RemoteRelays) -> None:
        self._outcomes = outcomes
        self._remote = remote
        self._judge = _daemon_judge(router, outcomes)

    def begin(self, session: Session, peer: Peer) -> None:
        """Start to route the messages of a seated daemon."""
        session.outbox.feed_fairly()
        session.connection.reader.route(peer, self._judge, self._decide, self._outcomes.count_to_clients)
        self._remote.seat_changed(peer.target)

    def _decide(self, peer: Peer, decision: Decision, message: bytes) -> None:
        outcomes = self._outcomes
        match decision:
            case FanOut():
                copies = outcomes.fan_out(decision, message)
                now = session_of(peer).connection.reader.last_seen
                outcomes.count_to_clients(peer, copies, copies * len(message), now)
            case Drop() | Close():
                outcomes.refuse(peer, decision)
            case Publish(relay_id, frame):
                self._remote.daemon_frame(peer, relay_id, frame, message)
            case _:
                raise AssertionError(f"not a decision about a daemon's frame: {decision!r}")


def _daemon_judge(router: Router, outcomes: Outcomes) -> Judge:
    own_rate, daemon_e2ee = router.own_rate, router.daemon_e2ee

    def judge(peer: Peer, message: Message, now: float) -> Route | None:
        envelope = fast_e2ee(message)
        if envelope is None and not is_utf8(message):
            return None
        limited = own_rate(peer, now)
        if limited is not None:
            return limited
        if envelope is not None:
            return daemon_e2ee(peer, envelope.profile, envelope.session_id, now)
        rare = decode_daemon(message, fast=False)
        route = router.daemon_frame(peer, rare, now)
        if type(route) is Peer:
            outcomes.watch_answer(route, rare)
        return route

    return judge
