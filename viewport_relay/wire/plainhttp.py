"""Plain HTTP beside upgrades: a budget for each address, and answers that yield to frames.

request -> budget of its address (429, then closed) -> fair queue -> its Host (400, then closed) -> the pages
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.admission.addresses import counted_as
from viewport_relay.observe.entry import dump
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.addresslimits import AddressLimits
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.handshake import host_fault

#: Seconds that the 429 is held back: a client that asks again at once is slowed down.
HOLD: Final = 1.0


class PlainHttp(Resource):
    """Passes requests on to `pages`, within their address's budget and in turn."""

    isLeaf = True

    def __init__(
        self,
        pages: Resource,
        clock: IReactorTime,
        limits: AddressLimits,
        queue: FairQueue,
        address: ClientAddress,
        is_operators: Callable[[Request], bool],
    ) -> None:
        """`is_operators` tells whether a request carries a valid admin token: those are not counted.

        The pages look at the token again: they alone know which access a path needs.
        """
        Resource.__init__(self)
        self._pages = pages
        self._clock = clock
        self._limits = limits
        self._queue = queue
        self._address = address
        self._is_operators = is_operators

    def render(self, request: Request) -> int:
        answering = Deferred.fromCoroutine(self._answer(request))
        if not answering.called:  # the peer may leave while its request waits
            request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(self._failed, request)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        address, wait = self._address(request), 0
        if not self._is_operators(request):
            wait = self._limits.charge_request(address, self._address.distrusted_proxy(request))
        if wait:
            channel: Any = request.channel
            channel.may_be_dropped()
            await deferLater(self._clock, HOLD)
        await self._queue.turn(counted_as(address))
        if wait:
            request.setHeader("Cache-Control", "no-store")
            answer_refusal(request, Refusal(Reason.HTTP_RATE_LIMIT_EXCEEDED, retry_after=wait))
        elif host_fault(request.requestHeaders.getRawHeaders(b"host", ())):
            _answer_bad_request(request)
        else:
            request.render(self._pages)

    @staticmethod
    def _failed(failure: Failure, request: Request) -> None:
        if failure.check(CancelledError) is None:
            request.processingFailed(failure)


def _answer_bad_request(request: Request) -> None:
    """Answer 400 without a body, as the channel answers what it cannot read, and end the connection."""
    channel: Any = request.channel
    channel.close_after_answer()
    request.setResponseCode(HTTPStatus.BAD_REQUEST)
    request.setHeader("Connection", "close")
    request.setHeader("Content-Length", "0")
    request.finish()


def answer_refusal(request: Request, refusal: Refusal, **more: str) -> None:
    """Answer with the refusal's status and a JSON object, which has `more` members, and end the connection.

    The answer of an upgrade is fixed by the wire protocol, section 2, "Refusals".
    """
    channel: Any = request.channel
    channel.close_after_answer()
    reason = refusal.reason
    answer = {"ok": False, "reason": reason.code, "message": refusal.detail_for_peer, **more}
    body = dump(answer).encode("ascii")
    request.setResponseCode(reason.entry.status, HTTPStatus(reason.entry.status).phrase.encode())
    headers = {
        "Content-Type": "application/json",
        "X-Relay-Reason": reason.code,
        "Connection": "close",
        "Content-Length": str(len(body)),
    }
    if reason is Reason.UPGRADE_REQUIRED:
        headers["Sec-WebSocket-Version"] = "13"
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    for name, value in headers.items():
        request.responseHeaders.setRawHeaders(name, [value])
    request.write(body)
    request.finish()
