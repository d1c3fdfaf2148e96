"""Keep a peer connected: connect, and after a loss connect again with a fresh token and a growing pause.

Pauses double up to a cap and are jittered, so that peers that lost the same relay do not come back in step. A
connection that stayed up for a while starts the count anew. Some ends are final: the same grant could only be
refused again.

Frames that were lost with a connection are not repeated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.internet.error import ConnectError, ConnectionLost, DNSLookupError
from twisted.internet.task import deferLater

from viewport_relay.peer.connection import LINK_TIMEOUT, Connection, connect
from viewport_relay.peer.upgrade import Closed, ClosedEarly, Destination, UpgradeRefused

# 1000: we or the relay are done. 1002, 1007: our own fault, it would repeat. 4401, 4403: the grant is no
# good (but see INVALID_TOKEN). 4008 is the relay's policy close; only these of its reasons are passing.
FINAL_CLOSE_CODES = frozenset({1000, 1002, 1007, 4401, 4403})
# Also the end of an open connection whose token has expired: a new token is tried once before it counts as final.
INVALID_TOKEN = 4401
PASSING_POLICY_REASONS = frozenset(
    {"buffer overflow", "daemon already connected", "Noise handshake failed: timeout", LINK_TIMEOUT}
)
PASSING_POLICY_ENDING = "rate limit exceeded"
PASSING_STATUS = frozenset({429, 502, 503, 504})

STABLE_SECONDS = 30.0

#: Seconds before the next attempt, by the number of failures in a row.
Pauses = Callable[[int], float]
default_pauses: Pauses = backoffPolicy(initialDelay=0.25, maxDelay=30.0, factor=2.0)


class TokenUnavailable(Exception):
    """A token provider raises this when it has no token now but may have one later."""


def may_return(closed: Closed) -> bool:
    """Whether connecting again with a fresh token can help after this close."""
    if closed.code == 4008:
        return closed.reason in PASSING_POLICY_REASONS or closed.reason.endswith(PASSING_POLICY_ENDING)
    return closed.code not in FINAL_CLOSE_CODES


async def stay_connected(
    reactor: Any,
    destination: Destination,
    token: Callable[[], Awaitable[str | None]],
    on_frame: Callable[[str], None],
    on_open: Callable[[Connection], None],
    *,
    pauses: Pauses = default_pauses,
    stable: float = STABLE_SECONDS,
) -> Closed:
    """Connect again and again, until an end that is final; returns that close.

    `token` raises TokenUnavailable when there is none now but may be one later. `on_open` gets each new connection. A
    connection that lasts `stable` seconds resets the count of failures. To stop, close the connection with code 1000, or
    raise another exception from `token`. Raises that, or the UpgradeRefused or ClosedEarly that is final.
    """
    failures = 0
    renewed = False  # whether this attempt's token was fetched because the one before was no longer good
    while True:
        began = reactor.seconds()
        closed = None
        try:
            connection = await connect(reactor, destination, await token(), on_frame)
            on_open(connection)
            closed = await connection.closed
        except UpgradeRefused as refused:
            if refused.status not in PASSING_STATUS:
                raise
        except ClosedEarly as early:
            if not may_return(early.closed):
                raise
        except (ConnectError, ConnectionLost, DNSLookupError, TokenUnavailable):
            pass
        lasted = closed is not None and reactor.seconds() - began >= stable
        expired = closed is not None and closed.code == INVALID_TOKEN
        if closed is not None and not may_return(closed) and (renewed or not expired):
            return closed
        renewed = expired and not lasted
        failures = 1 if lasted else failures + 1
        await deferLater(reactor, pauses(failures), lambda: None)
