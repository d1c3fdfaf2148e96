"""The one HTTP client of the relay: treq over a pooled agent, one bounded answer for each call, one time limit over all of it.

`HttpClient.ask` gives status, headers and body, or raises an `HttpFailure` that says what went wrong in a few words. The
limit covers the name, connecting, TLS, head and body. Redirects are answers like any other, cookies are not kept, a content
coding is refused. What an answer means is decided elsewhere.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from attrs import evolve, field, frozen
from hyperlink import EncodedURL
from OpenSSL import SSL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
)
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from viewport_relay.admission.agent import HEAD_MAX, HeadTooLong, PlainAgent, pooled_agent
from viewport_relay.admission.httpproxy import HttpProxy, ProxyFailed
from viewport_relay.admission.tls import CertificateRefused, ClientTls
from viewport_relay.config import Config

_EVERY_CALL: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "viewport-relay",
}


class RequestUrl(EncodedURL):
    """An absolute http or https URL without user info, checked and encoded once.

    treq takes an EncodedURL and encodes it again for each request, which costs much of a request's time, encodes characters
    of the path that were sent as they stand, and fails for IPv6 addresses: here `to_uri` and `to_text` are what was checked.
    """

    encoded: str
    host_header: str

    @classmethod
    def of(cls, text: str) -> RequestUrl:
        """Check a URL. Raises ValueError whose text says what is taken, without the URL: it may hold a password."""
        try:
            url = EncodedURL.from_text(text)
            ascii_text = text if text.isascii() else url.to_uri().to_text()
        except (ValueError, TypeError):
            raise ValueError("takes an absolute http or https URL") from None
        scheme = url.scheme.lower()
        if scheme not in ("http", "https") or not url.host:
            raise ValueError("takes an absolute http or https URL")
        if url.userinfo:
            raise ValueError("takes a URL without user and password")
        if url.port is not None and not 0 < url.port < 65536:
            raise ValueError("takes a port from 1 to 65535")
        authority, target = _split(ascii_text)
        if "\\" in authority or any(not "!" <= character <= "~" for character in ascii_text):
            raise ValueError("takes a URL without spaces and control characters")
        made = cls(scheme, url.host)
        made.encoded = f"{scheme}://{authority.lower()}{target}"
        made.host_header = authority.lower().removesuffix(":443" if scheme == "https" else ":80")
        return made

    @property
    def shown(self) -> str:
        """The URL for logs: without query, which may hold a secret."""
        return self.encoded.partition("?")[0]

    def to_uri(self) -> RequestUrl:
        """Called by treq."""
        return self

    def to_text(self, with_password: bool = False) -> str:
        """Called by treq."""
        return self.encoded


def _split(url: str) -> tuple[str, str]:
    """The authority of an absolute URL, and its target in origin-form (RFC 9112 section 3.2.1)."""
    found = re.fullmatch(r"[^:]*://([^/?#]*)([^#]*)(?:#.*)?", url, re.DOTALL)
    assert found is not None
    return found[1], found[2] if found[2].startswith("/") else "/" + found[2]


@frozen
class Call:
    """What is asked, apart from the body; made once and asked many times.

    `limit` is in seconds and covers everything, `max_bytes` bounds the body of the answer. `retry` asks once more, over a
    new connection, when a connection is closed before anything came back (RFC 9112 section 9.3.1); it is off where asking
    twice could do harm. `gzip` takes a gzip-coded answer, though none is asked for.
    """

    method: str
    target: RequestUrl = field(repr=lambda target: target.shown)
    headers: Headers = field(repr=False)
    limit: float
    max_bytes: int
    retry: bool = True
    gzip: bool = False

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
        gzip: bool = False,
    ) -> Call:
        """A call with `headers`, and the ones that every call has. Raises ValueError for an unusable URL."""
        target = RequestUrl.of(url)
        given = {**_EVERY_CALL, "host": target.host_header, **headers}
        lines = Headers({name: [value] for name, value in given.items()})
        return cls(method, target, lines, limit, max_bytes, retry, gzip)

    @property
    def url(self) -> str:
        """The URL as it is sent."""
        return self.target.encoded

    @property
    def shown(self) -> str:
        """The URL for logs, without query."""
        return self.target.shown

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
    """There is no answer that could be read.

    `why` is a few words without anything secret, `hint` what to do where that is clear. `status` is that of the answer that
    was not read, 0 if there was none.
    """

    def __init__(self, why: str, status: int = 0, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.hint = hint


class Unreachable(HttpFailure):
    """No answer in HTTP came; `why` is "connection refused", "time out", "TLS: …"."""


class TimedOut(Unreachable):
    """There was no whole answer within the limit."""


class TooLarge(HttpFailure):
    """The body is longer than the call allows; it was not read further."""


class Encoded(HttpFailure):
    """The body has a content coding although none was asked for; it was not read."""


class HttpClient:
    """Asks calls through treq over `agent`. `clock` measures the time limits, `drop_idle` closes kept connections."""

    def __init__(
        self, clock: IReactorTime, agent: IAgent, drop_idle: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._drop_idle = drop_idle
        self._cookies = _NoCookies()
        self._treq = HTTPClient(PlainAgent(agent), self._cookies, _Body)

    @classmethod
    def from_config(cls, reactor: Any, config: Config) -> HttpClient:
        """The client for a platform reached as the settings say. Raises ConfigError for unusable TLS files."""
        agent, pool = pooled_agent(reactor, ClientTls.for_platform(config), HttpProxy.from_config(config))
        return cls(reactor, agent, pool.drop_idle)

    def close(self) -> None:
        """Close idle connections; a later call makes new ones."""
        self._drop_idle()

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        """The answer. Raises Unreachable, TooLarge or Encoded; CancelledError when the asker cancels."""
        asking = Deferred.fromCoroutine(self._ask(call, body))
        asking.addTimeout(call.limit, self._clock, _expired)
        cancelled = False

        def pass_on(result: Answer | Failure) -> None:
            # A request that is cancelled fails in as many ways as one that goes wrong: the asker gets none of them.
            if not cancelled:
                answer.callback(result)  # a Failure calls the errbacks

        def cancel(_: object) -> None:
            nonlocal cancelled
            cancelled = True
            asking.cancel()

        answer: Deferred[Answer] = Deferred(cancel)
        asking.addBoth(pass_on)
        return await answer

    async def _ask(self, call: Call, body: bytes | None) -> Answer:
        try:
            try:
                return await self._exchange(call, body)
            except ResponseNeverReceived as lost:
                if not call.retry or not all(f.check(ConnectionClosed) for f in lost.reasons):
                    raise
                # The server closed a kept connection just when it was used again; the other kept ones are as old.
                self._drop_idle()
                return await self._exchange(call, body)
        except HttpFailure:
            raise
        except Exception as error:
            # Connecting, TLS and parsing raise a dozen unrelated kinds; all mean that there is no answer.
            raise Unreachable(why(error), hint=_hint(error, call.target)) from None

    async def _exchange(self, call: Call, body: bytes | None) -> Answer:
        response: Any = await self._treq.request(
            call.method,
            call.target,
            headers=call.headers,
            data=body,
            cookies=self._cookies,
            allow_redirects=False,
            unbuffered=True,
        )
        codings = _codings(response.headers)
        gunzip = call.gzip and codings == [b"x-gzip"]
        refused: HttpFailure | None = None
        if codings and not gunzip:
            shown = b", ".join(codings).replace(b"x-gzip", b"gzip").decode("ascii", "replace")[:64]
            refused = Encoded(
                f"the answer has the content coding {shown}, though none was asked for", response.code
            )
        elif isinstance(response.length, int) and response.length > call.max_bytes:
            refused = _too_large(call.max_bytes, response.code)
        collector = _Collector(response.code, call.max_bytes, refused, gunzip)
        response.deliverBody(collector)
        return Answer(response.code, response.headers, await collector.whole)


def _codings(headers: Headers) -> list[bytes]:
    """The content codings of an answer; an empty header, which treq leaves behind, is taken out."""
    names = b",".join(headers.getRawHeaders(b"content-encoding", ())).lower().split(b",")
    codings = [name.strip() for name in names if name.strip() not in (b"", b"identity")]
    if not codings:
        headers.removeHeader(b"content-encoding")
    return codings


def _expired(result: object, limit: float) -> Answer:
    raise TimedOut("time out")


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

    def __init__(self, status: int, max_bytes: int, refused: HttpFailure | None, gunzip: bool) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._stop())
        self._status = status
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
            self.whole.errback(reason)
        elif self._unzip is not None and not self._unzip.eof:
            self.whole.errback(Encoded("the gzip of the answer is cut short", self._status))
        else:
            self.whole.callback(b"".join(self._parts))

    def _refuse(self, failure: HttpFailure) -> None:
        self._stop()
        self.whole.errback(failure)

    def _stop(self) -> None:
        self._over = True
        self._parts.clear()
        assert self.transport is not None
        self.transport.stopProducing()  # type: ignore[attr-defined]


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (DNSLookupError, "the name does not resolve"),
    (TCPTimedOutError, "time out"),
    (NoRouteError, "no route"),
    (HeadTooLong, f"the head of the answer is longer than {HEAD_MAX} bytes"),
    (ConnectError, "cannot connect"),
    (ResponseNeverReceived, "connection closed without an answer"),
    (ConnectionClosed, "connection closed"),
)


def why(error: BaseException) -> str:
    """An error of connecting, TLS or HTTP in a few words for an operator."""
    error = _decisive(error)
    if isinstance(error, ProxyFailed):
        return f"proxy {error.where}: {error.said or (why(error.cause) if error.cause else 'no answer')}"
    if isinstance(error, CertificateRefused):
        return f"TLS: {error.why}"
    if isinstance(error, SSL.Error):
        said = error.args[0] if error.args else ()
        last = (
            said[-1][-1] if isinstance(said, (list, tuple)) and said and isinstance(said[-1], tuple) else ""
        )
        return f"TLS: {last or 'the connection broke'}"
    if isinstance(error, ResponseFailed) and not isinstance(error, ResponseNeverReceived):
        closed = any(inner.check(ConnectionClosed) for inner in error.reasons)
        return "connection closed within the answer" if closed else "the answer is not HTTP"
    return next((word for kind, word in _WORDS if isinstance(error, kind)), type(error).__name__)


def _decisive(error: BaseException) -> BaseException:
    """What a failed response failed for, where that says more than the failure."""
    if isinstance(error, ResponseFailed):
        for inner in error.reasons:
            if isinstance(inner.value, (SSL.Error, CertificateRefused, HeadTooLong)):
                return inner.value
    return error


def _hint(error: BaseException, url: RequestUrl) -> str:
    """What to do about an error of connecting or TLS; empty where that is not clear."""
    error = _decisive(error)
    if isinstance(error, CertificateRefused):
        return error.hint
    if isinstance(error, ProxyFailed):
        return "check RELAY_HTTP_PROXY or HTTPS_PROXY; NO_PROXY names what is reached directly"
    if isinstance(error, DNSLookupError):
        return f"{url.host} is not known to this machine's resolver: check the name, and /etc/resolv.conf"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {url.host_header}: check that the platform runs, and the port"
    return ""
