"""Plain HTTP over in-memory transports: one request per turn, the budget of an address, bounded buffers, time-outs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from tests.memorywire import Log, MemoryTransport, timed_calls
from viewport_relay.admission.addresses import TrustedProxies
from viewport_relay.config import load
from viewport_relay.observe.counters import Counters
from viewport_relay.wire.addresslimits import AddressLimits
from viewport_relay.wire.channel import MAX_KEPT, REQUEST_TIMEOUT
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.plainhttp import HOLD, PlainHttp
from viewport_relay.wire.reactor import LOW_PRIORITY_SECONDS
from viewport_relay.wire.site import RelaySite, Root

KEEP_ALIVE = 75.0


class Page(Resource):
    """Answers with the path, in the time of a turn. `/late` is answered later by the test, `/broken` raises."""

    isLeaf = True

    def __init__(self, clock: Clock) -> None:
        Resource.__init__(self)
        self._clock = clock
        self.asked: list[bytes] = []
        self.late: list[Request] = []

    def render(self, request: Request) -> bytes | int:
        assert request.content is not None
        self._clock.rightNow += LOW_PRIORITY_SECONDS
        self.asked.append(request.path + request.content.read())
        if request.path == b"/late":
            self.late.append(request)
            return NOT_DONE_YET
        if request.path == b"/broken":
            raise ZeroDivisionError
        return b"<" + request.path + b">"


class Told(ClientAddress):
    """A client address that the test sets."""

    def __init__(self, web: Web) -> None:
        ClientAddress.__init__(self, TrustedProxies())
        self._web = web

    def __call__(self, request: Request) -> str:
        return self._web.address


class Web:
    """A site with a budget, and connections to it."""

    def __init__(self, rate: int = 0, operator: bytes = b"/operator") -> None:
        self.clock = Clock()
        self.log = Log()
        self.page = Page(self.clock)
        self.counters = Counters()
        self.queue = FairQueue(self.clock)
        self.connections = HttpConnections(lambda: 10, log=self.log)
        self.address = "192.0.2.1"
        config: Any = load(
            {"RELAY_MODE": "dev", "SERVER_URL": "http://127.0.0.1:1", "RELAY_HTTP_RATE_PER_IP": str(rate)}, {}
        )
        plain = PlainHttp(
            self.page,
            self.clock,
            AddressLimits(self.clock, config, self.log, self.counters, exempt=lambda address: False),
            self.queue,
            Told(self),
            lambda request: request.path == operator,
        )
        self.site: Any = RelaySite(Root(None, plain), self.clock, self.queue, self.connections, KEEP_ALIVE)

    def connect(self) -> Line:
        return Line(self)


class Line:
    """One HTTP connection."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.sent = b""
        self.transport = MemoryTransport(web.clock, self._take)
        self.channel = self.transport.protocol = web.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def _take(self, data: bytes) -> None:
        self.sent += data

    def say(self, data: bytes) -> None:
        self.transport.arrive(data)
        self.flush()
        self.turns(1)

    def flush(self) -> None:
        while self.transport.turn():
            pass

    def turns(self, number: int) -> None:
        for _ in range(number):
            timed_calls(self.web.clock)
            self.flush()

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.sent.split(b"HTTP/1.1 ")[1:]]


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"


def test_pipelined_requests_are_answered_one_per_turn_in_order() -> None:
    web = Web()
    web.address = "unknown"  # as the channel's, so that a request is read and answered as one piece of work
    line = web.connect()
    line.transport.arrive(b"".join(get(b"/%d" % n) for n in range(5)) + b"GET /5 HTTP/1.1\r\nHo")
    line.flush()
    assert web.page.asked == [b"/0"]
    for n in range(1, 5):
        line.turns(1)
        assert web.page.asked[-1] == b"/%d" % n and len(web.page.asked) == n + 1
    line.say(b"st: x\r\n\r\n")
    line.turns(3)
    assert web.page.asked == [b"/%d" % n for n in range(6)] and line.statuses == [200] * 6


def test_requests_after_a_body_keep_their_order() -> None:
    web = Web()
    line = web.connect()
    line.say(b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + get(b"/1") + b"GET /2 ")
    line.say(b"HTTP/1.1\r\nHost: x\r\n\r\n" + get(b"/3"))
    assert web.page.asked == [b"/lateabc"]
    web.page.late[0].finish()
    line.turns(10)
    assert web.page.asked == [b"/lateabc", b"/1", b"/2", b"/3"] and line.statuses == [200] * 4


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"no colon", 400),
        (b"Content-Length: " + b"1" * 5000, 400),
        (b"Content-Length: 20000", 413),
        (b"Transfer-Encoding: chunked", 411),
        (b"X: " + b"x" * 17_000, 431),
    ],
)
@pytest.mark.parametrize("dropped", [False, True])
def test_nothing_is_read_behind_a_refused_head(header: bytes, status: int, dropped: bool) -> None:
    web = Web()
    line = web.connect()
    if dropped:
        line.channel.loseConnection = line.channel.drop
    line.say(b"GET /1 HTTP/1.1\r\nHost: x\r\n" + header + b"\r\nY: y\r\n\r\n" + get(b"/2"))
    line.turns(3)
    assert line.statuses == ([] if dropped else [status]) and web.page.asked == []
    assert line.channel.early == b""


def test_buffered_pipelined_requests_are_bounded_and_answered() -> None:
    web = Web()
    line = web.connect()
    number = 3000
    line.say(get(b"/late"))
    line.say(get(b"/x") * number)
    assert not line.transport.is_read and line.transport.unread > 0
    assert len(line.channel.early) <= MAX_KEPT + 65_536
    web.page.late[0].finish()
    for _ in range(2 * number + 5):
        line.turns(1)
        assert len(line.channel.early) <= MAX_KEPT + 65_536
    assert line.statuses == [200] * (number + 1) and line.transport.is_read


def test_unread_responses_pause_the_reading_of_requests() -> None:
    web = Web()
    line = web.connect()
    line.transport.window = 0
    line.say(get(b"/x") * 3000)
    line.turns(3000)
    assert line.transport.unsent < 100_000 and not line.transport.is_read
    asked = len(web.page.asked)
    assert asked < 3000
    line.transport.window = 1 << 40
    line.turns(2)
    assert len(web.page.asked) > asked


def test_request_time_out_and_keep_alive_time_out() -> None:
    web = Web()
    line = web.connect()
    web.clock.advance(REQUEST_TIMEOUT - 1)
    line.say(get(b"/0"))
    assert line.statuses == [200]
    web.clock.advance(KEEP_ALIVE - 1)
    assert not line.transport.disconnecting
    line.say(b"GET /1 HT")  # the next request arrives byte by byte
    for _ in range(REQUEST_TIMEOUT - 1):
        web.clock.advance(1)
        line.say(b"x")
    assert not line.transport.disconnecting
    web.clock.advance(1)
    line.flush()
    assert line.statuses == [200, 408] and line.transport.disconnecting


def test_an_idle_connection_is_closed_without_a_response() -> None:
    web = Web()
    line = web.connect()
    line.say(get(b"/0"))
    web.clock.advance(KEEP_ALIVE)
    line.flush()
    assert line.statuses == [200] and not line.transport.connected
    assert len(web.connections) == 0


def test_a_peer_that_leaves_is_removed_from_the_queue() -> None:
    web = Web()
    first, second = web.connect(), web.connect()
    for line, path in ((first, b"/0"), (second, b"/1")):  # the second waits for its turn
        line.transport.arrive(get(path))
        line.flush()
    second.transport.vanish()
    first.turns(3)
    assert web.page.asked == [b"/0"] and len(web.connections) == 1


def test_over_its_budget_an_address_gets_429_and_one_log_entry() -> None:
    web = Web(rate=3)
    lines = [web.connect() for _ in range(6)]
    for line in lines:
        line.say(get(b"/x"))
    for line in lines:
        line.turns(4)
    assert web.page.asked == [b"/x"] * 3
    held = [line for line in lines if not line.sent]
    assert len(held) == 3
    web.clock.advance(HOLD)
    held[0].turns(10)
    for line in held:
        line.flush()
        assert line.statuses == [429] and b"HTTP_RATE_LIMIT_EXCEEDED" in line.sent
        assert b"Retry-After: " in line.sent and not line.transport.connected
    [entry] = web.log.named("http_refused")
    assert entry["ip"] == "192.0.2.1" and "RELAY_HTTP_RATE_PER_IP=3" in entry["detail"]
    assert web.counters.http_rate_limited == 3
    web.address = "192.0.2.2"
    other = web.connect()
    other.say(get(b"/y"))
    other.turns(2)
    assert other.statuses == [200]


def test_an_ipv6_subscriber_has_one_budget() -> None:
    web = Web(rate=1)
    web.address = "2001:db8::1"
    first, second = web.connect(), web.connect()
    first.say(get(b"/x"))
    web.address = "2001:db8::2"
    second.say(get(b"/x"))
    web.clock.advance(HOLD)
    second.turns(3)
    assert (first.statuses, second.statuses) == ([200], [429])


def test_requests_of_an_operator_are_not_counted() -> None:
    web = Web(rate=1)
    line = web.connect()
    for n in range(1, 6):
        line.say(get(b"/operator"))
        line.turns(3)
        assert line.statuses == [200] * n


def test_held_connections_are_closed_for_new_ones() -> None:
    web = Web(rate=1)
    lines = [web.connect() for _ in range(10)]
    for line in lines:
        line.say(get(b"/x"))
    newcomer = web.connect()
    web.clock.advance(0)
    assert len(web.connections) == 10 and newcomer.transport.connected and not newcomer.transport.aborted
    [entry] = web.log.named("http_dropped")
    limit = "RELAY_MAX_TOTAL_CONNECTIONS (default 2000) or the limit on open files allows 10"
    assert entry["detail"] == f"11 connections without an upgrade, {limit}"


def test_an_exception_in_a_page_gives_500() -> None:
    web = Web()
    first, second = web.connect(), web.connect()
    first.say(get(b"/x"))
    second.say(get(b"/broken"))
    second.turns(2)
    assert second.statuses == [500]


def test_head_is_get_without_a_body() -> None:
    web = Web()
    line = web.connect()
    line.say(b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n" + get(b"/x"))
    line.turns(4)
    sent = re.sub(rb"Date: [^\r]+", b"Date:", line.sent)  # a second may end between the two responses
    head, again = sent.split(b"HTTP/1.1 ")[1:]
    assert head.endswith(b"\r\n\r\n") and again.startswith(head)


HOSTS = {
    "none": (b"HTTP/1.1\r\n\r\n", 200),
    "none, HTTP/1.0": (b"HTTP/1.0\r\n\r\n", 200),
    "two": (b"HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "two alike": (b"HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    "two, HTTP/1.0": (b"HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a list": (b"HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "with a path": (b"HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "with a user": (b"HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "no port": (b"HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "half an address": (b"HTTP/1.1\r\nHost: [\r\n\r\n", 400),
    "empty": (b"HTTP/1.1\r\nHost:\r\n\r\n", 200),
    "an address": (b"HTTP/1.1\r\nHost: [::1]:7781\r\n\r\n", 200),
}


@pytest.mark.parametrize("name", HOSTS)
def test_a_request_has_at_most_one_host_and_a_valid_one(name: str) -> None:
    """RFC 9112 section 3.2, but that a request without Host is answered: scripts and health checks send such."""
    rest, status = HOSTS[name]
    web = Web()
    line = web.connect()
    line.say(b"GET /1 " + rest)
    assert int(line.sent.split()[1]) == status
    assert web.page.asked == ([b"/1"] if status == 200 else [])
    if status == 400:
        line.say(get(b"/2"))
        assert line.sent.count(b"HTTP/1.") == 1 and b"Connection: close" in line.sent


def test_requests_with_a_bad_host_count_for_the_budget() -> None:
    web = Web(rate=1)
    line = web.connect()
    line.say(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
    other = web.connect()
    other.say(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
    web.clock.advance(2)
    other.turns(1)
    assert (line.statuses, other.statuses) == ([400], [429])
