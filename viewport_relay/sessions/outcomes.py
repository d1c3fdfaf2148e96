"""Outcomes of frames that are not simply forwarded: counted, logged, and answered by the relay. The same for every role."""

from __future__ import annotations

from collections.abc import Sized
from typing import Final

from attrs import define

from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol import status
from viewport_relay.protocol.frames import DaemonFrame, KeyExchangeResponse, KeyUpdateRequired
from viewport_relay.protocol.framing import text_header
from viewport_relay.protocol.grant import Role
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close, Drop, FanOut
from viewport_relay.routing.model import Peer
from viewport_relay.routing.router import Router
from viewport_relay.sessions.session import session_of

#: Reasons of dropped frames that are counted but not worth a line each.
COUNTED_ONLY: Final = frozenset({Reason.NO_OWNER})


@define(eq=False)
class Outcomes:
    """Counts forwarded frames, and carries out decisions that the roles share."""

    _router: Router
    log: EventSink
    counters: Counters

    def count_to_daemon(self, peer: Peer, frames: int, size: int, now: float) -> None:
        """Count frames of this client that were sent to a daemon of this relay."""
        counters, target = self.counters, peer.target
        counters.frames_client_to_daemon += frames
        counters.bytes_client_to_daemon += size
        target.frames += frames
        target.bytes += size
        target.active_at = now

    def count_to_clients(self, peer: Peer, frames: int, size: int, now: float) -> None:
        """Count frames of this daemon (or of its relay) that were sent to clients of this relay."""
        counters, target = self.counters, peer.target
        counters.frames_daemon_to_clients += frames
        counters.bytes_daemon_to_clients += size
        target.frames += frames
        target.bytes += size
        target.active_at = now

    def fan_out(self, decision: FanOut, message: bytes) -> int:
        """Send one message to several receivers; returns how many of them take it."""
        frame, copies = text_header(len(message)) + message, 0  # one copy, however many queues hold it
        for receiver in decision.receivers:
            outbox = session_of(receiver).outbox
            if decision.lossy and outbox.blocked:
                self.counters.presence_missed += 1
            else:
                copies += outbox.send(message) if outbox.sealed else outbox.take(frame)
        return copies

    def no_daemon(self, peer: Peer, message: Sized, now: float, *, counted: bool = False) -> None:
        """Answer a client's frame for which no relay has a daemon. `counted`: its rate is charged already."""
        limited = self._router.charge(peer, message, now, counted=counted)
        if limited is not None:
            self.refuse(peer, limited)
            return
        grant = peer.grant
        self.counters.drops[Reason.DAEMON_UNAVAILABLE] += 1
        text = status.daemon_unavailable(grant.workspace_id, grant.runtime_target_id, grant.claims.machine_id)
        session_of(peer).outbox.send(text.encode())

    def refuse(self, peer: Peer, decision: Drop | Close) -> None:
        """Drop a frame of this client or daemon, or close its connection, and count the frame as rejected."""
        if peer.role is Role.DAEMON:
            self.counters.frames_daemon_rejected += 1
        else:
            self.counters.frames_client_rejected += 1
        if isinstance(decision, Drop):
            self.drop(peer, decision)
        else:
            self.close(peer, decision)

    def drop(self, peer: Peer, drop: Drop) -> None:
        """Count and log a dropped frame of this peer."""
        self.counters.drops[drop.reason] += 1
        if drop.reason not in COUNTED_ONLY:
            about, detail = peer.describe(), drop.detail or None
            self.log.event(
                "drop", reason=drop.reason, connection_id=peer.connection_id, **about, detail=detail
            )

    @staticmethod
    def close(peer: Peer, close: Close) -> None:
        """Close the connection of this peer."""
        connection = session_of(peer).connection
        connection.close(close.reason, close.detail, reply=close.reply, logged_as=close.logged_as)

    @staticmethod
    def watch_answer(client: Peer, frame: DaemonFrame | None) -> None:
        """Tell the client's `ExchangeWatch` of a daemon's answer, for `/state`."""
        if isinstance(frame, KeyExchangeResponse):
            session_of(client).exchange.response_seen(
                frame.request_id, frame.session_id, frame.profile, frame.epoch
            )
        elif isinstance(frame, KeyUpdateRequired):
            session_of(client).exchange.key_update_seen(frame.session_id, frame.next_epoch)
