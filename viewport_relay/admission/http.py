"""Asking the platform over HTTP: one question, one bounded answer, one time limit.

`HttpClient.ask` gives status, headers and body, or one of three failures that say what went wrong in a few
words. The time limit covers everything: the name, connecting, TLS, head and body. Redirects are answers like
any other. Nothing is decided here about what an answer means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attrs import evolve, field, frozen
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
)
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from viewport_relay.admission.connections import DirectTreq, place_of
from viewport_relay.admission.tls import CertificateRefused, ClientTls
from viewport_relay.config import Config


class Treq(Protocol):
    """What is used of treq's client: `treq.client.HTTPClient`, `treq.testing.StubTreq` and `DirectTreq` fit."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers,
        data: bytes | None,
        allow_redirects: bool,
        unbuffered: bool,
    ) -> Deferred[IResponse]: ...


@frozen
class Call:
    """What is asked, apart from the body; made once and asked many times.

    `limit` is in seconds and covers everything, `max_bytes` bounds the body of the answer. `retry` asks once
    more when a connection ends before anything came back; it is off where asking twice could do harm.
    """

    method: str
    url: str
    headers: Headers = field(repr=False)
    limit: float
    max_bytes: int
    retry: bool = True

    @classmethod
    def make(
        cls,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        limit: float,
        max_bytes: int,
        retry: bool = True,
    ) -> Call:
        """A call with `headers`, and the ones that every call has. Raises ValueError for an unusable URL."""
        place_of(url)
        every = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "viewport-relay"}
        lines = Headers({name: [value] for name, value in {**every, **headers}.items()})
        return cls(method, url, lines, limit, max_bytes, retry)

    def also(self, headers: Mapping[str, str]) -> Call:
        """The same call with further headers."""
        lines = self.headers.copy()
        for name, value in headers.items():
            lines.setRawHeaders(name, [value])
        return evolve(self, headers=lines)


@frozen
class Answer:
    """A whole answer. `body` is at most the call's `max_bytes` long."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """The first value of a header; bytes that are no ASCII are replaced."""
        values = self.headers.getRawHeaders(name.encode("ascii"))
        return values[0].decode("ascii", "replace") if values else None


class HttpFailure(Exception):
    """There is no answer that could be read. `why` is a few words without anything secret."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.status = status  # of the answer that was not read; 0: there was none


class Unreachable(HttpFailure):
    """Nobody answered in time, or not in HTTP; `why` is "connection refused", "time out", "TLS: …"."""


class TimedOut(Unreachable):
    """There was no whole answer within the limit."""


class TooLarge(HttpFailure):
    """The body is longer than the call allows; it was not read further."""


class Encoded(HttpFailure):
    """The body is compressed although none was asked for; it was not read."""


class HttpClient:
    """Asks calls through treq's interface. `clock` measures the time limits."""

    def __init__(self, clock: IReactorTime, treq: Treq) -> None:
        self._clock = clock
        self._treq = treq

    @classmethod
    def from_config(cls, reactor: Any, config: Config) -> HttpClient:
        """The client for a platform reached as the settings say. Raises ConfigError for unusable TLS files."""
        return cls(reactor, DirectTreq(reactor, ClientTls.for_platform(config)))

    def close(self) -> None:
        """Drop idle connections."""
        if isinstance(self._treq, DirectTreq):
            self._treq.close()

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        """The answer. Raises Unreachable, TooLarge or Encoded; CancelledError when the asker cancels."""
        waiting = Deferred.fromCoroutine(self._ask(call, body))
        waiting.addTimeout(call.limit, self._clock, _expired)
        given_up = False

        def give_up(_: object) -> None:
            nonlocal given_up
            given_up = True
            waiting.cancel()

        def pass_on(result: Answer | Failure) -> None:
            # What a cancelled attempt to connect gives looks like any failure of it, so nobody gets to see it.
            if isinstance(result, Answer) and not given_up:
                answer.callback(result)
            elif isinstance(result, Failure) and not given_up:
                answer.errback(result)

        answer: Deferred[Answer] = Deferred(give_up)
        waiting.addBoth(pass_on)
        return await answer

    async def _ask(self, call: Call, body: bytes | None) -> Answer:
        try:
            try:
                return await self._exchange(call, body)
            except ResponseNeverReceived as lost:
                # The server closed a kept connection just when it was used again (RFC 9112 section 9.3.1).
                if not call.retry or not all(f.check(ConnectionClosed) for f in lost.reasons):
                    raise
                return await self._exchange(call, body)
        except HttpFailure:
            raise
        except Exception as error:
            # Connecting, TLS and parsing raise a dozen unrelated kinds; all mean that there is no answer.
            raise Unreachable(why(error)) from None

    async def _exchange(self, call: Call, body: bytes | None) -> Answer:
        response: Any = await self._treq.request(
            call.method, call.url, headers=call.headers, data=body, allow_redirects=False, unbuffered=True
        )
        collector = _Collector(response, call.max_bytes, _unreadable(response, call))
        response.deliverBody(collector)
        return Answer(response.code, response.headers, await collector.whole)


def _expired(result: object, limit: float) -> Answer:
    raise TimedOut("time out")


def _unreadable(response: Any, call: Call) -> HttpFailure | None:
    encodings = response.headers.getRawHeaders(b"content-encoding", ())
    if any(encoding.strip().lower() not in (b"", b"identity") for encoding in encodings):
        return Encoded("the answer is compressed", response.code)
    if isinstance(response.length, int) and response.length > call.max_bytes:
        return TooLarge(f"the answer is longer than {call.max_bytes} bytes", response.code)
    return None


class _Collector(TwistedProtocol):
    """Takes a body up to its limit. More, or a wait that is cancelled, drops the connection."""

    def __init__(self, response: Any, max_bytes: int, refused: HttpFailure | None) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._drop())
        self._response = response
        self._max_bytes = max_bytes
        self._refused = refused
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
        self._size += len(data)
        if self._size > self._max_bytes:
            words = f"the answer is longer than {self._max_bytes} bytes"
            self._refuse(TooLarge(words, self._response.code))
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called at the end."""
        if self._over:
            return
        self._over = True
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)

    def _refuse(self, failure: HttpFailure) -> None:
        self._drop()
        self.whole.errback(failure)

    def _drop(self) -> None:
        self._over = True
        self._parts.clear()
        # treq's own response can only close, which a TLS peer may delay.
        (getattr(self._response, "abort", None) or self.transport.loseConnection)()  # type: ignore[union-attr]


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (DNSLookupError, "the name does not resolve"),
    (TCPTimedOutError, "time out"),
    (NoRouteError, "no route"),
    (ConnectError, "cannot connect"),
    (ResponseNeverReceived, "connection closed without an answer"),
    (ConnectionClosed, "connection closed"),
)


def why(error: BaseException) -> str:
    """An error of connecting, TLS or HTTP in a few words for an operator."""
    if isinstance(error, ResponseFailed):  # ResponseNeverReceived is one
        for inner in error.reasons:
            if isinstance(inner.value, (SSL.Error, CertificateRefused)):
                return why(inner.value)
        if isinstance(error, ResponseNeverReceived):
            return "connection closed without an answer"
        closed = any(inner.check(ConnectionClosed) for inner in error.reasons)
        return "connection closed within the answer" if closed else "the answer is not HTTP"
    if isinstance(error, CertificateRefused):
        return f"TLS: {error.why}"
    if isinstance(error, SSL.Error):
        said = error.args[0] if error.args else ()
        last = (
            said[-1][-1] if isinstance(said, (list, tuple)) and said and isinstance(said[-1], tuple) else ""
        )
        return f"TLS: {last or 'the connection broke'}"
    return next((word for kind, word in _WORDS if isinstance(error, kind)), type(error).__name__)
