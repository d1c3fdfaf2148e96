"""What happens on an upgraded connection: it joins, its frames are routed, it leaves.

The hub carries out what routing decides; it holds no rule of its own about who may say what. One hub serves all
connections of a process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.claims import grant_for
from viewport_relay.admission.limits import Window, WindowTable
from viewport_relay.backplane.interface import Backplane
from viewport_relay.backplane.single import Single
from viewport_relay.config import Config
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol import status
from viewport_relay.protocol.decoding import decode_client, decode_daemon, decode_worker, fast_e2ee
from viewport_relay.protocol.frames import (
    DaemonFrame,
    KeyExchangeInit,
    KeyExchangeResponse,
    KeyUpdateRequired,
)
from viewport_relay.protocol.grant import Claims, Grant, Role, UpgradeQuery
from viewport_relay.protocol.json import Message, is_utf8
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.routing.decisions import Close, Decision, Drop, FanOut, NoDaemon, Publish, Reply
from viewport_relay.routing.model import Contested, Peer, Stale
from viewport_relay.routing.rates import FrameRates, Rates
from viewport_relay.routing.registry import Registry
from viewport_relay.routing.router import Router
from viewport_relay.wire.elsewhere import Elsewhere
from viewport_relay.wire.fastpath import Judge, release_buffers
from viewport_relay.wire.heartbeat import STOOD_STILL
from viewport_relay.wire.link import ConnectionLink
from viewport_relay.wire.websocket import SEAT_CLOSE_DELAY, Connection, text_frame
from viewport_relay.wire.worker import WorkerTransport

#: Seconds between two looks at a contested daemon's signs of life.
_CONTEST_POLL: Final = 0.05

#: Stands where a role has no such rate.
_NEVER_CHARGED: Final = Window()

#: Reasons of dropped frames that are counted but not worth a line each.
_COUNTED_ONLY: Final = frozenset({Reason.NO_OWNER})


class Hub:
    """Joins the wire with routing."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        log: EventSink,
        counters: Counters,
        worker_transport: WorkerTransport,
        keys: RelayKeys,
        now: Callable[[], float] = time.time,
        backplane: Backplane | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.log = log
        self.counters = counters
        self.keys = keys
        self.registry = Registry(
            most_requests=config.request_track_max, most_sessions=config.session_owner_track_max
        )
        self.router = Router(
            FrameRates(
                key_exchange=config.kex_rate,
                pairing=config.pairing_rate,
                runtime=config.runtime_rate,
                workspace=config.runtime_rate_workspace,
                daemon=config.daemon_rate,
            )
        )
        self._judge_client, self._judge_daemon = self._client_judge(), self._daemon_judge()
        self._count_to_daemon, self._count_to_clients = self.count_to_daemon, self.count_to_clients
        self._decide_client, self._decide_daemon = self._client_decision, self._daemon_decision
        self.windows = WindowTable()
        self._worker_transport = worker_transport
        self._now = now
        self.elsewhere = Elsewhere(self, backplane or Single())

    # -- coming --------------------------------------------------------------------------------------------

    def opened(self, connection: Connection, query: UpgradeQuery, claims: Claims) -> None:
        """The upgrade is answered: judge the claims against the query and let the connection in."""
        self.counters.ws_connections_opened += 1
        connection.when_lost(self._closed)
        grant = grant_for(query, claims, connection.connection_id)
        if isinstance(grant, Refusal):
            reply = None
            # On a link nothing travels as text, and there are no keys yet: the Close says it alone.
            if grant.reason is Reason.MISSING_RUNTIME_TARGET_CLAIM and not connection.link:
                reply = status.runtime_target_required(query.workspace_id)
            details = {
                "role": query.role.value,
                "workspaceId": query.workspace_id,
                "runtimeTargetId": query.runtime_target_id,
                "clientId": claims.client_id,
                "ip": connection.ip,
            }
            connection.end(grant.reason, grant.detail, reply=reply, details=details)
            return
        join = partial(self._join, connection, grant)
        connection.link_side = ConnectionLink(connection, query, grant, self.keys, self.config, join)
        connection.link_side.begin()

    def _join(self, connection: Connection, grant: Grant) -> None:
        now = self.clock.seconds()
        target = self.registry.room(grant.workspace_id, grant.runtime_target_id, now)
        rates = self._rates(grant, connection.ip, now)
        peer = Peer(connection.connection_id, grant, connection.ip, self._now(), connection, rates, target)
        connection.routed = peer
        arrival = self.registry.join(peer, now)
        self.elsewhere.peers_changed()
        if isinstance(arrival, Stale):
            connection.end(Reason.STALE_DAEMON_GENERATION, delay=SEAT_CLOSE_DELAY)
        elif isinstance(arrival, Contested):
            self._contest(connection, peer, arrival.holder)
        else:
            if arrival.replaced is not None:
                _connection(arrival.replaced).end(Reason.REPLACED_BY_NEWER_DAEMON, delay=SEAT_CLOSE_DELAY)
            self._listen(connection, peer)

    def _listen(self, connection: Connection, peer: Peer) -> None:
        """The peer takes part from now on."""
        connection.announced = True
        about = peer.describe()
        link = connection.link_side
        if link is not None and link.noise.key_used is not None:
            about["relayKeyUsed"] = link.noise.key_used
        self.log.event("join", connection_id=peer.connection_id, **about, noise=connection.noise)
        if peer.role is Role.CLIENT:
            connection.route(
                self._judge_client,
                self._decide_client,
                self._count_to_daemon,
                is_daemon=False,
            )
            self.elsewhere.greet(connection, peer)
        elif peer.role is Role.DAEMON:
            connection.route(
                self._judge_daemon,
                self._decide_daemon,
                self._count_to_clients,
                is_daemon=True,
            )
            self.elsewhere.seat_changed(peer.target)
        else:
            connection.receive = partial(self._from_worker, connection, peer)

    def _rates(self, grant: Grant, ip: str, now: float) -> Rates:
        """The windows that its role is charged to; none is made for the others."""
        table, never = self.windows, _NEVER_CHARGED
        if grant.role is not Role.CLIENT:
            own = table.window((grant.role.value, grant.workspace_id, grant.runtime_target_id), now)
            return Rates(table.window, (), runtime=never, workspace=never, daemon=own)
        client = (grant.workspace_id, grant.client_id, counted_as(ip))
        return Rates(
            table.window,
            client,
            runtime=table.window(("runtime", *client), now),
            workspace=table.window(("workspace", grant.workspace_id), now),
            daemon=never,
        )

    # -- the daemon's seat -----------------------------------------------------------------------------------

    def _contest(self, connection: Connection, peer: Peer, holder: Peer) -> None:
        """A daemon of equal generation waits until the one that sits shows life, or does not."""
        began = self.clock.seconds()
        _connection(holder).ping(began)
        deadline = began + self.config.pong_timeout_ms / 1000
        self._poll_contest(connection, peer, holder, began, deadline)

    def _poll_contest(
        self, connection: Connection, peer: Peer, holder: Peer, began: float, deadline: float
    ) -> None:
        due = self.clock.seconds() + _CONTEST_POLL
        self.clock.callLater(_CONTEST_POLL, self._contested, connection, peer, holder, began, deadline, due)

    def _contested(
        self, connection: Connection, peer: Peer, holder: Peer, began: float, deadline: float, due: float
    ) -> None:
        seat, now = peer.target.seat, self.clock.seconds()
        if connection.routed is not peer or seat.holder is peer:
            return  # gone, or seated meanwhile
        if peer not in seat.challengers:  # a higher generation sat down before it
            connection.end(Reason.STALE_DAEMON_GENERATION, delay=SEAT_CLOSE_DELAY)
        elif seat.holder is holder and now - due > STOOD_STILL:
            self._contest(connection, peer, holder)  # what it said meanwhile is not read yet: all over again
        elif seat.holder is not holder or _connection(holder).last_seen > began:
            seat.challengers.remove(peer)
            connection.end(Reason.DAEMON_ALREADY_CONNECTED, delay=SEAT_CLOSE_DELAY)
        else:
            if _connection(holder).paused:  # whom we do not read, no clock runs against
                deadline += _CONTEST_POLL
            elif now >= deadline:
                self.counters.ws_stale_terminated += 1
                _connection(holder).cut(Reason.PONG_TIMEOUT)  # leaves, and so seats the first who may sit
            self._poll_contest(connection, peer, holder, began, deadline)

    # -- going -----------------------------------------------------------------------------------------------

    def ended(self, connection: Connection, reason: Reason, detail: str, details: dict[str, Any]) -> None:
        """The relay ends this connection: it is out of routing before anything else happens."""
        self.counters.closes[reason] += 1
        known = connection.routed or connection.link_side
        about = {"ip": connection.ip} if known is None else known.describe()
        self.log.event(
            "close",
            reason=reason,
            connection_id=connection.connection_id,
            **{**about, **details, **({"detail": detail} if detail else {})},
        )
        self._leave(connection, reason.code)

    def noted(self, connection: Connection, reason: Reason, detail: str, details: dict[str, Any]) -> None:
        """Something about a connection that has gone is worth a line."""
        about = {"ip": connection.ip, **details, "detail": detail}
        self.log.event("handshake", reason=reason, connection_id=connection.connection_id, **about)

    def left(self, connection: Connection, how: str, code: int | None) -> None:
        """The peer closed, or its connection is lost."""
        self._leave(connection, how, code)

    def _closed(self) -> None:
        self.counters.ws_connections_closed += 1

    def _leave(self, connection: Connection, how: str, code: int | None = None) -> None:
        peer, connection.routed = connection.routed, None
        if peer is None:
            return
        successor = self.registry.leave(peer, self.clock.seconds())
        self.elsewhere.peers_changed()
        if peer.role is Role.DAEMON:
            self.elsewhere.seat_changed(peer.target)
        if connection.announced:
            about = peer.describe()
            if code is not None:
                about["closeCode"] = code
            seconds = round(self._now() - peer.since, 3)
            self.log.event("leave", message=how, connection_id=peer.connection_id, **about, seconds=seconds)
        if peer.role is Role.CLIENT and peer.target.daemon is not None:
            self._bound_what_is_left(connection, _connection(peer.target.daemon))
        if successor is not None:
            self._listen(_connection(successor), successor)
        if peer.role is Role.DAEMON:
            connection.outbox.let_feeders_go()  # to the next daemon, or to be told that there is none

    def _bound_what_is_left(self, connection: Connection, daemon: Connection) -> None:
        # What a client sent before it left still goes to its daemon, unless clients that come and go would fill
        # the memory in front of a daemon that does not read.
        if daemon.outbox.queued > self.config.max_pending_bytes:
            daemon.outbox.forget(connection)

    def clean_up(self) -> None:
        """Forget empty targets and what has aged out; called every RELAY_CLEANUP_INTERVAL_MS."""
        self.registry.clean_up(self.clock.seconds(), self.config.empty_workspace_ttl_ms / 1000)
        release_buffers()

    # -- frames --------------------------------------------------------------------------------------------------

    # One judge for all clients and one for all daemons: what is made for each connection is one thing more that every
    # frame has to find in memory.

    def _client_judge(self) -> Judge:
        client_e2ee, client_frame = self.router.client_e2ee, self.router.client_frame

        def judge(peer: Peer, message: Message, now: float) -> Peer | Decision | None:
            envelope = fast_e2ee(message)
            if envelope is not None:
                return client_e2ee(peer, envelope.profile, envelope.session_id, message, now)
            if not is_utf8(message):
                return None
            rare = decode_client(message, fast=False)
            verdict = client_frame(peer, rare, message, now)
            if type(rare) is KeyExchangeInit and type(verdict) is Peer:
                exchange = _connection(peer).exchange
                exchange.init_seen(rare.request_id, rare.profile, rare.previous_session_id)
            return verdict

        return judge

    def _daemon_judge(self) -> Judge:
        router = self.router
        daemon_rate, daemon_e2ee = router.daemon_rate, router.daemon_e2ee

        def judge(peer: Peer, message: Message, now: float) -> Peer | Decision | None:
            envelope = fast_e2ee(message)
            if envelope is None and not is_utf8(message):
                return None
            limited = daemon_rate(peer, now)
            if limited is not None:
                return limited
            if envelope is not None:
                return daemon_e2ee(peer, envelope.profile, envelope.session_id, now)
            rare = decode_daemon(message, fast=False)
            verdict = router.daemon_frame(peer, rare, now)
            if type(verdict) is Peer:
                self.watch_answer(_connection(verdict), rare)
            return verdict

        return judge

    @staticmethod
    def watch_answer(client: Connection, frame: DaemonFrame | None) -> None:
        """Note what a daemon's answer makes of the client's end-to-end exchange, for `/state`."""
        if isinstance(frame, KeyExchangeResponse):
            client.exchange.response_seen(frame.request_id, frame.session_id, frame.profile, frame.epoch)
        elif isinstance(frame, KeyUpdateRequired):
            client.exchange.key_update_seen(frame.session_id, frame.next_epoch)

    def count_to_daemon(self, connection: Connection, peer: Peer, frames: int, size: int) -> None:
        counters, target = self.counters, peer.target
        counters.frames_client_to_daemon += frames
        counters.bytes_client_to_daemon += size
        target.frames += frames
        target.bytes += size
        target.active_at = connection.now

    def count_to_clients(self, connection: Connection, peer: Peer, frames: int, size: int) -> None:
        counters, target = self.counters, peer.target
        counters.frames_daemon_to_clients += frames
        counters.bytes_daemon_to_clients += size
        target.frames += frames
        target.bytes += size
        target.active_at = connection.now

    def _from_worker(self, connection: Connection, peer: Peer, message: bytes) -> None:
        limited = self.router.worker_rate(peer, connection.now)
        if limited is not None:
            self.close(connection, limited)
            return
        frame = decode_worker(message)
        if frame is None:
            self.drop(peer, Drop(Reason.INVALID_FRAME))
        else:
            peer.target.active_at = connection.now
            self._worker_transport.take(connection, peer, frame)

    # -- decisions -----------------------------------------------------------------------------------------------

    def _client_decision(
        self, connection: Connection, peer: Peer, verdict: Peer | Decision, message: bytes
    ) -> None:
        match verdict:
            case Reply(text, reason):
                if reason is not None:
                    self.counters.frames_client_rejected += 1
                    self.counters.drops[reason] += 1
                connection.deliver(text.encode())
            case NoDaemon(frame):
                self.elsewhere.client_frame(connection, peer, frame, message)
            case Drop():
                self.counters.frames_client_rejected += 1
                self.drop(peer, verdict)
            case Close():
                self.counters.frames_client_rejected += 1
                self.close(connection, verdict)
            case FanOut():
                self.fan_out(verdict, message)
            case _:
                raise AssertionError(f"not a decision about a client's frame: {verdict!r}")

    def _daemon_decision(
        self, connection: Connection, peer: Peer, verdict: Peer | Decision, message: bytes
    ) -> None:
        match verdict:
            case FanOut():
                copies = self.fan_out(verdict, message)
                self.count_to_clients(connection, peer, copies, copies * len(message))
            case Drop():
                self.counters.frames_daemon_rejected += 1
                self.drop(peer, verdict)
            case Close():
                self.counters.frames_daemon_rejected += 1
                self.close(connection, verdict)
            case Publish(relay_id):
                self.elsewhere.daemon_frame(peer, relay_id, message)
            case _:
                raise AssertionError(f"not a decision about a daemon's frame: {verdict!r}")

    def fan_out(self, decision: FanOut, message: bytes) -> int:
        """Send one message to several receivers; how many of them take it."""
        text, copies = text_frame(message), 0  # one copy, however many queues hold it
        for receiver in decision.receivers:
            to = _connection(receiver)
            if decision.lossy and to.outbox.blocked:
                self.counters.presence_missed += 1
            else:
                copies += to.take(None, to.frame(message) if to.sealed else text)
        return copies

    def no_daemon(self, connection: Connection, peer: Peer, message: bytes, *, counted: bool = False) -> None:
        """A client's frame reaches no daemon anywhere. `counted`: its rate is charged already."""
        limited = self.router.charge(peer, message, self.clock.seconds(), counted=counted)
        if limited is not None:
            self.counters.frames_client_rejected += 1
            self.close(connection, limited)
            return
        grant = peer.grant
        self.counters.drops[Reason.DAEMON_UNAVAILABLE] += 1
        text = status.daemon_unavailable(grant.workspace_id, grant.runtime_target_id, grant.claims.machine_id)
        connection.deliver(text.encode())

    def drop(self, peer: Peer, drop: Drop) -> None:
        """A frame of this peer goes nowhere."""
        self.counters.drops[drop.reason] += 1
        if drop.reason not in _COUNTED_ONLY:
            detail: dict[str, Any] = {"detail": drop.detail} if drop.detail else {}
            self.log.event(
                "drop", reason=drop.reason, connection_id=peer.connection_id, **peer.describe(), **detail
            )

    def close(self, connection: Connection, close: Close) -> None:
        """Close a connection as the router decided."""
        connection.end(close.reason, close.detail, reply=close.reply, logged_as=close.logged_as)


def _connection(peer: Peer) -> Connection:
    outlet = peer.outlet
    assert isinstance(outlet, Connection)
    return outlet
