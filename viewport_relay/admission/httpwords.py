"""Errors of connecting, TLS and HTTP, and redirects, in words for an operator: what is wrong, and what to do where that is clear. No I/O."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from viewport_relay.admission.httpcall import Answer
from viewport_relay.admission.httpproxy import ProxyFailed
from viewport_relay.admission.keys import printable
from viewport_relay.admission.pool import HEAD_MAX, HeadTooLong
from viewport_relay.admission.requesturl import RequestUrl
from viewport_relay.admission.tls import CertificateRefused

#: OpenSSL's word for an answer that is no TLS record.
_NO_TLS = "wrong version number"

_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (DNSLookupError, "the name does not resolve"),
    (TCPTimedOutError, "time out"),
    (TimeoutError, "time out"),
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


def redirect(answer: Answer) -> str:
    """A redirect in words, with its target but not the target's query, which may hold a secret; "" for another answer."""
    if not 300 <= answer.status < 400 or answer.status == 304:  # 304: Not Modified
        return ""
    where = printable((answer.header("location") or "").partition("?")[0], 128)
    return f"a redirect (HTTP {answer.status}){f' to {where}' if where else ''}, which is not followed"


def _decisive(error: BaseException) -> BaseException:
    """The error inside a ResponseFailed, where that is more exact; else the error itself."""
    if isinstance(error, ResponseFailed):
        for inner in error.reasons:
            if isinstance(inner.value, (SSL.Error, CertificateRefused, HeadTooLong)):
                return inner.value
    return error


def hint(error: BaseException, url: RequestUrl) -> str:
    """The fix for an error of connecting or TLS; empty where it is not clear."""
    error = _decisive(error)
    if isinstance(error, CertificateRefused):
        return error.hint
    if isinstance(error, ProxyFailed):
        return "check RELAY_HTTP_PROXY or HTTPS_PROXY; NO_PROXY names what is reached directly"
    if isinstance(error, DNSLookupError):
        return f"{url.host} is not known to this machine's resolver: check the name, and /etc/resolv.conf"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {url.host_header}: check that the platform runs, and the port"
    if isinstance(error, SSL.Error) and _NO_TLS in why(error):
        return f"{url.host_header} does not speak TLS: check the port, or write http:// if that is meant"
    return ""
