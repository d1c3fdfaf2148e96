"""HttpClient over treq's in-memory testing agent: requests, responses, limits."""

from __future__ import annotations

from typing import Any

import pytest
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, Encoded, TimedOut, TooLarge
from viewport_relay.admission.requesturl import RequestUrl


class Platform(Resource):
    """Resource with a fixed `status`, `headers` and `body`; a body of None leaves the request open."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.requests: list[tuple[bytes, bytes, dict[bytes, list[bytes]], bytes]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = b"ok"

    def render(self, request: Any) -> Any:
        sent = dict(request.requestHeaders.getAllRawHeaders())
        self.requests.append((request.method, request.uri, sent, request.content.read()))
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return NOT_DONE_YET if self.body is None else self.body


class Fixture:
    """An HttpClient, its clock and the platform behind its agent."""

    def __init__(self) -> None:
        self.platform = Platform()
        self.agent = RequestTraversalAgent(self.platform)
        self.clock = Clock()
        self.client = HttpClient(self.clock, self.agent)

    def start(self, call: Call, body: bytes | None = None) -> tuple[Deferred[Answer], list[Any]]:
        asking = Deferred.fromCoroutine(self.client.ask(call, body))
        results: list[Any] = []
        asking.addBoth(results.append)
        self.agent.flush()
        return asking, results

    def ask(self, call: Call, body: bytes | None = None) -> Any:
        """The answer or the exception of one request."""
        _, [result] = self.start(call, body)
        return result.value if isinstance(result, Failure) else result


@pytest.fixture
def memory() -> Fixture:
    return Fixture()


def call(method: str = "POST", url: str = "http://platform.example/x?y=1", **rest: Any) -> Call:
    return Call.make(method, url, {"x-key": "k"}, **{"limit": 2.0, "max_bytes": 100, **rest})


def test_request_line_headers_and_body(memory: Fixture) -> None:
    answer = memory.ask(call(), b'{"a":1}')
    assert (answer.status, answer.body) == (200, b"ok")
    [(method, uri, headers, body)] = memory.platform.requests
    assert (method, uri, body) == (b"POST", b"/x?y=1", b'{"a":1}')
    assert headers[b"Accept-Encoding"] == [b"identity"] and headers[b"Accept"] == [b"application/json"]
    assert headers[b"X-Key"] == [b"k"] and headers[b"User-Agent"] == [b"viewport-relay"]
    assert headers[b"Host"] == [b"platform.example"] and headers[b"Content-Length"] == [b"7"]


def test_a_call_is_not_changed_by_its_requests(memory: Fixture) -> None:
    """A call's headers are built once: treq and the agent must not add to them."""
    asked = call()
    before = list(asked.headers.getAllRawHeaders())
    for _ in range(3):
        memory.ask(asked, b"{}")
    assert list(asked.headers.getAllRawHeaders()) == before
    assert len({repr(sorted(headers.items())) for _, _, headers, _ in memory.platform.requests}) == 1


def test_no_cookie_is_sent_back(memory: Fixture) -> None:
    memory.platform.headers = {"set-cookie": "a=b; Path=/"}
    for _ in range(2):
        assert memory.ask(call(), b"{}").header("set-cookie") == "a=b; Path=/"
    assert all(b"Cookie" not in headers for _, _, headers, _ in memory.platform.requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(memory: Fixture, status: int) -> None:
    memory.platform.status, memory.platform.headers = status, {"location": "http://platform.example/other"}
    assert memory.ask(call("GET")).status == status
    assert len(memory.platform.requests) == 1


@pytest.mark.parametrize("size,good", [(100, True), (101, False)])
def test_the_size_limit_of_a_body(memory: Fixture, size: int, good: bool) -> None:
    memory.platform.body = b"x" * size
    answer = memory.ask(call(), b"{}")
    assert isinstance(answer, Answer if good else TooLarge)


def test_a_content_coding_is_an_error(memory: Fixture) -> None:
    memory.platform.headers = {"content-encoding": "gzip"}
    failure = memory.ask(call(), b"{}")
    assert isinstance(failure, Encoded) and failure.status == 200


def test_one_time_limit_covers_the_whole_request(memory: Fixture) -> None:
    memory.platform.body = None
    _, results = memory.start(call(limit=2.0), b"{}")
    memory.clock.advance(1.9)
    assert results == []
    memory.clock.advance(0.2)
    [failure] = results
    assert failure.check(TimedOut) and failure.value.why == "time out"


def test_a_cancelled_request(memory: Fixture) -> None:
    memory.platform.body = None
    asking, results = memory.start(call(), b"{}")
    asking.cancel()
    [failure] = results
    assert failure.check(CancelledError)
    memory.client.close()
    assert not memory.clock.getDelayedCalls()


@pytest.mark.parametrize(
    "url,origin,target",
    [
        ("http://a.example", (b"http", b"a.example", 80), b"/"),
        ("HTTP://A.Example:80/", (b"http", b"a.example", 80), b"/"),
        ("http://a.example/x?", (b"http", b"a.example", 80), b"/x"),
        ("https://a.example:8443/x//y/../z?a=b?c#frag", (b"https", b"a.example", 8443), b"/x//y/../z?a=b?c"),
        ("http://a.example?x=1", (b"http", b"a.example", 80), b"/?x=1"),
        ("http://[::1]:99/p%2Fq", (b"http", b"::1", 99), b"/p%2Fq"),
        ("http://bücher.example/ä", (b"http", b"xn--bcher-kva.example", 80), b"/%C3%A4"),
    ],
)
def test_urls(url: str, origin: tuple[bytes, bytes, int], target: bytes) -> None:
    uri = URI.fromBytes(RequestUrl.of(url).to_uri().to_text().encode("ascii"))
    assert ((uri.scheme, uri.host, uri.port), uri.originForm) == (origin, target)


@pytest.mark.parametrize(
    "url",
    [
        "", "a.example", "/x", "ftp://a.example/", "http://", "http:///x", "http://user:pass@a.example/",
        "http://a.example:0/", "http://a.example:65536/", "http://a.example:x/", "http://a b/", "http://a.example/a b",
        "http://a.example/\r\nX: y", "http://a.example\r\n", "http://[::1/", "http://a.example\\@evil.example/",
        "http://a.example/\x7f", "http://user@a.example/", "https://a.example:/x", "http://\u2028.example/",
    ],
)  # fmt: skip
def test_invalid_urls(url: str) -> None:
    with pytest.raises(ValueError, match="takes a"):
        Call.make("GET", url, {}, limit=1, max_bytes=1)


def test_the_shown_url_has_no_query() -> None:
    asked = call(url="https://a.example/path?key=secret")
    assert asked.shown == "https://a.example/path"
    assert "secret" not in repr(asked) and "'k'" not in repr(asked)
