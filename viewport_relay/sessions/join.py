"""Joining and leaving: from an admitted connection to a peer of routing, and back.

opened -> grant -> (link handshake) -> registry -> the role's handler ... closed -> registry -> successor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define
from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.claims import grant_for
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol import status
from viewport_relay.protocol.grant import Claims, Grant, Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.routing.model import Contested, Peer, Stale
from viewport_relay.routing.rates import Rates
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.views import Selection
from viewport_relay.sessions.contest import SEAT_CLOSE_DELAY, Contests
from viewport_relay.sessions.link import Links
from viewport_relay.sessions.remote import RemoteRelays
from viewport_relay.sessions.session import Session, session_of
from viewport_relay.windows import Window, WindowTable
from viewport_relay.wire.connection import Connection
from viewport_relay.wire.ending import Ending

#: Null object for a rate that a role does not have.
_NEVER_CHARGED: Final = Window()


@define(eq=False)
class Sessions:
    """All sessions of a relay. `begin` has what starts a joined peer of each role; `max_pending` is RELAY_MAX_PENDING_BYTES."""

    _clock: IReactorTime
    _log: EventSink
    _counters: Counters
    _registry: Registry
    _windows: WindowTable
    _links: Links
    _contests: Contests
    _remote: RemoteRelays
    _begin: Mapping[Role, Callable[[Session, Peer], None]]
    _max_pending: int

    # -- joining -----------------------------------------------------------------------------------------------

    def opened(self, connection: Connection, query: UpgradeQuery, claims: Claims) -> None:
        """After the 101 answer: check the claims against the query, then join the connection or close it."""
        self._counters.ws_connections_opened += 1
        connection.when_lost(self._lost)
        info = connection.info
        grant = grant_for(query, claims, info.connection_id)
        if isinstance(grant, Refusal):
            reply = None
            # On a link, text frames are not allowed and there are no keys yet: the Close frame alone says why.
            if grant.reason is Reason.MISSING_RUNTIME_TARGET_CLAIM and not info.link:
                reply = status.runtime_target_required(query.workspace_id)
            details = {**query.describe(), "clientId": claims.client_id}
            connection.close(grant.reason, grant.detail, reply=reply, details=details)
            assert connection.ending is not None
            self.note_close(connection, connection.ending, {"ip": info.ip})
            return
        self._links.begin(connection, query, grant, self._join, self.note_close)

    def _join(self, connection: Connection, grant: Grant, key_used: str | None) -> None:
        now = self._clock.seconds()
        info = connection.info
        target = self._registry.target(grant.workspace_id, grant.runtime_target_id, now)
        rates = self._rates(grant, info.ip, now)
        session = Session(connection, self.leave, key_used)
        peer = Peer(info.connection_id, grant, info.ip, now, session, rates, target)
        session.peer = peer
        connection.handler = session
        outcome = self._registry.join(peer, now)
        self._remote.peers_changed()
        if isinstance(outcome, Stale):
            connection.close(Reason.STALE_DAEMON_GENERATION, delay=SEAT_CLOSE_DELAY)
        elif isinstance(outcome, Contested):
            self._contests.begin(peer, outcome.holder)
        else:
            if outcome.replaced is not None:
                replaced = session_of(outcome.replaced).connection
                replaced.close(Reason.REPLACED_BY_NEWER_DAEMON, delay=SEAT_CLOSE_DELAY)
            self._take_part(session, peer)

    def _take_part(self, session: Session, peer: Peer) -> None:
        session.announced = True
        self._log.event(
            "join",
            connection_id=peer.connection_id,
            **peer.describe(),
            relayKeyUsed=session.key_used,
            noise=session.connection.info.noise,
        )
        self._begin[peer.role](session, peer)

    def _rates(self, grant: Grant, ip: str, now: float) -> Rates:
        """The rate windows of the grant's role."""
        table, never = self._windows, _NEVER_CHARGED
        if grant.role is not Role.CLIENT:
            own = table.window((grant.role.value, grant.workspace_id, grant.runtime_target_id), now)
            return Rates(table, (), runtime=never, workspace=never, daemon=own)
        client = (grant.workspace_id, *grant.charged_as, counted_as(ip))
        return Rates(
            table,
            client,
            runtime=table.window(("runtime", *client), now),
            workspace=table.window(("workspace", grant.workspace_id), now),
            daemon=never,
        )

    # -- leaving -----------------------------------------------------------------------------------------------

    def note_close(self, connection: Connection, ending: Ending, about: Mapping[str, Any]) -> None:
        """Count and log a close that the relay decided; a peer's own close is not counted."""
        reason = ending.logged_as or ending.reason
        if reason is None:
            return
        self._counters.closes[reason] += 1
        entry = {**about, **ending.details}
        if ending.detail:
            entry["detail"] = ending.detail
        self._log.event("close", reason=reason, connection_id=connection.info.connection_id, **entry)

    def leave(self, session: Session, ending: Ending) -> None:
        """End a session: take it out of routing first, then inform the others."""
        peer, session.peer = session.peer, None
        assert peer is not None
        peer.remote = None  # what is in it holds the peer
        about = peer.describe()
        self.note_close(session.connection, ending, about)
        successor = self._registry.leave(peer, self._clock.seconds())
        self._remote.peers_changed()
        if peer.role is Role.DAEMON:
            self._remote.seat_changed(peer.target)
        if session.announced:
            self._log_leave(peer, ending, about)
        daemon = peer.target.daemon
        if peer.role is Role.CLIENT and daemon is not None:
            self._bound_what_is_left(session, session_of(daemon))
        if successor is not None:
            self._take_part(session_of(successor), successor)
        if peer.role is Role.DAEMON:
            session.outbox.let_feeders_go()  # to the next daemon, or to be answered that there is none

    def _log_leave(self, peer: Peer, ending: Ending, about: dict[str, Any]) -> None:
        reason = ending.logged_as or ending.reason
        if reason is None:
            how, about["closeCode"] = ending.how, ending.code
        else:
            how, about["detail"] = reason.code, ending.detail or None
        seconds = round(self._clock.seconds() - peer.since, 3)
        self._log.event("leave", message=how, connection_id=peer.connection_id, **about, seconds=seconds)

    def _bound_what_is_left(self, session: Session, daemon: Session) -> None:
        # Messages that a client sent before it left still go to its daemon, up to a bound: short-lived clients must not
        # fill memory in front of a daemon that does not read.
        if daemon.outbox.queued > self._max_pending:
            daemon.outbox.forget(session.connection.reader)

    def _lost(self) -> None:
        self._counters.ws_connections_closed += 1

    # -- closing many ------------------------------------------------------------------------------------------

    def close_expired(self, before: float) -> None:
        """Close every peer whose token's `exp` lies before this time, seconds since the epoch (RELAY_TOKEN_EXPIRY=close)."""
        for peer in self._registry.expired(before):
            session_of(peer).connection.close(Reason.TOKEN_EXPIRED)

    def disconnect(self, selection: Selection) -> int:
        """Close the connections of a selection; returns their number."""
        found = [
            peer
            for peer in self._registry.peers()
            if selection.connection_id in (None, peer.connection_id)
            and selection.workspace_id in (None, peer.grant.workspace_id)
            and selection.runtime_target_id in (None, peer.grant.runtime_target_id)
            and selection.token_id in (None, peer.grant.claims.token_id)
        ]
        for peer in found:
            session_of(peer).connection.close(Reason.DISCONNECTED_BY_OPERATOR)
        return len(found)


def target_of(connection: Connection) -> tuple[str, str]:
    """Workspace and target of a connection, both empty if it has not joined."""
    session = connection.handler
    peer = session.peer if isinstance(session, Session) else None
    return ("", "") if peer is None else (peer.grant.workspace_id, peer.grant.runtime_target_id or "")
