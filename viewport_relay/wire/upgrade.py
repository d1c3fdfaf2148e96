"""`GET /ws`: from an HTTP request to an admitted WebSocket connection, or to a refusal that says why.

    request -> form and caps, cheapest first -> token -> key set -> platform -> 101 and hand-over to `Connection`

The connection is handed to Autobahn only after it was admitted, and in the open state: this module checks the
handshake of RFC 6455 section 4.2.1 itself and writes the 101. Until then the HTTP channel buffers what the peer
sends early (16 KiB, then it is not read) and tells us when it goes away. Whether the channel has read the request's
head itself (`head.py`), or Twisted has, makes no difference here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from viewport_relay.admission.addresses import client_address, counted_as
from viewport_relay.admission.gate import Gate
from viewport_relay.admission.limits import ConnectionCounts, Ticket, WindowCounter
from viewport_relay.admission.query import read_query
from viewport_relay.admission.token import LINK_SUBPROTOCOL, TokenSource, select_subprotocol, token_from
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.channel import RelayChannel
from viewport_relay.wire.connection import Connection, ConnectionFactory, ConnectionInfo
from viewport_relay.wire.head import Head

#: Takes over an open connection with what was asked and what the platform says of its token.
Opened = Callable[[Connection, UpgradeQuery, Claims], None]

_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN_CHARS: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

#: Parameters of a query at most, those that nobody reads included.
MAX_PARAMETERS: Final = 64

#: Reasons that come from the token check on: a browser gets them as a Close, since it cannot read HTTP refusals.
_CLOSABLE: Final = frozenset(
    r for r in Reason if r.entry.status and r.entry.close and r.name != "RELAY_SHUTTING_DOWN"
)


def _head(reason: Reason) -> bytes:
    """What the answers of one reason begin with."""
    status = HTTPStatus(reason.entry.status)
    version = b"Sec-WebSocket-Version: 13\r\n" if reason is Reason.UPGRADE_REQUIRED else b""
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nX-Relay-Reason: %b\r\nConnection: close\r\n%b"
        % (status, status.phrase.encode(), reason.code.encode(), version)
    )


_HEADS: Final = {reason: _head(reason) for reason in Reason if reason.entry.status}


def is_upgrade(values: Iterable[bytes]) -> bool:
    """Whether this is an attempt to open a WebSocket, well-formed or not, by the values of its Upgrade header."""
    return any(b"websocket" in value.lower() for value in values)


@define(eq=False)
class Attempt:
    """One upgrade on its way: what is known of it so far, for the log."""

    connection_id: str
    ip: str
    head: Head
    channel: RelayChannel
    query: UpgradeQuery | None = None
    token: TokenSource | None = None
    subprotocols: tuple[str, ...] = ()
    ticket: Ticket | None = None
    client_id: str | None = None
    version: str | None = None

    def release(self) -> None:
        """Give its place in the counts back; calling it again does nothing."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            ticket.release()

    def describe(self) -> dict[str, Any]:
        query = self.query
        return {
            "role": query.role.value if query else None,
            "workspaceId": query.workspace_id if query else None,
            "runtimeTargetId": query.runtime_target_id if query else None,
            "clientId": self.client_id,
            "ip": self.ip,
        }


class UpgradeResource(Resource):
    """The `/ws` resource. `stopping` turns every upgrade away while the relay drains."""

    isLeaf = True

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        log: EventSink,
        counters: Counters,
        *,
        gate: Gate,
        factory: ConnectionFactory,
        opened: Opened,
        attempts: WindowCounter,
        counts: ConnectionCounts,
    ) -> None:
        """`opened` takes over a connection that was admitted; `attempts` are upgrade attempts by address."""
        Resource.__init__(self)
        self.stopping = False
        self._config = config
        self._clock = clock
        self._log_sink = log
        self._counters = counters
        self._opened = opened
        self._gate = gate
        self._factory = factory
        self._attempts = attempts
        self._counts = counts

    def apply(self, config: Config, *, attempts: int, total: int, per_ip: int, clients: int) -> None:
        """Take up reloaded settings: origins, trusted proxies, attempts per address and minute, connections."""
        self._config = config
        self._attempts.limit = attempts
        self._counts.set_limits(total, per_ip, clients)

    def render(self, request: Request) -> Any:
        """An upgrade attempt on any path (only `/ws` is ever upgraded), or a plain GET of `/ws`."""
        channel: Any = request.channel
        self.upgrade(Head.of(request), channel)
        return NOT_DONE_YET

    def upgrade(self, head: Head, channel: RelayChannel) -> None:
        """Answer what a channel has read, now or later: with a 101, and the channel's connection is a WebSocket's, or
        with a refusal, which ends it.
        """
        attempt = Attempt(_connection_id(), self._client_ip(head, channel), head, channel)
        try:
            self._cheap_checks(attempt)
        except Refusal as refusal:
            self._answer(attempt, refusal)
            return
        try:
            self._admit(attempt)
        except Exception:  # a fault in one upgrade is logged and ends this one connection
            self._broken(attempt, Failure())

    # -- checks that ask nobody ----------------------------------------------------------------------------

    def _cheap_checks(self, attempt: Attempt) -> None:
        """In the contract's order, cheapest first. Raises Refusal."""
        config, head = self._config, attempt.head
        if not is_upgrade(head.headers.get(b"upgrade", ())):
            raise Refusal(Reason.UPGRADE_REQUIRED)  # plain HTTP is not counted
        counted = counted_as(attempt.ip)
        wait = self._attempts.hit(counted, self._clock.seconds())
        if wait:
            self._counters.upgrade_rate_limited += 1
            detail = f"more than RELAY_RATE_LIMIT_PER_IP={config.rate_limit_per_ip} attempts within a minute"
            raise Refusal(Reason.RATE_LIMIT_EXCEEDED, detail, retry_after=wait)
        if self.stopping:
            raise Refusal(Reason.RELAY_SHUTTING_DOWN, retry_after=1)
        attempt.ticket = self._counts.take(counted)
        if head.path != b"/ws" or head.method != b"GET":
            raise Refusal(Reason.NOT_FOUND)
        attempt.subprotocols = _check_handshake(head)
        attempt.version = head.first(b"user-agent")[:64] or None
        attempt.query, query_token = parse_query(head.target)
        self._check_origin(head)
        attempt.token = token_from(
            head.values(b"authorization"), attempt.subprotocols, query_token, config.mode
        )
        if attempt.token is None:
            raise Refusal(Reason.TOKEN_MISSING)
        if attempt.query.role is Role.CLIENT:
            attempt.ticket.count_client(attempt.query.workspace_id, attempt.query.runtime_target_id)

    def _client_ip(self, head: Head, channel: RelayChannel) -> str:
        if channel.given_ip is not None:
            return channel.given_ip
        return client_address(
            channel.peer_host(), head.values(b"x-forwarded-for"), self._config.trusted_proxies
        )

    def _check_origin(self, head: Head) -> None:
        allowed = self._config.allowed_origins
        origin = head.first(b"origin") if allowed else ""
        if origin and origin.lower() not in allowed:
            raise Refusal(Reason.ORIGIN_NOT_ALLOWED, f"Origin is {origin[:200]!r}")

    # -- asking the gate -------------------------------------------------------------------------------------

    def _admit(self, attempt: Attempt) -> None:
        assert attempt.token is not None and attempt.query is not None
        latency, clock = self._counters.admission_latency, self._clock
        began = clock.seconds()

        def refused(refusal: Refusal) -> None:
            latency.observe(clock.seconds() - began)
            self._refuse(attempt, refusal)

        def admitted(claims: Claims) -> None:
            latency.observe(clock.seconds() - began)
            self._admitted(attempt, claims)

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError):
                attempt.release()
                return
            failure.trap(Refusal)
            assert isinstance(failure.value, Refusal)
            refused(failure.value)

        try:
            claims = self._gate.recall(attempt.token, attempt.query)
        except Refusal as refusal:
            refused(refusal)
            return
        if claims is not None:
            admitted(claims)
            return
        waiting = Deferred.fromCoroutine(self._gate.admit(attempt.token, attempt.query))
        # The peer may go away meanwhile: then stop asking, keep nothing. Without a peer there is nobody to answer.
        attempt.channel.when_gone(waiting.cancel)
        waiting.addCallbacks(admitted, failed)
        waiting.addErrback(partial(self._broken, attempt))

    def _broken(self, attempt: Attempt, failure: Failure) -> None:
        attempt.release()
        self._log_sink.event(
            "internal_error",
            level="error",
            message="an upgrade failed inside the relay: this is a bug",
            connection_id=attempt.connection_id,
            traceback=failure.getTraceback(),
        )
        attempt.channel.answer_last(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")

    def _admitted(self, attempt: Attempt, claims: Claims) -> None:
        attempt.client_id = claims.client_id
        assert attempt.query is not None
        try:
            if self.stopping:  # since it was asked: the drain has its connections already
                raise Refusal(Reason.RELAY_SHUTTING_DOWN, retry_after=1)
            self._settle_target(attempt, claims)
        except Refusal as refusal:
            self._refuse(attempt, refusal)
            return
        self._counters.admission_ok += 1
        connection, early = self._hand_over(attempt)
        self._opened(connection, attempt.query, claims)
        connection.start(early)

    def _settle_target(self, attempt: Attempt, claims: Claims) -> None:
        """A client's target may come from the claims alone: then it counts there."""
        query, ticket = attempt.query, attempt.ticket
        assert query is not None and ticket is not None
        if (
            query.role is Role.CLIENT
            and query.runtime_target_id is None
            and claims.runtime_target_id is not None
        ):
            ticket.count_client(query.workspace_id, claims.runtime_target_id)

    def _hand_over(self, attempt: Attempt) -> tuple[Connection, bytes]:
        """Give the TCP connection to a `Connection`, in the open state; with it what came before the 101."""
        transport, early = attempt.channel.hand_over()
        transport.unregisterProducer()
        chosen = select_subprotocol(attempt.subprotocols, self._config.noise_link != "off")
        info = ConnectionInfo(
            attempt.connection_id,
            attempt.ip,
            attempt.version,
            "auth" if chosen is not None and chosen.startswith("auth.") else chosen,
            chosen == LINK_SUBPROTOCOL,
        )
        connection = self._factory.open(transport, _switching_protocols(attempt.head, chosen), info)
        ticket, attempt.ticket = attempt.ticket, None
        if ticket is not None:
            connection.when_lost(ticket.release)
        return connection, early

    # -- refusing ----------------------------------------------------------------------------------------------

    def _refuse(self, attempt: Attempt, refusal: Refusal) -> None:
        """A refusal by the gate: over HTTP, or for browsers as a Close behind the upgrade."""
        self._counters.admission_denied += 1
        mode = self._config.reject_mode
        by_close = mode == "close" or (
            mode == "auto" and attempt.token is not None and attempt.token.via == "subprotocol"
        )
        if not by_close or refusal.reason not in _CLOSABLE:
            self._answer(attempt, refusal)
            return
        self._counters.ws_connections_rejected += 1
        self._log(attempt, refusal)
        connection, early = self._hand_over(attempt)
        connection.close(refusal.reason)  # which is not logged again: nobody handles the connection
        connection.start(early)

    def _answer(self, attempt: Attempt, refusal: Refusal) -> None:
        attempt.release()
        self._counters.ws_connections_rejected += 1
        self._log(attempt, refusal)
        body = json.dumps(
            {
                "ok": False,
                "reason": refusal.reason.code,
                "message": refusal.detail_for_peer,
                "connectionId": attempt.connection_id,
            }
        ).encode()
        retry = b"" if refusal.retry_after is None else b"Retry-After: %d\r\n" % refusal.retry_after
        attempt.channel.answer_last(  # past Twisted's header objects: refusals must stay cheap
            b"%bDate: %b\r\n%bContent-Length: %d\r\n\r\n%b"
            % (
                _HEADS[refusal.reason],
                datetimeToString(),
                retry,
                len(body),
                b"" if attempt.head.method == b"HEAD" else body,
            )
        )

    def _log(self, attempt: Attempt, refusal: Refusal) -> None:
        self._counters.refusals[refusal.reason] += 1
        about = {**attempt.describe(), **refusal.details}
        if refusal.detail:
            about["detail"] = refusal.detail
        self._log_sink.event(
            "refuse", level=refusal.level, reason=refusal.reason, connection_id=attempt.connection_id, **about
        )


def _connection_id() -> str:
    return os.urandom(9).hex()


# -- reading the request ------------------------------------------------------------------------------------


def _check_handshake(head: Head) -> tuple[str, ...]:
    """The client's side of RFC 6455 section 4.2.1; gives the offered sub-protocols. Raises Refusal."""

    def wrong(detail: str) -> Refusal:
        return Refusal(Reason.UPGRADE_MALFORMED, detail)

    headers = head.headers
    if head.version != b"HTTP/1.1":
        raise wrong("not HTTP/1.1")
    if len(headers.get(b"host", ())) != 1:
        raise wrong("not exactly one Host header")
    if not head.has(b"upgrade", b"websocket"):
        raise wrong("Upgrade is not websocket")
    if not head.has(b"connection", b"upgrade"):
        raise wrong("Connection does not name Upgrade")
    if [version.strip() for version in head.values(b"sec-websocket-version")] != ["13"]:
        raise Refusal(Reason.UPGRADE_REQUIRED, "Sec-WebSocket-Version is not 13")
    keys = headers.get(b"sec-websocket-key", ())
    if len(keys) != 1 or not _is_key(keys[0].strip()):
        raise wrong("Sec-WebSocket-Key is not base64 of 16 bytes")
    if b"transfer-encoding" in headers or head.first(b"content-length") not in ("", "0"):
        raise wrong("the request has a body")
    offered = head.words(b"sec-websocket-protocol")
    if len(set(offered)) != len(offered):
        raise wrong("a sub-protocol is offered twice")
    if not all(_TOKEN_CHARS.issuperset(word) for word in offered):
        raise wrong("a sub-protocol is no token")
    return tuple(offered)


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def parse_query(target: bytes) -> tuple[UpgradeQuery, str | None]:
    """The query of `/ws` and its token, the first value of each parameter. Raises Refusal."""
    found: dict[str, str] = {}
    _, _, query = target.partition(b"?")
    # What is no UTF-8 harms only if it stands in a parameter that counts: those have a form of their own.
    text = query.decode("utf-8", "replace")
    if text.count("&") >= MAX_PARAMETERS:
        raise Refusal(Reason.QUERY_INVALID, f"the query has more than {MAX_PARAMETERS} parameters")
    if "%" in text or "+" in text:
        pairs = parse_qsl(text, keep_blank_values=True)
    else:  # as it gives them when there is nothing to decode, in a quarter of the time
        pairs = [
            (name, value) for name, _, value in (field.partition("=") for field in text.split("&") if field)
        ]
    for name, value in pairs:
        found.setdefault(name, value)
    return read_query(found.get("role"), found.get("workspaceId"), found.get("runtimeTargetId")), found.get(
        "token"
    )


def _switching_protocols(head: Head, subprotocol: str | None) -> bytes:
    """The server's answer (RFC 6455 section 4.2.2)."""
    key = head.headers[b"sec-websocket-key"][0].strip()
    accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
    chosen = (
        b"" if subprotocol is None else b"Sec-WebSocket-Protocol: " + subprotocol.encode("ascii") + b"\r\n"
    )
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n"
        + chosen
        + b"\r\n"
    )
