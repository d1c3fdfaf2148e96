"""The `/ws` resource of a relay: from an upgrade attempt that has passed the checks to an open connection.

    attempt -> `await gate.admit` -> 101 and hand-over to `Connection`

A connection is handed to the WebSocket protocol only after it was admitted, and in the open state: this module writes the 101.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.gate import Gate
from viewport_relay.admission.limits import ConnectionCounts
from viewport_relay.admission.token import TokenSource, select_subprotocol
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.attempts import Attempt, UpgradeAttempts
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.connection import Connection, ConnectionFactory, ConnectionInfo
from viewport_relay.wire.handshake import header, switching_protocols
from viewport_relay.wire.transport import promote

#: Takes over an open connection, with the query of its upgrade and the platform's claims.
Opened = Callable[[Connection, UpgradeQuery, Claims], None]

#: Reasons from the token check on. A browser gets these as a Close frame, since it cannot read HTTP refusals.
_CLOSABLE: Final = frozenset(
    r for r in Reason if r.entry.status and r.entry.close and r is not Reason.RELAY_SHUTTING_DOWN
)


class UpgradeResource(UpgradeAttempts):
    """The `/ws` resource of a relay. The gate decides attempts that have passed the checks."""

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
        counts: ConnectionCounts,
    ) -> None:
        """`opened` takes over each connection that was admitted."""
        super().__init__(config, clock, log, counters, address=address, counts=counts)
        self._gate = gate
        self._factory = factory
        self._opened = opened

    def _decide(self, attempt: Attempt) -> Coroutine[Any, Any, None] | None:
        """Open the connection of a token that was admitted a moment ago; for any other, return the way through the gate."""
        assert attempt.token is not None and attempt.query is not None
        attempt.checked = self._clock.seconds()
        claims = self._gate.recall(attempt.token, attempt.query)
        if claims is None:
            return self._ask(attempt, attempt.token, attempt.query)
        self._admit(attempt, attempt.query, claims)
        return None

    async def _ask(self, attempt: Attempt, token: TokenSource, query: UpgradeQuery) -> None:
        """Ask the gate, and open the connection. Raises Refusal."""
        self._admit(attempt, query, await self._gate.admit(token, query))

    def _admit(self, attempt: Attempt, query: UpgradeQuery, claims: Claims) -> None:
        """Open the connection, and give it to the sessions. Raises Refusal."""
        self._settle(attempt, query, claims)
        self._counters.admission_ok += 1
        self._time(attempt)
        connection, early = self._open(attempt)
        promote(attempt.transport)
        self._opened(connection, query, claims)
        connection.start(early)

    def _time(self, attempt: Attempt) -> None:
        assert attempt.checked is not None
        self._counters.admission_latency.observe(self._clock.seconds() - attempt.checked)

    def _settle(self, attempt: Attempt, query: UpgradeQuery, claims: Claims) -> None:
        """Count a client whose target comes from the claims alone. Raises Refusal, also when the relay began to drain meanwhile."""
        attempt.client_id = claims.client_id
        ticket, target = attempt.ticket, claims.runtime_target_id
        assert ticket is not None
        if self.stopping:
            raise Refusal(Reason.RELAY_SHUTTING_DOWN, retry_after=1)
        if query.role is Role.CLIENT and query.runtime_target_id is None and target is not None:
            ticket.count_client(query.workspace_id, target)

    def _open(self, attempt: Attempt) -> tuple[Connection, bytes]:
        """Send the 101 and give the transport to a `Connection`. Returns the connection, and the bytes that came before the 101."""
        links = self._config.noise_link != "off"
        chosen = select_subprotocol(attempt.subprotocols, link_enabled=links)
        response = switching_protocols(attempt.headers, chosen)
        transport, early = attempt.channel.hand_over()
        attempt.transport = transport
        info = ConnectionInfo(
            attempt.connection_id,
            attempt.ip,
            header(attempt.headers, b"User-Agent")[:64] or None,
            "auth" if chosen is not None and chosen.startswith("auth.") else chosen,
        )
        connection = self._factory.open(transport, response, info)
        ticket, attempt.ticket = attempt.ticket, None
        if ticket is not None:
            connection.when_lost(ticket.release)
        return connection, early

    def _refuse(self, attempt: Attempt, refusal: Refusal) -> None:
        """Refuse over HTTP; from the token check on, where the peer is a browser, with a Close frame after the 101."""
        if attempt.checked is not None:
            self._counters.admission_denied += 1
            self._time(attempt)
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
