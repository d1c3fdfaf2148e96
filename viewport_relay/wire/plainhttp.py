"""Plain HTTP beside upgrades: a budget for each address, and answers that do not crowd out frames.

request -> budget of its address (429, then closed) -> fair queue -> the pages
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.admission.addresses import counted_as
from viewport_relay.admission.limits import WindowCounter
from viewport_relay.config import BY_ATTRIBUTE
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.fairqueue import FairQueue

#: Seconds that the 429 is held back: a client that asks again at once is slowed down.
HOLD: Final = 1.0


class HttpBudget:
    """Plain HTTP requests of each address against RELAY_HTTP_RATE_PER_IP; one log entry for each address and minute."""

    def __init__(self, clock: IReactorTime, limit: int, log: EventSink, counters: Counters) -> None:
        """`limit` is per minute, 0 is off."""
        self._clock = clock
        self._log = log
        self._counters = counters
        #: requests of each address; a reload may set another limit
        self.requests = WindowCounter(limit)
        self._told = WindowCounter(1)

    def refusals(self, counted: str) -> int:
        """How often requests of an address, as limits count it, were over the budget in its minute."""
        return self.requests.refused(counted, self._clock.seconds())

    def charge(self, address: str, details: Mapping[str, Any]) -> int:
        """Count one request; `details` are for the log entry. Returns 0, or the seconds to wait when the address is over its budget."""
        now, counted = self._clock.seconds(), counted_as(address)
        wait = self.requests.hit(counted, now)
        if wait:
            self._counters.http_rate_limited += 1
            if not self._told.hit(counted, now):
                number, seconds = self.requests.tried(counted, now)
                limit = BY_ATTRIBUTE["http_rate_per_ip"].in_words(self.requests.limit)
                detail = f"{number} requests within {seconds} s, {limit} a minute"
                self._log.event(
                    "http_refused",
                    reason=Reason.HTTP_RATE_LIMIT_EXCEEDED,
                    ip=address,
                    detail=detail,
                    **details,
                )
        return wait


class PlainHttp(Resource):
    """Passes requests on to `pages`, within their address's budget and in turn."""

    isLeaf = True

    def __init__(
        self,
        pages: Resource,
        clock: IReactorTime,
        budget: HttpBudget,
        queue: FairQueue,
        address: ClientAddress,
        is_operators: Callable[[Request], bool],
    ) -> None:
        """`is_operators` tells whether a request carries a valid admin token: those are not counted."""
        Resource.__init__(self)
        self._pages = pages
        self._clock = clock
        self._budget = budget
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
            wait = self._budget.charge(address, self._address.distrusted_proxy(request))
        if wait:
            channel: Any = request.channel
            channel.may_be_dropped()
            await deferLater(self._clock, HOLD)
        await self._queue.turn(counted_as(address))
        if wait:
            refuse_rate(request, Reason.HTTP_RATE_LIMIT_EXCEEDED, wait)
        else:
            request.render(self._pages)

    @staticmethod
    def _failed(failure: Failure, request: Request) -> None:
        if failure.check(CancelledError) is None:
            request.processingFailed(failure)


def refuse_rate(request: Request, reason: Reason, retry_after: int) -> None:
    """Answer 429 and end the connection."""
    channel: Any = request.channel
    channel.close_after_answer()
    body = json.dumps({"ok": False, "reason": reason.code, "message": reason.text}).encode("ascii")
    request.setResponseCode(reason.entry.status, HTTPStatus(reason.entry.status).phrase.encode())
    for name, value in (
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Retry-After", str(retry_after)),
        ("X-Relay-Reason", reason.code),
        ("Connection", "close"),
    ):
        request.responseHeaders.setRawHeaders(name, [value])
    request.write(body)
    request.finish()
