"""An outgoing HTTP request as a value, its answer, and its failures. No I/O: `http.py` sends the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import field, frozen
from twisted.web.http_headers import Headers

from viewport_relay.admission.requesturl import RequestUrl

_EVERY_CALL: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "viewport-relay",
}


class CallHeaders(Headers):
    """The headers of a call, made once: each request is given this object, where treq would make a copy and offer gzip."""

    __slots__ = ()

    def copy(self) -> CallHeaders:
        """Called by treq."""
        return self

    def addRawHeader(self, name: str | bytes, value: str | bytes) -> None:
        """Called by treq with an Accept-Encoding: the call's own stands."""


@frozen
class Call:
    """A request apart from its body; made once and sent many times.

    `limit` is in seconds and covers everything, `max_bytes` bounds the body of the answer. `retry` asks once more, over a
    new connection, when a connection is closed before anything came back (RFC 9112 section 9.3.1); it is off where asking
    twice could do harm. `gzip` takes a gzip-coded answer, though none is asked for.
    """

    method: str
    target: RequestUrl = field(repr=lambda target: target.shown)
    headers: CallHeaders = field(repr=False)
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
        lines = CallHeaders({name: [value] for name, value in given.items()})
        return cls(method, target, lines, limit, max_bytes, retry, gzip)

    @property
    def url(self) -> str:
        """The URL as it is sent."""
        return self.target.encoded

    @property
    def shown(self) -> str:
        """The URL for logs, without query."""
        return self.target.shown


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
    """A call failed: there is no answer that can be used.

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
