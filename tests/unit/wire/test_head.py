"""The head of an upgrade that is read in one pass: what it takes, it takes for what Twisted takes it for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, Request

from viewport_relay.wire.head import MAX_HEAD, MAX_HEADERS, Head, read_upgrade

LINES = [
    b"Host: relay.example:7781",
    b"Upgrade: websocket",
    b"Connection: keep-alive, Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"sec-websocket-version:13",
    b"Authorization: Bearer 0123456789abcdef",
    b"X-Forwarded-For: 10.0.0.1, 10.0.0.2",
    b"x-forwarded-for:\t10.0.0.3 \t",
    b"User-Agent: ws/8 (\xe9t\xe9)",
    b"X-Empty:",
]
TARGET = b"/ws?role=client&workspaceId=w&runtimeTargetId=t"


def whole(lines: list[bytes] = LINES, target: bytes = TARGET) -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", *lines, b"", b""])


def by_twisted(data: bytes) -> Head | None:
    """What Twisted's channel reads; None when it refuses it or waits for more."""
    seen: list[Head] = []

    class Noted(Request):
        def process(self) -> None:
            seen.append(Head.of(self))

    channel: Any = HTTPChannel()
    channel.requestFactory = Noted
    channel.timeOut = None
    channel.makeConnection(StringTransport())
    channel.dataReceived(data)
    return seen[0] if seen else None


def same(one: Head, other: Head) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in Head.__slots__)


def test_a_usual_head() -> None:
    read = read_upgrade(whole() + b"\x81\x80more")
    assert read is not None
    head, length = read
    assert length == len(whole())
    assert (head.method, head.path, head.target, head.version) == (b"GET", b"/ws", TARGET, b"HTTP/1.1")
    assert head.words(b"connection") == ["keep-alive", "Upgrade"]
    assert head.values(b"x-forwarded-for") == ["10.0.0.1, 10.0.0.2", "10.0.0.3"]
    assert head.words(b"x-forwarded-for") == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert head.first(b"user-agent") == "ws/8 (été)"
    assert head.first(b"x-empty") == head.first(b"missing") == ""
    twisted = by_twisted(whole())
    assert twisted is not None and same(head, twisted)


def test_a_head_written_again_reads_the_same_and_is_not_longer() -> None:
    read, twisted = read_upgrade(whole()), by_twisted(whole())
    assert read is not None and twisted is not None
    for head in (read[0], twisted):
        again = read_upgrade(head.written())
        assert again is not None and same(head, again[0])
        assert len(head.written()) <= len(whole())


@pytest.mark.parametrize(
    "data",
    [
        whole()[:-1],
        whole()[:-2],
        whole([]),
        whole([*LINES, b" folded"]),
        whole([*LINES, b"no colon"]),
        whole([*LINES, b": no name"]),
        whole([*LINES, b"a b: blank in the name"]),
        whole([*LINES, b"a : blank before the colon"]),
        whole([*LINES, b"a: nul\x00"]),
        whole([*LINES, b"a: lone\rreturn"]),
        whole([*LINES, b"a: lone\nfeed"]),
        whole([*LINES, b"Content-Length: 0"]),
        whole([*LINES, b"Transfer-Encoding: chunked"]),
        whole([*LINES, b"Expect: 100-continue"]),
        whole([b"a: b"] * (MAX_HEADERS + 1)),
        whole([*LINES, b"a: " + b"x" * MAX_HEAD]),
        whole(target=b"/other?role=client"),
        whole(target=b"/ws"),
        whole(target=b"/ws?a b"),
        whole(target=b"/ws?\xe9"),
        whole().replace(b"HTTP/1.1", b"HTTP/1.0"),
        whole().replace(b"GET", b"get"),
        whole().replace(b"GET", b"HEAD"),
        b"\r\n" + whole(),
        whole().replace(b"\r\n", b"\n"),
        b"",
    ],
)
def test_what_is_left_to_twisted(data: bytes) -> None:
    assert read_upgrade(data) is None


def test_the_bounds_themselves() -> None:
    assert read_upgrade(whole([b"a: b"] * MAX_HEADERS)) is not None
    room = MAX_HEAD - len(whole([b"a: "]))
    assert read_upgrade(whole([b"a: " + b"x" * room])) is not None
    assert read_upgrade(whole([b"a: " + b"x" * (room + 1)])) is None


_PIECE = st.sampled_from(
    [
        b"\r\n",
        b"\r",
        b"\n",
        b":",
        b" ",
        b"\t",
        b"\x00",
        b"\x7f",
        b"\xe9",
        b"?",
        b"Host",
        b"Content-Length: 3\r\n",
        b"x",
    ]
) | st.binary(max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), _PIECE), max_size=3),
)
def test_what_is_read_here_twisted_reads_alike(
    lines: list[bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    data = whole(lines)
    for at, cut, put in edits:
        data = data[:at] + put + data[at + cut :]
    read = read_upgrade(data)
    if read is None:
        return
    head, length = read
    twisted = by_twisted(data[:length])
    assert twisted is not None and same(head, twisted)
