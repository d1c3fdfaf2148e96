"""The parent's `/ws`: the checks that ask nobody, and then the connection goes to the worker of its workspace.

The parent has read the request's head: it knows the client's address, and answers 429, 503 and malformed requests
itself, in the same words. So the rates and caps per address hold over all workers. What it admits is written down
again and handed over with the descriptor; the worker reads it as if it had come from the peer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.internet.task import deferLater
from twisted.protocols.policies import ProtocolWrapper
from twisted.web.http import Request

from viewport_relay.admission.limits import FULL_RETRY_AFTER, Ticket
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.upgrade import Attempt, UpgradeAttempts, while_connected

#: Gives a connection away: workspace, socket, client's address, what was read, its place in the counts. False: no room.
Pass = Callable[[str, socket.socket, str, bytes, Ticket], bool]

#: Seconds between two looks at an answer that is still being sent, on a connection that asked for an upgrade behind it.
_UNSENT_SECONDS: Final = 0.01
_UNSENT_LOOKS: Final = 500


class PassingResource(UpgradeAttempts):
    """Set `pass_on` before the first request."""

    pass_on: Pass

    async def _decide(self, attempt: Attempt) -> None:
        inner = _inner(attempt.channel.transport)
        for _ in range(_UNSENT_LOOKS):
            # An answer to an earlier request on this connection goes out first: the worker could not send it.
            if not (inner.dataBuffer or inner._tempDataBuffer):
                break
            await while_connected(attempt.request, _sleep(self._clock, _UNSENT_SECONDS))
        self._pass(attempt, inner)

    def _pass(self, attempt: Attempt, inner: Any) -> None:
        """Give the connection to the worker of its workspace. Raises Refusal."""
        assert attempt.query is not None and attempt.ticket is not None
        channel = attempt.channel
        # A copy: what Twisted thinks of its own no longer matters then.
        copy = inner.socket.dup()
        if ISSLTransport.providedBy(inner) or not self.pass_on(
            attempt.query.workspace_id,
            copy,
            attempt.ip,
            written(attempt.request) + channel.early,
            attempt.ticket,
        ):
            copy.close()
            raise Refusal(Reason.TOO_MANY_CONNECTIONS, "its worker takes no more just now", FULL_RETRY_AFTER)
        attempt.ticket = None
        transport, _ = channel.hand_over()
        _let_go(transport, inner)


async def _sleep(clock: IReactorTime, seconds: float) -> None:
    await deferLater(clock, seconds)


def written(request: Request) -> bytes:
    """Request line and headers as the worker reads them again."""
    lines = [b"%b %b %b" % (request.method, request.uri, request.clientproto)]
    for name, values in request.requestHeaders.getAllRawHeaders():
        lines += [name + b":" + value for value in values]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _inner(transport: Any) -> Any:
    """The TCP connection under a PROXY protocol's wrapper."""
    return transport.transport if isinstance(transport, ProtocolWrapper) else transport


def _let_go(transport: Any, inner: Any) -> None:
    """Forget a connection that somebody else has. Twisted's own ways would all shut it down."""
    inner.stopReading()
    inner.stopWriting()
    inner.connected = 0
    inner.disconnected = True
    inner.socket.close()
    if isinstance(transport, ProtocolWrapper):
        transport.factory.unregisterProtocol(transport)
