"""The parent's `/ws`: the checks that ask nobody, and then the connection goes to the worker of its workspace.

The parent has read the request's head: it knows the client's address, and answers 429, 503 and malformed requests
itself, in the same words. So the rates and caps per address hold over all workers. What it admits is written down
again and handed over with the descriptor; the worker reads it as if it had come from the peer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import ISSLTransport
from twisted.protocols.policies import ProtocolWrapper

from viewport_relay.admission.limits import FULL_RETRY_AFTER, Ticket
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.upgrade import Attempt, UpgradeResource

#: Gives a connection away: workspace, socket, client's address, what was read, its place in the counts. False: no room.
Pass = Callable[[str, socket.socket, str, bytes, Ticket], bool]

#: Seconds between two looks at an answer that is still being sent, on a connection that asked for an upgrade behind it.
_UNSENT_SECONDS: Final = 0.01
_UNSENT_LOOKS: Final = 500


class PassingResource(UpgradeResource):
    """Set `pass_on` before the first request."""

    pass_on: Pass

    def _admit(self, attempt: Attempt) -> None:
        self._when_sent(attempt, _UNSENT_LOOKS)

    def _when_sent(self, attempt: Attempt, looks: int) -> None:
        """An answer to an earlier request on this connection goes out first: nobody else could send it."""
        channel = attempt.channel
        if channel.gone or channel.transport is None:
            attempt.release()
            return
        inner = _inner(channel.transport)
        if (inner.dataBuffer or inner._tempDataBuffer) and looks:
            self._clock.callLater(_UNSENT_SECONDS, self._when_sent, attempt, looks - 1)
            return
        self._pass(attempt, inner)

    def _pass(self, attempt: Attempt, inner: Any) -> None:
        assert attempt.query is not None and attempt.ticket is not None
        channel = attempt.channel
        # A copy: what Twisted thinks of its own no longer matters then.
        copy = inner.socket.dup()
        if ISSLTransport.providedBy(inner) or not self.pass_on(
            attempt.query.workspace_id,
            copy,
            attempt.ip,
            attempt.head.written() + channel.early,
            attempt.ticket,
        ):
            copy.close()
            refusal = Refusal(
                Reason.TOO_MANY_CONNECTIONS, "its worker takes no more just now", FULL_RETRY_AFTER
            )
            self._answer(attempt, refusal)
            return
        attempt.ticket = None
        transport, _ = channel.hand_over()
        _let_go(transport, inner)


def _inner(transport: Any) -> Any:
    """The TCP connection under a PROXY protocol's wrapper."""
    return transport.transport if isinstance(transport, ProtocolWrapper) else transport


def _let_go(transport: Any, inner: Any) -> None:
    """Forget a connection that somebody else has. Twisted's own ways would all shut it down."""
    transport.unregisterProducer()
    inner.stopReading()
    inner.stopWriting()
    inner.connected = 0
    inner.disconnected = True
    inner.socket.close()
    if isinstance(transport, ProtocolWrapper):
        transport.factory.unregisterProtocol(transport)
