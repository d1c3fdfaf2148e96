"""The parent's `/ws` resource: makes the checks that need no I/O, then passes the connection to a worker.

The parent reads the request head. It knows the client's address, and answers 429, 503 and malformed requests itself, with
the same texts. So rates and caps per address hold over all workers. The head of an accepted request is serialised again
and passed on with the descriptor; the worker parses it as if it came from the peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import deferLater
from twisted.protocols.policies import ProtocolWrapper
from twisted.web.http import Request

from viewport_relay.admission.limits import FULL_RETRY_AFTER
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.attempts import Attempt, UpgradeAttempts
from viewport_relay.workers.supervision import Worker

#: Seconds between two looks whether a connection can be passed on, and the number of looks.
_LOOK_SECONDS: Final = 0.01
_LOOKS: Final = 500


def slot(workspace_id: str, workers: int) -> int:
    """The number of a workspace's worker, 0 to `workers` - 1: CRC-32 of the workspace id modulo `workers`.

    The runtime target does not count: a client's target may come from its claims, which are known only after the
    platform has answered, and the rate of a workspace must be counted in one process.
    """
    return crc32(workspace_id.encode("utf-8", "surrogatepass")) % workers


class PassingResource(UpgradeAttempts):
    """The `/ws` resource of the parent. Set `workers` before the first request."""

    workers: Sequence[Worker]

    async def _decide(self, attempt: Attempt) -> None:
        """Pass the connection to the worker of its workspace, or to the next process of it. Raises Refusal."""
        assert attempt.query is not None
        inner = tcp_transport(attempt.channel.transport)
        for _ in range(_LOOKS):
            # An earlier answer on this connection must leave first: the worker does not have its bytes.
            if not (inner.dataBuffer or inner._tempDataBuffer):
                break
            await deferLater(self._clock, _LOOK_SECONDS)
        worker = self.workers[slot(attempt.query.workspace_id, len(self.workers))]
        for _ in range(_LOOKS):
            if self._pass(attempt, inner, worker):
                return
            if not worker.exited or self.stopping:
                break
            await deferLater(self._clock, _LOOK_SECONDS)  # until the end of the process has been handled
        raise _full()

    def _pass(self, attempt: Attempt, inner: Any, worker: Worker) -> bool:
        """Pass the connection to the worker, if it takes it. Raises Refusal where the connection cannot be passed."""
        assert attempt.ticket is not None
        channel = attempt.channel
        if ISSLTransport.providedBy(inner):
            raise _full()
        try:
            # A copy: Twisted then closes its own descriptor without effect on the connection.
            copy = inner.socket.dup()
        except OSError as error:  # no descriptor is free
            raise _full() from error
        data = request_head(attempt.request) + channel.early
        if not worker.adopt(copy, attempt.ip, data, attempt.ticket):
            copy.close()
            return False
        attempt.ticket = None
        transport, _ = channel.hand_over()
        let_go(transport, inner)
        return True


def _full() -> Refusal:
    return Refusal(
        Reason.TOO_MANY_CONNECTIONS,
        "the worker of the workspace takes no more connections just now",
        FULL_RETRY_AFTER,
    )


def request_head(request: Request) -> bytes:
    """Request line and headers, serialised for the worker (RFC 9112, section 3).

    Expect is left out: Twisted has answered it with 100 (RFC 9110, section 10.1.1).
    """
    lines = [b"%b %b %b" % (request.method, request.uri, request.clientproto)]
    for name, values in request.requestHeaders.getAllRawHeaders():
        if name != b"Expect":
            lines += [name + b":" + value for value in values]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def tcp_transport(transport: Any) -> Any:
    """The TCP or Unix transport under the PROXY protocol's wrapper, if there is one."""
    return transport.transport if isinstance(transport, ProtocolWrapper) else transport


def let_go(transport: Any, inner: Any) -> None:
    """Drop the parent's copy of a connection that was passed on, and the wrapper of the PROXY protocol if there is one."""
    inner.give_away()
    if isinstance(transport, ProtocolWrapper):
        transport.factory.unregisterProtocol(transport)
