"""The daemon's role: its frames go to the clients that asked or subscribed, here or on other relays."""

from __future__ import annotations

from viewport_relay.protocol.decoding import decode_daemon, fast_e2ee
from viewport_relay.protocol.json import Message, is_utf8
from viewport_relay.routing.decisions import Close, Decision, Drop, FanOut, Publish
from viewport_relay.routing.model import Peer, RemoteSession
from viewport_relay.routing.router import Router
from viewport_relay.sessions.outcomes import Outcomes
from viewport_relay.sessions.remote import RemoteRelays
from viewport_relay.sessions.session import Session, session_of
from viewport_relay.wire.interfaces import Judge


class DaemonRole:
    """The handler of the daemon role. All daemons share one `judge` function, which stays in the processor's cache."""

    def __init__(self, router: Router, outcomes: Outcomes, remote: RemoteRelays) -> None:
        self._outcomes = outcomes
        self._remote = remote
        self._judge = _judge(router, outcomes)

    def begin(self, session: Session, peer: Peer) -> None:
        """Start to route the messages of a seated daemon."""
        session.outbox.feed_fairly()
        session.connection.reader.route(peer, self._judge, self._decide, self._outcomes.count_to_clients)
        self._remote.seat_changed(peer.target)

    def _decide(self, peer: Peer, verdict: Decision, message: bytes) -> None:
        outcomes = self._outcomes
        match verdict:
            case FanOut():
                copies = outcomes.fan_out(verdict, message)
                now = session_of(peer).connection.reader.last_seen
                outcomes.count_to_clients(peer, copies, copies * len(message), now)
            case Drop() | Close():
                outcomes.refuse(peer, verdict)
            case Publish(relay_id, frame):
                self._remote.daemon_frame(peer, relay_id, frame, message)
            case _:
                raise AssertionError(f"not a decision about a daemon's frame: {verdict!r}")


def _judge(router: Router, outcomes: Outcomes) -> Judge:
    own_rate, daemon_e2ee = router.own_rate, router.daemon_e2ee

    def judge(peer: Peer, message: Message, now: float) -> Peer | RemoteSession | Decision | None:
        envelope = fast_e2ee(message)
        if envelope is None and not is_utf8(message):
            return None
        limited = own_rate(peer, now)
        if limited is not None:
            return limited
        if envelope is not None:
            return daemon_e2ee(peer, envelope.profile, envelope.session_id, now)
        rare = decode_daemon(message, fast=False)
        verdict = router.daemon_frame(peer, rare, now)
        if type(verdict) is Peer:
            outcomes.watch_answer(verdict, rare)
        return verdict

    return judge
