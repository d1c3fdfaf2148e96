"""The `/ws` resource: from an upgrade request to an admitted connection, or to a refusal that says why.

    request -> limits and form, cheapest first -> `await gate.admit` -> 101 and hand-over to `Connection`

`twisted.web` has read the request. The connection is handed to the WebSocket protocol only after it was admitted, and in
the open state: this module writes the 101. Until then the HTTP channel keeps what the peer sends early, within a bound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.gate import Gate
from viewport_relay.admission.limits import ConnectionCounts, Ticket, WindowCounter
from viewport_relay.admission.token import LINK_SUBPROTOCOL, TokenSource, select_subprotocol, token_from
from viewport_relay.config import BY_ATTRIBUTE, Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.channel import RelayChannel
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.connection import Connection, ConnectionFactory, ConnectionInfo
from viewport_relay.wire.handshake import (
    check_handshake,
    header,
    header_values,
    is_upgrade,
    parse_query,
    switching_protocols,
)

#: Takes over an open connection with what was asked and what the platform says of its token.
Opened = Callable[[Connection, UpgradeQuery, Claims], None]

#: Reasons that come from the token check on: a browser gets them as a Close, since it cannot read HTTP refusals.
_CLOSABLE: Final = frozenset(
    r for r in Reason if r.entry.status and r.entry.close and r is not Reason.RELAY_SHUTTING_DOWN
)

#: Reasons that many clients meet at once where a proxy hides their addresses.
_BY_ADDRESS: Final = frozenset({Reason.RATE_LIMIT_EXCEEDED, Reason.TOO_MANY_CONNECTIONS_PER_IP})


@define(eq=False)
class Attempt:
    """One upgrade that is not decided yet: what is known of it so far, and its place in the counts."""

    connection_id: str
    ip: str
    request: Request
    query: UpgradeQuery | None = None
    token: TokenSource | None = None
    subprotocols: tuple[str, ...] = ()
    ticket: Ticket | None = None
    client_id: str | None = None
    transport: Any = None  # set when the connection has taken it over

    @property
    def channel(self) -> RelayChannel:
        channel: Any = self.request.channel
        assert isinstance(channel, RelayChannel)
        return channel

    def release(self) -> None:
        """Give the place in the counts back; again does nothing."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            ticket.release()

    def describe(self) -> dict[str, Any]:
        """Details of its log entries."""
        query = self.query
        return {
            "role": query.role.value if query else None,
            "workspaceId": query.workspace_id if query else None,
            "runtimeTargetId": query.runtime_target_id if query else None,
            "clientId": self.client_id,
            "ip": self.ip,
        }


class UpgradeAttempts(Resource):
    """Checks upgrade attempts as far as no other party is asked, and answers refusals over HTTP.

    Subclasses decide what becomes of an attempt that passes. While `stopping` is set, every attempt is refused: the relay drains.
    """

    isLeaf = True

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        log: EventSink,
        counters: Counters,
        *,
        address: ClientAddress,
        attempts: WindowCounter,
        counts: ConnectionCounts,
    ) -> None:
        """`attempts` are upgrade attempts by address, `counts` the connections that there are."""
        Resource.__init__(self)
        self.stopping = False
        self._config = config
        self._clock = clock
        self._log = log
        self._counters = counters
        self._address = address
        self._attempts = attempts
        self._counts = counts

    def apply(self, config: Config, *, attempts: int, total: int, per_ip: int, clients: int) -> None:
        """Take up reloaded settings: origins, attempts per address and minute, connections."""
        self._config = config
        self._attempts.limit = attempts
        self._counts.set_limits(total, per_ip, clients)

    def render(self, request: Request) -> int:
        answering = Deferred.fromCoroutine(self._answer(request))
        if not answering.called:  # the peer may leave while its attempt waits: then nothing of it stays
            request.notifyFinish().addErrback(lambda _: answering.cancel())
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        attempt = Attempt(os.urandom(9).hex(), self._address(request), request)
        try:
            self._check(attempt)
            await self._decide(attempt)
        except Refusal as refusal:
            self._refuse(attempt, refusal)
        except CancelledError:  # the peer has left, or the relay stops
            attempt.release()
        except Exception:  # a fault in one upgrade is logged and ends this one connection
            self._broken(attempt, Failure())

    # -- limits and form: checks that ask nobody -----------------------------------------------------------

    def _check(self, attempt: Attempt) -> None:
        """The contract's checks up to the token's, in its order, cheapest first. Raises Refusal."""
        config, request = self._config, attempt.request
        if not is_upgrade(request):
            raise Refusal(Reason.UPGRADE_REQUIRED)  # no attempt: plain HTTP has a budget of its own
        counted = counted_as(attempt.ip)
        now = self._clock.seconds()
        wait = self._attempts.hit(counted, now)
        if wait:
            self._counters.upgrade_rate_limited += 1
            number, seconds = self._attempts.tried(counted, now)
            limit = BY_ATTRIBUTE["rate_limit_per_ip"].in_words(config.rate_limit_per_ip)
            detail = f"{number} attempts within {seconds} s, {limit} a minute"
            raise Refusal(Reason.RATE_LIMIT_EXCEEDED, detail, retry_after=wait)
        if self.stopping:
            raise Refusal(Reason.RELAY_SHUTTING_DOWN, retry_after=1)
        attempt.ticket = self._counts.take(counted)
        if request.path != b"/ws" or request.method != b"GET":
            raise Refusal(Reason.NOT_FOUND)
        attempt.subprotocols = check_handshake(request)
        attempt.query, query_token = parse_query(request.uri)
        self._check_origin(request)
        attempt.token = token_from(
            header_values(request, b"authorization"), attempt.subprotocols, query_token, config.mode
        )
        if attempt.token is None:
            raise Refusal(Reason.TOKEN_MISSING)
        if attempt.query.role is Role.CLIENT:
            attempt.ticket.count_client(attempt.query.workspace_id, attempt.query.runtime_target_id)

    def _check_origin(self, request: Request) -> None:
        allowed = self._config.allowed_origins
        origin = header(request, b"origin") if allowed else ""
        if origin and origin.lower() not in allowed:
            known = ", ".join(sorted(allowed)[:8])
            raise Refusal(
                Reason.ORIGIN_NOT_ALLOWED, f"Origin is {origin[:200]!r}, RELAY_ALLOWED_ORIGINS has {known}"
            )

    async def _decide(self, attempt: Attempt) -> None:
        """Decide an attempt that has passed the checks. Raises Refusal."""
        raise NotImplementedError

    # -- refusing ------------------------------------------------------------------------------------------

    def _refuse(self, attempt: Attempt, refusal: Refusal) -> None:
        """Log the refusal and answer over HTTP."""
        self._note(attempt, refusal)
        attempt.release()
        _answer_refusal(attempt, refusal)

    def _note(self, attempt: Attempt, refusal: Refusal) -> None:
        counters = self._counters
        counters.ws_connections_rejected += 1
        counters.refusals[refusal.reason] += 1
        details = {**attempt.describe(), **refusal.details}
        if refusal.detail:
            details["detail"] = refusal.detail
        if refusal.reason in _BY_ADDRESS:
            details |= self._address.distrusted_proxy(attempt.request)
        self._log.event(
            "refuse",
            level=refusal.level,
            reason=refusal.reason,
            connection_id=attempt.connection_id,
            **details,
        )

    def _broken(self, attempt: Attempt, failure: Failure) -> None:
        attempt.release()
        self._log.event(
            "internal_error",
            message="an upgrade failed inside the relay: this is a bug",
            connection_id=attempt.connection_id,
            traceback=failure.getTraceback(),
        )
        if attempt.transport is not None:
            attempt.transport.abortConnection()
            return
        attempt.channel.close_after_answer()
        attempt.request.setResponseCode(500)
        attempt.request.setHeader(b"content-length", b"0")
        attempt.request.finish()


class UpgradeResource(UpgradeAttempts):
    """The `/ws` resource of a relay: attempts that pass the checks are decided by the gate."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        log: EventSink,
        counters: Counters,
        *,
        address: ClientAddress,
        gate: Gate,
        factory: ConnectionFactory,
        opened: Opened,
        attempts: WindowCounter,
        counts: ConnectionCounts,
    ) -> None:
        """`opened` takes over a connection that was admitted."""
        super().__init__(config, clock, log, counters, address=address, attempts=attempts, counts=counts)
        self._gate = gate
        self._factory = factory
        self._opened = opened

    async def _decide(self, attempt: Attempt) -> None:
        """Ask the gate, and open the connection. Raises Refusal."""
        assert attempt.token is not None and attempt.query is not None
        clock, counters = self._clock, self._counters
        began = clock.seconds()
        try:
            claims = self._gate.recall(attempt.token, attempt.query)
            if claims is None:
                claims = await self._gate.admit(attempt.token, attempt.query)
            self._settle(attempt, claims)
        except Refusal:
            counters.admission_denied += 1
            raise
        finally:
            counters.admission_latency.observe(clock.seconds() - began)
        counters.admission_ok += 1
        connection, early = self._open(attempt)
        self._opened(connection, attempt.query, claims)
        connection.start(early)

    def _settle(self, attempt: Attempt, claims: Claims) -> None:
        """The platform's answer is there. A client's target may come from the claims alone: then it counts there."""
        attempt.client_id = claims.client_id
        query, ticket, target = attempt.query, attempt.ticket, claims.runtime_target_id
        assert query is not None and ticket is not None
        if self.stopping:  # the drain has its connections already
            raise Refusal(Reason.RELAY_SHUTTING_DOWN, retry_after=1)
        if query.role is Role.CLIENT and query.runtime_target_id is None and target is not None:
            ticket.count_client(query.workspace_id, target)

    def _open(self, attempt: Attempt) -> tuple[Connection, bytes]:
        """Write the 101 and give the transport to a `Connection`; with it what came before the 101."""
        chosen = select_subprotocol(attempt.subprotocols, self._config.noise_link != "off")
        response = switching_protocols(attempt.request, chosen)
        transport, early = attempt.channel.hand_over()
        attempt.transport = transport
        info = ConnectionInfo(
            attempt.connection_id,
            attempt.ip,
            header(attempt.request, b"user-agent")[:64] or None,
            "auth" if chosen is not None and chosen.startswith("auth.") else chosen,
            chosen == LINK_SUBPROTOCOL,
        )
        connection = self._factory.open(transport, response, info)
        ticket, attempt.ticket = attempt.ticket, None
        if ticket is not None:
            connection.when_lost(ticket.release)
        return connection, early

    def _refuse(self, attempt: Attempt, refusal: Refusal) -> None:
        """Over HTTP; for browsers, from the token check on, as a Close behind the upgrade."""
        mode = self._config.reject_mode
        by_close = mode == "close" or (
            mode == "auto" and attempt.token is not None and attempt.token.via == "subprotocol"
        )
        if by_close and refusal.reason in _CLOSABLE:
            self._note(attempt, refusal)
            connection, early = self._open(attempt)
            connection.close(refusal.reason)  # without a handler, so that it is not logged again
            connection.start(early)
        else:
            super()._refuse(attempt, refusal)


def _answer_refusal(attempt: Attempt, refusal: Refusal) -> None:
    """The refusal as HTTP (wire protocol, section 2, "Refusals"); ends the connection."""
    request, reason = attempt.request, refusal.reason
    attempt.channel.close_after_answer()
    answer = {
        "ok": False,
        "reason": reason.code,
        "message": refusal.detail_for_peer,
        "connectionId": attempt.connection_id,
    }
    body = json.dumps(answer).encode("ascii")
    request.setResponseCode(reason.entry.status, HTTPStatus(reason.entry.status).phrase.encode())
    headers = request.responseHeaders
    headers.setRawHeaders(b"Content-Type", [b"application/json"])
    headers.setRawHeaders(b"X-Relay-Reason", [reason.code.encode("ascii")])
    headers.setRawHeaders(b"Connection", [b"close"])
    headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    if reason is Reason.UPGRADE_REQUIRED:
        headers.setRawHeaders(b"Sec-WebSocket-Version", [b"13"])
    if refusal.retry_after is not None:
        headers.setRawHeaders(b"Retry-After", [b"%d" % refusal.retry_after])
    request.write(body)
    request.finish()
