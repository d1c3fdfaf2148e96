"""Raw bytes to the relay's site, in process: site, `/ws` resource and sessions over in-memory transports.

Invariants: only a valid request is upgraded, any other gets well-formed HTTP or is closed, and no exception is raised. The gate
is a test double that admits every request and records it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher
from twisted.web.resource import Resource

from tests.memorywire import MemoryRelay, MemoryTransport
from viewport_relay.admission.addresses import TrustedProxies
from viewport_relay.admission.limits import ConnectionCounts, UpgradeLimits
from viewport_relay.admission.query import read_query
from viewport_relay.admission.token import TokenSource
from viewport_relay.protocol.grant import Claims, Scope, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.handshake import MAX_PARAMETERS, parse_query
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.upgrade import UpgradeResource

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # key of RFC 6455, section 1.3, and its answer
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
TOKEN = b"0123456789abcdef"
TARGET = b"/ws?role=client&workspaceId=w&runtimeTargetId=t"


class OpenGate:
    """A gate that admits every request."""

    def __init__(self) -> None:
        self.asked: list[tuple[TokenSource, UpgradeQuery]] = []

    def recall(self, source: TokenSource, query: UpgradeQuery) -> Claims | None:
        return None

    async def admit(self, source: TokenSource, query: UpgradeQuery) -> Claims:
        self.asked.append((source, query))
        return Claims(
            workspace_id=query.workspace_id, runtime_target_id=query.runtime_target_id, scope=Scope.PAIRING
        )


class OtherPages(Resource):
    """The resource for all requests but upgrades."""

    isLeaf = True

    def __init__(self, ws: Resource) -> None:
        Resource.__init__(self)
        self._ws = ws

    def render(self, request: Any) -> bytes | int:
        if request.path == b"/ws" and request.method in (b"GET", b"HEAD"):
            answer: int = self._ws.render(request)
            return answer
        request.setResponseCode(404)
        return b"{}"


class UpgradeSite:
    """One relay and one connection to it."""

    def __init__(self, gate: OpenGate | None = None, **environ: str) -> None:
        self.relay = MemoryRelay(**environ)
        self.gate = OpenGate() if gate is None else gate
        self.counts = ConnectionCounts(UpgradeLimits(total=10, per_ip=10, clients=10))
        asked: Any = self.gate
        self.upgrade = UpgradeResource(
            self.relay.config,
            self.relay.clock,
            self.relay.log,
            self.relay.counters,
            address=ClientAddress(TrustedProxies()),
            gate=asked,
            factory=self.relay.factory,
            opened=self.relay.relaying.sessions.opened,
            counts=self.counts,
        )
        root = Root(self.upgrade, OtherPages(self.upgrade))
        site: Any = RelaySite(
            root, self.relay.clock, FairQueue(self.relay.clock), HttpConnections(lambda: 10, self.relay.log)
        )
        self.sent = b""
        self.transport = MemoryTransport(self.relay.clock, self._take)
        self.transport.protocol = site.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)

    def _take(self, data: bytes) -> None:
        self.sent += data

    def receive(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.arrive(piece)
            while self.transport.turn():
                pass
            self.relay.clock.advance(0)

    def upgraded(self) -> bool:
        return self.sent.startswith(b"HTTP/1.1 101 ")

    def leave(self) -> None:
        """Lose the connection and let all timers expire."""
        self.transport.vanish()
        self.relay.clock.advance(60)

    def replies(self, method: bytes = b"GET") -> list[tuple[int, dict[bytes, bytes], bytes]]:
        """All responses; asserts that every byte belongs to a complete response."""
        found, rest = [], self.sent
        while rest:
            head, end, rest = rest.partition(b"\r\n\r\n")
            assert end, f"a head without an end: {head!r}"
            status, *lines = head.split(b"\r\n")
            version, code, phrase = status.split(b" ", 2)
            assert version in (b"HTTP/1.1", b"HTTP/1.0") and len(code) == 3 and phrase
            headers = {}
            for line in lines:
                name, colon, value = line.partition(b": ")
                assert colon and name and name == name.strip() and b"\n" not in line and b"\r" not in line
                headers[name.lower()] = value
            if code == b"101":
                return [*found, (101, headers, rest)]
            length = 0 if method == b"HEAD" else int(headers.get(b"content-length", b"0"))
            body, rest = rest[:length], rest[length:]
            assert len(body) == length, "a body is cut short"
            found.append((int(code), headers, body))
        return found


@pytest.fixture(autouse=True)
def failures() -> Iterator[list[Any]]:
    """Failures that Twisted logs; asserts that there are none."""
    seen: list[Any] = []

    def observe(event: Any) -> None:
        if event.get("log_failure") is not None or event.get("isError"):
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)
    assert seen == []


def request(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], version: bytes = b"HTTP/1.1"
) -> bytes:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return method + b" " + target + b" " + version + b"\r\n" + lines + b"\r\n"


RIGHT: dict[bytes, list[bytes]] = {
    b"Host": [b"relay.example"],
    b"Upgrade": [b"websocket"],
    b"Connection": [b"Upgrade"],
    b"Sec-WebSocket-Version": [b"13"],
    b"Sec-WebSocket-Key": [KEY],
    b"Authorization": [b"Bearer " + TOKEN],
}
#: For each header: values (one per line) that are equivalent, and values that must not be upgraded.
GOOD: dict[bytes, list[list[bytes]]] = {
    b"Host": [[b"h"], [b"[::1]:7781"], [b""], [b"relay_1.example:"], [b"127.0.0.1:7781"], [b"xn--bcher-kva.example."]],
    b"Upgrade": [[b"WebSocket"], [b"h2c, websocket"], [b"h2c", b"WEBSOCKET"]],
    b"Connection": [[b"keep-alive, Upgrade"], [b"upgrade"], [b"keep-alive", b"uPgRaDe"]],
    b"Sec-WebSocket-Version": [[b" 13 "]],
    b"Sec-WebSocket-Key": [[b"AAAAAAAAAAAAAAAAAAAAAA=="]],
    b"Authorization": [[b"bEaReR   " + TOKEN], [b"Basic YTpi", b"Bearer " + TOKEN], [b"Bearer x", b"Bearer " + TOKEN]],
    b"Content-Length": [[b"0"]],
    b"Sec-WebSocket-Protocol": [[b"chat, superchat"], [b"chat", b"superchat"], [b"auth." + TOKEN], [b",,chat,"]],
    b"Sec-WebSocket-Extensions": [[b"permessage-deflate; client_max_window_bits"], [b"nonsense;;;"]],
    b"Origin": [[b"https://anywhere.example"], [b"null"]],
    b"X-Forwarded-For": [[b"1.2.3.4, junk"]],
    b"Cookie": [[b"a=b; c"], [b"=;;="]],
}  # fmt: skip
BAD: dict[bytes, list[list[bytes]]] = {
    b"Host": [[], [b"a", b"b"], [b"a", b"a"], [b"a, b"], [b"a b"], [b"a/b"], [b"u@a"], [b"["], [b"a:b"], [b"a:1:2"], [b"b\xfccher"]],
    b"Upgrade": [[], [b"h2c"], [b"websockets"], [b"web socket"], [b"websocket/1"]],
    b"Connection": [[], [b"keep-alive"], [b"upgrades"], [b"close"]],
    b"Sec-WebSocket-Version": [[], [b"8"], [b"13", b"13"], [b"13, 8"], [b"+13"], [b"\xb213"]],
    b"Sec-WebSocket-Key": [[], [b""], [KEY, KEY], [KEY[:-1]], [b"!" * 24], [KEY[:-3] + b"===" ], [b"A" * 24]],
    b"Authorization": [[], [b"Bearer"], [b"Basic " + TOKEN], [TOKEN], [b"Bearer 123456789"], [b"Bearer " + b"x" * 4097]],
    b"Content-Length": [[b"1"], [b"-1"], [b"0x0"], [b"0", b"0"], [b"1" * 30], [b"1" * 5000], [b"\xb2"]],
    b"Transfer-Encoding": [[b"chunked"], [b"gzip"], [b"identity"]],
    b"Sec-WebSocket-Protocol": [[b"chat, chat"], [b"a b"], [b"chat", b"chat"], [b"a\"b"], [b"caf\xc3\xa9"], [b"(x)"]],
}  # fmt: skip
GOOD_TARGETS = [
    TARGET,
    b"http://relay.example" + TARGET,
    b"HTTPS://[::1]:7781" + TARGET,
    TARGET + b"&role=worker",  # the first value counts
    b"/ws?workspaceId=W.-_%3Ax&role=worker",
    b"/ws?role=workspace%2Ddaemon&workspaceId=w&runtimeTargetId=t&other=%00%ff",
]
BAD_TARGETS = [
    b"/ws", b"/ws?", b"/ws/?role=client&workspaceId=w", b"//ws?role=client&workspaceId=w", b"/WS?role=client&workspaceId=w",
    b"/ws%3Frole=client&workspaceId=w", b"/%77s?role=client&workspaceId=w", b"ftp://h/ws?role=client&workspaceId=w", b"*", b"http:///ws?role=client&workspaceId=w", b"http://h/ws/?role=client&workspaceId=w", b"http://[/ws?role=client&workspaceId=w", b"ws?role=client&workspaceId=w",
    b"/ws;x?role=client&workspaceId=w", b"/ws?role=client;workspaceId=w", b"/ws?role=client&workspaceId=w%0A",
    b"/ws?role=client&workspaceId=" + b"w" * 129, b"/ws?role=client&workspaceId=w&runtimeTargetId=", b"/ws?role=Client&workspaceId=w",
    b"/ws?role=client&workspaceId=%ff", b"/ws?role=client&workspaceId=w" + b"&a=b" * 64, b"/ws?role=client&workspaceId=\xe9",
    b"/ws#?role=client&workspaceId=w", b"/ws?role=x&role=client&workspaceId=w", b"/ws?rolE=client&workspaceId=w",
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A request of valid and invalid parts, and whether all parts are valid."""
    wrong = draw(st.integers(0, 3)) == 0 or draw(st.booleans())
    lines = dict(RIGHT)
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=4, unique=True)):
        lines[name] = draw(st.sampled_from(GOOD[name]))
    target = draw(st.sampled_from(GOOD_TARGETS))
    method, version = b"GET", b"HTTP/1.1"
    if wrong:
        place = draw(st.sampled_from([b"method", b"version", b"target", *sorted(BAD)]))
        if place == b"method":
            method = draw(st.sampled_from([b"POST", b"HEAD", b"OPTIONS", b"get", b"CONNECT", b"G\x00T"]))
        elif place == b"version":
            version = draw(st.sampled_from([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"http/1.1"]))
        elif place == b"target":
            target = draw(st.sampled_from(BAD_TARGETS))
        else:
            lines[place] = draw(st.sampled_from(BAD[place]))
            if place == b"Authorization":
                lines.pop(b"Sec-WebSocket-Protocol", None)  # the sub-protocol can hold a token, too
    ordered = draw(st.permutations([(name, value) for name, values in lines.items() for value in values]))
    spelled = draw(st.sampled_from([bytes.lower, bytes.upper, bytes.title]))
    return request(method, target, [(spelled(name), value) for name, value in ordered], version), not wrong


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(requests(), st.lists(st.integers(0, 4000), max_size=4))
def test_only_a_valid_request_is_upgraded(made: tuple[bytes, bool], places: list[int]) -> None:
    data, right = made
    site = UpgradeSite()
    site.receive(*cut(data, places))
    assert site.upgraded() is right, (data, site.sent[:200])
    replies = site.replies(data.partition(b" ")[0])
    assert len(replies) <= 1
    assert len(site.gate.asked) == right
    if right:
        status, headers, _ = replies[0]
        key = data.lower().partition(b"sec-websocket-key: ")[2].partition(b"\r")[0]
        assert headers[b"sec-websocket-accept"] == (
            ACCEPT if key == KEY.lower() else accept(b"A" * 22 + b"==")
        )
        assert headers[b"upgrade"] == b"websocket" and headers[b"connection"] == b"Upgrade"
        assert b"sec-websocket-extensions" not in headers
    elif replies:
        status, headers, body = replies[0]
        assert status in (400, 401, 404, 411, 413, 426)
        assert b"server" not in headers, "the server's software is not disclosed"
        if b"x-relay-reason" in headers and body:
            said = json.loads(body)
            assert list(said) == ["ok", "reason", "message", "connectionId"]
            assert body == json.dumps(said, separators=(",", ":")).encode()
            assert said["reason"].encode() == headers[b"x-relay-reason"]
            assert TOKEN not in body
    site.leave()
    assert site.counts.total == 0
    assert "internal_error" not in {entry["event"] for entry in site.relay.log.events}


def accept(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


_junk = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b"websocket", b"Upgrade", b"13", KEY, b"chunked", b"0", b"auth." + TOKEN, b"x" * 9000]
    ),
)
_names = st.one_of(
    st.sampled_from([*RIGHT, b"Content-Length", b"Transfer-Encoding", b"Expect", b"Cookie", b"Content-Type", b"Origin"]),
    st.binary(max_size=12),
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"TRACE"]), st.binary(max_size=8)),
    st.one_of(
        st.sampled_from([TARGET, b"*", b"/", b"/health", b"http://[/ws", b"//", b"/ws?" + b"&" * 9000]),
        st.binary(max_size=40),
        st.binary(max_size=40).map(lambda more: TARGET + b"&" + more),
    ),
    st.lists(st.tuples(_names, _junk), max_size=8),
    st.lists(st.sampled_from(sorted(RIGHT)), max_size=6, unique=True),
    st.one_of(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b""]), st.binary(max_size=9)),
    st.binary(max_size=80),
    st.lists(st.integers(0, 20_000), max_size=5),
)
@example(b"OPTIONS", b"*", [], sorted(RIGHT), b"HTTP/1.1", b"", [])
@example(
    b"POST",
    b"/ws",
    [(b"Content-Type", b"multipart/form-data"), (b"Content-Length", b"3")],
    [],
    b"HTTP/1.1",
    b"abc",
    [],
)
@example(
    b"POST",
    b"/",
    [(b"Content-Type", b"multipart/form-data; boundary=\xff"), (b"Content-Length", b"3")],
    [],
    b"HTTP/1.1",
    b"abc",
    [],
)
@example(
    b"POST",
    b"/",
    [(b"Content-Type", b"application/x-www-form-urlencoded"), (b"Content-Length", b"3")],
    [],
    b"HTTP/1.1",
    b"%ff",
    [],
)
@example(b"GET", b"\xff\xfe", [(b"Host", b"\x00")], [], b"HTTP/1.1", b"", [])
def test_invalid_requests_are_answered_or_closed(
    method: bytes,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    kept: list[bytes],
    version: bytes,
    behind: bytes,
    places: list[int],
) -> None:
    """Any other request than a valid upgrade is closed within a minute, with complete responses or none."""
    site = UpgradeSite()
    right = [(name, RIGHT[name][0]) for name in kept]
    site.receive(*cut(request(method, target, right + headers, version) + behind, places))
    if site.upgraded():
        assert len(site.gate.asked) == 1, "no peer is admitted without the gate"
        site.replies()
        site.leave()
    else:
        assert site.gate.asked == []
        for _ in range(12):
            site.relay.clock.advance(5)
            while site.transport.turn():
                pass
        assert site.transport.disconnected, "it is still open after a minute"
        for status, *_ in site.replies(method):
            assert status in (100, 400, 401, 404, 408, 411, 413, 426)
    site.relay.clock.advance(60)
    assert site.counts.total == 0
    assert "internal_error" not in {entry["event"] for entry in site.relay.log.events}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(requests().map(lambda made: made[0]), min_size=2, max_size=4),
    st.lists(st.integers(0, 4000), max_size=4),
)
def test_pipelined_requests(made: list[bytes], places: list[int]) -> None:
    """Pipelining: a refusal closes the connection, so that later bytes are not read as a response."""
    site = UpgradeSite()
    site.receive(*cut(b"".join(made), places))
    upgrades = [reply for reply in site.replies(made[0].partition(b" ")[0]) if reply[0] == 101]
    assert len(upgrades) == len(site.gate.asked) <= 1
    site.leave()
    assert site.counts.total == 0


_FIELDS = st.lists(
    st.sampled_from(
        [
            "role=client",
            "role=worker",
            "workspaceId=w",
            "workspaceId=%77",
            "runtimeTargetId=t",
            "token=t",
            "%74oken=u",
            "a",
            "=",
            "",
        ]
    )
    | st.text("ab=%+;&é", max_size=6),
    max_size=6,
)


@given(_FIELDS)
def test_a_query_is_read_like_the_standard_library(fields: list[str]) -> None:
    text = "&".join(fields)
    found: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        found.setdefault(name, value)

    def by_the_book() -> tuple[UpgradeQuery, str | None]:
        query = read_query(found.get("role"), found.get("workspaceId"), found.get("runtimeTargetId"))
        return query, found.get("token")

    def outcome(read: Callable[[], object]) -> object:
        try:
            return read()
        except Refusal as refusal:
            return refusal.detail

    assert outcome(lambda: parse_query(b"/ws?" + text.encode())) == outcome(by_the_book)


def test_the_number_of_query_parameters_is_bounded() -> None:
    usual = b"/ws?role=client&workspaceId=w"
    assert parse_query(usual + b"&x" * (MAX_PARAMETERS - 2))[0].workspace_id == "w"
    with pytest.raises(Refusal) as refused:
        parse_query(usual + b"&" * (MAX_PARAMETERS - 1))
    assert refused.value.reason is Reason.QUERY_INVALID and "64" in refused.value.detail


class BrokenGate(OpenGate):
    """A gate with a bug, before or after the first await."""

    def __init__(self, at_once: bool) -> None:
        super().__init__()
        self.at_once = at_once

    def recall(self, source: TokenSource, query: UpgradeQuery) -> Claims | None:
        if self.at_once:
            raise ZeroDivisionError
        return None

    async def admit(self, source: TokenSource, query: UpgradeQuery) -> Claims:
        raise ZeroDivisionError


@pytest.mark.parametrize("at_once", [True, False])
def test_an_exception_ends_one_upgrade_and_is_logged(at_once: bool) -> None:
    site = UpgradeSite(BrokenGate(at_once))
    site.receive(request(b"GET", TARGET, [(name, RIGHT[name][0]) for name in RIGHT]))
    assert [reply[0] for reply in site.replies()] == [500]
    [entry] = [entry for entry in site.relay.log.events if entry["event"] == "internal_error"]
    assert "ZeroDivisionError" in entry["traceback"]
    site.relay.clock.advance(60)
    assert site.transport.disconnected and site.counts.total == 0


def test_cached_claims_are_admitted_at_once() -> None:
    site = UpgradeSite()
    claims = Claims(workspace_id="w", runtime_target_id="t", scope=Scope.PAIRING)
    site.gate.recall = lambda source, query: claims  # type: ignore[method-assign]
    site.receive(request(b"GET", TARGET, [(name, RIGHT[name][0]) for name in RIGHT]))
    assert site.upgraded() and site.gate.asked == []
    samples = [sample for metric in site.relay.counters.latencies() for sample in metric.samples]
    assert [s.value for s in samples if s.name == "relay_admission_latency_seconds_count"] == [1]
    site.leave()
    assert site.counts.total == 0
