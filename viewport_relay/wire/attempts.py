"""Upgrade attempts: the checks of an upgrade request that need no I/O, and refusals as HTTP answers.

    request -> limits and form, cheapest first -> decided by a subclass | refused

`twisted.web` has read the request. Until an attempt is decided the HTTP channel keeps what the peer sends early, within a bound.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any, Final

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import ConnectionCounts, Ticket, UpgradeLimits, WindowCounter
from viewport_relay.admission.token import TokenSource, token_from, why_no_token
from viewport_relay.config import BY_ATTRIBUTE, Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.channel import RelayChannel
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.handshake import Headers, check_handshake, header, is_upgrade, parse_query
from viewport_relay.wire.plainhttp import answer_refusal

#: Reasons that all clients behind one proxy meet at once, if the relay does not trust the proxy.
_BY_ADDRESS: Final = frozenset({Reason.RATE_LIMIT_EXCEEDED, Reason.TOO_MANY_CONNECTIONS_PER_IP})


@define(eq=False)
class Attempt:
    """One upgrade attempt: what is known of it so far, and its place in the counts of connections."""

    connection_id: str
    ip: str
    request: Request
    headers: Headers
    query: UpgradeQuery | None = None
    token: TokenSource | None = None
    subprotocols: tuple[str, ...] = ()
    ticket: Ticket | None = None
    client_id: str | None = None
    checked: float | None = None  # when it had passed the checks, in the reactor's seconds
    transport: Any = None  # set when a connection has taken the transport over

    @property
    def channel(self) -> RelayChannel:
        channel: Any = self.request.channel
        assert isinstance(channel, RelayChannel)
        return channel

    def release(self) -> None:
        """Give the place in the counts back; a second call does nothing."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            ticket.release()

    def describe(self) -> dict[str, Any]:
        """The details of log entries about the attempt."""
        query = {} if self.query is None else self.query.describe()
        return {**query, "clientId": self.client_id, "ip": self.ip}


class UpgradeAttempts(Resource):
    """The `/ws` resource without a decision: checks attempts, and answers refusals over HTTP.

    A subclass decides what becomes of an attempt that has passed the checks. While the relay drains, `stopping` is set and every
    attempt is refused.
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
        counts: ConnectionCounts,
    ) -> None:
        """`counts` are the counts of open connections and pending attempts, with the limits of attempts too."""
        Resource.__init__(self)
        self.stopping = False
        self._config = config
        self._clock = clock
        self._log = log
        self._counters = counters
        self._address = address
        self._attempts = WindowCounter(counts.limits.attempts)  # by address
        self._counts = counts

    def apply(self, config: Config, limits: UpgradeLimits) -> None:
        """Apply reloaded settings: allowed origins, attempts per address and minute, limits on connections."""
        self._config = config
        self._attempts.limit = limits.attempts
        self._counts.limits = limits

    def render(self, request: Request) -> int:
        headers = dict(request.requestHeaders.getAllRawHeaders())
        attempt = Attempt(os.urandom(9).hex(), self._address(request), request, headers)
        try:
            self._check(attempt)
            waiting = self._decide(attempt)
        except Refusal as refusal:
            self._refuse(attempt, refusal)
            return NOT_DONE_YET
        except Exception:  # a fault in one upgrade is logged, and ends this one connection
            self._broken(attempt, Failure())
            return NOT_DONE_YET
        if waiting is not None:
            deciding = Deferred.fromCoroutine(waiting).addErrback(self._failed, attempt)
            if not deciding.called:  # a peer that leaves while its attempt waits leaves nothing behind
                request.notifyFinish().addErrback(lambda _: deciding.cancel())
        return NOT_DONE_YET

    def _failed(self, failure: Failure, attempt: Attempt) -> None:
        """End an attempt that waited."""
        error = failure.value
        if isinstance(error, Refusal):
            self._refuse(attempt, error)
        elif isinstance(error, CancelledError):  # the peer has left, or the relay stops
            attempt.release()
        else:
            self._broken(attempt, failure)

    # -- checks without I/O --------------------------------------------------------------------------------

    def _check(self, attempt: Attempt) -> None:
        """The checks of the wire protocol, section 2, up to the presence of a token, cheapest first. Raises Refusal."""
        config, request, headers = self._config, attempt.request, attempt.headers
        if not is_upgrade(headers.get(b"Upgrade", ())):
            # Not counted as an attempt: plain HTTP has a budget of its own.
            raise Refusal(Reason.UPGRADE_REQUIRED)
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
        attempt.subprotocols = check_handshake(request.clientproto, headers)
        attempt.query, query_token = parse_query(request.uri)
        self._check_origin(headers)
        authorization = [value.decode("latin-1") for value in headers.get(b"Authorization", ())]
        places = authorization, attempt.subprotocols, query_token, config.mode
        attempt.token = token_from(*places)
        if attempt.token is None:
            raise Refusal(Reason.TOKEN_MISSING, why_no_token(*places))
        if attempt.query.role is Role.CLIENT:
            attempt.ticket.count_client(attempt.query.workspace_id, attempt.query.runtime_target_id)

    def _check_origin(self, headers: Headers) -> None:
        allowed = self._config.allowed_origins
        origin = header(headers, b"Origin") if allowed else ""
        if origin and origin.lower() not in allowed:
            known = ", ".join(sorted(allowed)[:8])
            raise Refusal(
                Reason.ORIGIN_NOT_ALLOWED, f"Origin is {origin[:200]!r}, RELAY_ALLOWED_ORIGINS has {known}"
            )

    def _decide(self, attempt: Attempt) -> Coroutine[Any, Any, None] | None:
        """Decide an attempt that has passed the checks, or return a coroutine that does. Both raise Refusal."""
        raise NotImplementedError

    # -- refusing ------------------------------------------------------------------------------------------

    def _refuse(self, attempt: Attempt, refusal: Refusal) -> None:
        """Log the refusal and answer over HTTP."""
        self._note(attempt, refusal)
        attempt.release()
        answer_refusal(attempt.request, refusal, connectionId=attempt.connection_id)

    def _note(self, attempt: Attempt, refusal: Refusal) -> None:
        """Count and log the refusal."""
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
        """Log a fault of the relay, and end this connection."""
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
