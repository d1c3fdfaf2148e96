"""The one HTTP client of the relay: treq over a pooled agent, one bounded answer for each call, one time limit over all of it.

`HttpClient.ask` gives status, headers and body, or raises an `HttpFailure` that says what went wrong in a few words. The
limit covers name resolution, connecting, TLS, head and body. Redirects are answers like any other, cookies are not kept, a content
coding is refused. What an answer means is decided elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from viewport_relay.admission.agent import PlainAgent, pooled_agent
from viewport_relay.admission.httpcall import (
    Answer,
    Call,
    Encoded,
    HttpFailure,
    TimedOut,
    TooLarge,
    Unreachable,
)
from viewport_relay.admission.httpproxy import HttpProxy
from viewport_relay.admission.httpwords import hint, why
from viewport_relay.admission.pool import Pool
from viewport_relay.admission.tls import ClientTls
from viewport_relay.config import Config
from viewport_relay.timelimit import TimeLimits

_HINT: Final = "there was no whole answer within {:g} s: look at the load of the host and the network to it"


class HttpClient:
    """Sends calls through treq over `agent`. `clock` measures the time limits, `pool` has the agent's connections."""

    def __init__(self, clock: IReactorTime, agent: IAgent, pool: Pool | None = None) -> None:
        self._clock: Any = clock
        self._limits = TimeLimits(clock)
        self._pool = pool
        self._cookies = _NoCookies()
        self._treq = HTTPClient(PlainAgent(agent), self._cookies)

    @classmethod
    def from_config(cls, reactor: Any, config: Config) -> HttpClient:
        """The client for a platform reached as the settings say. Raises ConfigError for unusable TLS files."""
        agent, pool = pooled_agent(reactor, ClientTls.for_platform(config), HttpProxy.from_config(config))
        return cls(reactor, agent, pool)

    def close(self) -> Deferred[None]:
        """Close every connection; fires when none is left. A later call makes a new one."""
        self._limits.stop()
        return succeed(None) if self._pool is None else self._pool.close()

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        """Send a call; its answer. Raises Unreachable, TooLarge or Encoded; CancelledError when the caller cancels."""
        try:
            return await self._within_limit(call, body)
        except (HttpFailure, CancelledError):
            raise
        except Exception as error:
            # Connecting, TLS and parsing raise a dozen unrelated kinds; all mean that there is no answer.
            raise Unreachable(why(error), hint=hint(error, call.target)) from None

    # Deferreds and callbacks, for a coroutine of its own would cost each request more than what it does.

    def _within_limit(self, call: Call, body: bytes | None) -> Deferred[Answer]:
        """The answer, or what went wrong; TimedOut when the call's limit is over."""
        over = False  # then a late result of the request is dropped

        def give_up() -> None:
            nonlocal over
            over = True
            asking.cancel()

        def expire() -> None:
            give_up()
            answer.errback(TimedOut("time out", hint=_HINT.format(call.limit)))

        def cancel(_: object) -> None:
            limit.cancel()
            give_up()

        def pass_on(result: Answer | Failure) -> None:
            if not over:
                limit.cancel()
                answer.callback(result)  # a Failure calls the errbacks

        answer: Deferred[Answer] = Deferred(cancel)
        limit = self._limits.callLater(call.limit, expire)
        asking = self._exchange(call, body)
        if call.retry:
            asking.addErrback(self._once_more, call, body)
        asking.addBoth(pass_on)
        return answer

    def _once_more(self, lost: Failure, call: Call, body: bytes | None) -> Deferred[Answer] | Failure:
        """Ask again, if the server closed a kept connection just when it was used again; the other kept ones are as old."""
        error = lost.value
        if not isinstance(error, ResponseNeverReceived):
            return lost
        if not all(reason.check(ConnectionClosed) for reason in error.reasons):
            return lost
        if self._pool is not None:
            self._pool.drop_idle()
        return self._exchange(call, body)

    def _exchange(self, call: Call, body: bytes | None) -> Deferred[Answer]:
        response: Deferred[Any] = self._treq.request(
            call.method,
            call.target,
            headers=call.headers,
            data=None if body is None else _Body(body),  # an empty body as bytes counts as none with treq
            cookies=self._cookies,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._clock,  # else treq imports the global one
        )
        return response.addCallback(_whole, call)


def _whole(response: Any, call: Call) -> Deferred[Answer]:
    """The answer, when its body has come."""
    codings = _codings(response.headers)
    gunzip = call.gzip and codings == [b"x-gzip"]
    refused: HttpFailure | None = None
    if codings and not gunzip:
        shown = b", ".join(codings).replace(b"x-gzip", b"gzip").decode("ascii", "replace")[:64]
        why = f"the answer has the content coding {shown}, though none was asked for"
        refused = Encoded(why, response.code)
    elif isinstance(response.length, int) and response.length > call.max_bytes:
        refused = _too_large(call.max_bytes, response.code)
    collector = _Collector(response, call.max_bytes, refused, gunzip=gunzip)
    response.deliverBody(collector)
    return collector.answer


def _codings(headers: Headers) -> list[bytes]:
    """The content codings of an answer; an empty header, which treq leaves behind, is taken out."""
    values = headers.getRawHeaders(b"content-encoding")
    if values is None:
        return []
    names = b",".join(values).lower().split(b",")
    codings = [name.strip() for name in names if name.strip() not in (b"", b"identity")]
    if not codings:
        headers.removeHeader(b"content-encoding")
    return codings


def _too_large(max_bytes: int, status: int) -> TooLarge:
    return TooLarge(f"the answer is longer than {max_bytes} bytes", status)


class _NoCookies(IndexableCookieJar):
    """A cookie jar that keeps nothing."""

    def add_cookie_header(self, request: Any) -> None:
        """Called before each request."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Called after each response."""

    def __iter__(self) -> Iterator[Any]:
        """Called before each request."""
        return iter(())


@implementer(IBodyProducer)
class _Body:
    """A request's body, written at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Called when the head is written; a second time for a retry."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...


class _Collector(Protocol):
    """Takes a body up to its limit. More, or a wait that is cancelled, ends the connection."""

    def __init__(self, response: Any, max_bytes: int, refused: HttpFailure | None, *, gunzip: bool) -> None:
        self.answer: Deferred[Answer] = Deferred(lambda _: self._stop())
        self._status: int = response.code
        self._headers: Headers = response.headers
        self._max_bytes = max_bytes
        self._refused = refused
        self._unzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if gunzip else None
        self._parts: list[bytes] = []
        self._size = 0
        self._over = False

    def connectionMade(self) -> None:
        """Called before the first piece."""
        if self._refused is not None:
            self._refuse(self._refused)

    def dataReceived(self, data: bytes) -> None:
        """Called with each piece."""
        if self._over:
            return
        if self._unzip is not None:
            try:  # one byte more than is left tells that it is too much
                data = self._unzip.decompress(data, self._max_bytes - self._size + 1)
            except zlib.error:
                self._refuse(Encoded("the answer says that it is gzip, and is not", self._status))
                return
        self._size += len(data)
        if self._size > self._max_bytes:
            self._refuse(_too_large(self._max_bytes, self._status))
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called at the end."""
        if self._over:
            return
        self._over = True
        if not reason.check(ResponseDone, PotentialDataLoss):
            self.answer.errback(reason)
        elif self._unzip is not None and not self._unzip.eof:
            self.answer.errback(Encoded("the gzip of the answer is cut short", self._status))
        else:
            self.answer.callback(Answer(self._status, self._headers, b"".join(self._parts)))

    def _refuse(self, failure: HttpFailure) -> None:
        self._stop()
        self.answer.errback(failure)

    def _stop(self) -> None:
        self._over = True
        self._parts.clear()
        assert self.transport is not None
        self.transport.stopProducing()  # type: ignore[attr-defined]
