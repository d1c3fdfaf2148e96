"""Responses to the outbound HTTP client: right, slow, too large, malformed, or none."""

from __future__ import annotations

import gzip
import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from tests.integration.http.servers import (
    OK,
    Listen,
    Server,
    answering,
    drip,
    failure_of,
    pause,
    post,
    reactor,
    until,
)
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Call, Encoded, TimedOut, TooLarge, Unreachable


@pytest_twisted.ensureDeferred
async def test_a_request_and_its_response(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 201 Made\r\nX-One: 1\r\nContent-Length: 5\r\n\r\nhello")
    port = listen(server)
    call = Call.make(
        "POST", f"http://127.0.0.1:{port}/a/b%2Fc?x=1&y=%20", {"x-key": "k"}, limit=2, max_bytes=100
    )
    answer = await client.ask(call, b'{"a":1}')
    assert (answer.status, answer.body, answer.header("x-one"), answer.header("x-two")) == (
        201,
        b"hello",
        "1",
        None,
    )
    ((_, head, body),) = server.requests
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /a/b%2Fc?x=1&y=%20 HTTP/1.1" and body == b'{"a":1}'
    headers = {line.split(b": ")[0].lower(): line.split(b": ")[1] for line in lines[1:]}
    assert headers == {
        b"host": b"127.0.0.1:%d" % port, b"accept": b"application/json", b"accept-encoding": b"identity",
        b"user-agent": b"viewport-relay", b"x-key": b"k", b"content-length": b"7",
    }  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_a_get_has_no_body(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = Call.make("GET", f"http://127.0.0.1:{listen(server)}", {}, limit=2, max_bytes=100)
    assert (await client.ask(call)).body == b"ok"
    assert (
        server.requests[0][1].startswith(b"GET / HTTP/1.1\r\n")
        and b"content-length" not in server.requests[0][1].lower()
    )


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest_twisted.ensureDeferred
async def test_an_empty_body_has_a_length(listen: Listen, client: HttpClient, method: str) -> None:
    """RFC 9110 section 8.6: content of no bytes is announced where the method gives content a meaning."""
    server = answering(OK)
    call = Call.make(method, f"http://127.0.0.1:{listen(server)}", {}, limit=2, max_bytes=100)
    assert (await client.ask(call, b"")).body == b"ok"
    assert b"\r\ncontent-length: 0" in server.requests[0][1].lower()


FRAMINGS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: 1\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\n\r\nhello world",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello world",
    "early hints": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
}


@pytest.mark.parametrize("name", FRAMINGS)
@pytest_twisted.ensureDeferred
async def test_each_framing_of_a_body(listen: Listen, client: HttpClient, name: str) -> None:
    port = listen(answering(FRAMINGS[name], close=name in ("close", "HTTP/1.0")))
    assert (await client.ask(post(port), b"{}")).body == b"hello world"


@pytest_twisted.ensureDeferred
async def test_redirects_are_not_followed_and_cookies_are_not_kept(
    listen: Listen, client: HttpClient
) -> None:
    other = answering(OK)
    target = listen(other)
    server = answering(
        b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:%d/\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"
        % target
    )
    call = post(listen(server))
    for _ in range(2):
        answer = await client.ask(call, b"{}")
        assert (answer.status, answer.body) == (307, b"")
    assert other.requests == [] and all(b"cookie" not in head.lower() for _, head, _ in server.requests)


# -- time-outs -------------------------------------------------------------------------------------------------


SLOW: dict[str, tuple[bytes, bytes]] = {
    "sends no byte": (b"", b""),
    "drips its head": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "stops within its head": (b"HTTP/1.1 200 OK\r\nX-A", b""),
    "drips its body": (b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", b" "),
    "drips chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "drips endlessly": (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "stops within its body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b""),
}


@pytest.mark.parametrize("name", SLOW)
@pytest_twisted.ensureDeferred
async def test_the_limit_covers_head_and_body(listen: Listen, client: HttpClient, name: str) -> None:
    first, rest = SLOW[name]

    def script(connection: Any, head: bytes | None) -> None:
        if head is not None:
            connection.transport.write(first)
            if rest:
                drip(connection, rest)

    server = Server(script)
    began = reactor.seconds()
    failure = await failure_of(client.ask(post(listen(server), limit=0.3), b"{}"))
    assert isinstance(failure, TimedOut) and failure.why == "time out"
    assert 0.25 < reactor.seconds() - began < 1.0
    await until(lambda: server.connections[0].lost)  # the client kept no connection


@pytest_twisted.ensureDeferred
async def test_the_limit_covers_connecting(client: HttpClient) -> None:
    """A listener with a full backlog does not answer the TCP handshake."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        failure = await failure_of(client.ask(post(full.getsockname()[1], limit=0.3), b"{}"))
        for filler in fillers:
            filler.close()
    assert isinstance(failure, TimedOut)


@pytest_twisted.ensureDeferred
async def test_the_limit_covers_tls(listen: Listen, client: HttpClient) -> None:
    server = Server(lambda connection, head: None)
    call = Call.make("GET", f"https://127.0.0.1:{listen(server)}/", {}, limit=0.3, max_bytes=10)
    assert isinstance(await failure_of(client.ask(call)), TimedOut)
    await until(lambda: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_request_ends_its_connection(listen: Listen, client: HttpClient) -> None:
    for first in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"):
        server = answering(first)
        waiting = Deferred.fromCoroutine(client.ask(post(listen(server)), b"{}"))
        await until(lambda server=server: bool(server.requests))
        await pause(0.05)
        waiting.cancel()
        assert isinstance(await failure_of(waiting), CancelledError)
        await until(lambda server=server: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_a_request_cancelled_while_connecting(client: HttpClient) -> None:
    waiting = Deferred.fromCoroutine(client.ask(post(1), b"{}"))
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)


# -- malformed responses ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_connection_refused(client: HttpClient, free_port: int) -> None:
    failure = await failure_of(client.ask(post(free_port), b"{}"))
    assert isinstance(failure, Unreachable) and failure.why == "connection refused"


@pytest_twisted.ensureDeferred
async def test_a_name_that_does_not_resolve(client: HttpClient) -> None:
    call = Call.make("GET", "http://nowhere.invalid/", {}, limit=5, max_bytes=10)
    failure = await failure_of(client.ask(call))
    assert isinstance(failure, Unreachable)
    assert failure.why == "the name does not resolve" or isinstance(
        failure, TimedOut
    )  # a resolver that is not reachable


NO_ANSWER = {
    "garbage": (b"\x00\x01\x02 what\r\n\r\n", "the answer is not HTTP"),
    "TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n", "the answer is not HTTP"),
    "status no number": (b"HTTP/1.1 OK 200\r\n\r\n", "the answer is not HTTP"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "the answer is not HTTP"),
    "bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "the answer is not HTTP"),
    "unknown coding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: br\r\n\r\n", "the answer is not HTTP"),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "connection closed within the answer"),
    "cut chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "connection closed within the answer"
    ),
    "cut head": (b"HTTP/1.1 200 OK\r\nX-A: ", "connection closed within the answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ANSWER)
@pytest_twisted.ensureDeferred
async def test_malformed_responses(listen: Listen, client: HttpClient, name: str) -> None:
    wire, why = NO_ANSWER[name]
    server = answering(wire, close=True)
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, Unreachable) and failure.why == why
    assert len(server.requests) == 1  # no retry after a byte of a response


@pytest_twisted.ensureDeferred
async def test_an_endless_head_is_cut_off(listen: Listen, client: HttpClient) -> None:
    sent = 0

    def script(connection: Any, head: bytes | None) -> None:
        def more() -> None:
            nonlocal sent
            if not connection.lost and sent < 50_000_000:
                connection.transport.write(b"X-A: " + b"b" * 1000 + b"\r\n")
                sent += 1007
                reactor.callLater(0, more)

        if head is not None:
            connection.transport.write(b"HTTP/1.1 200 OK\r\n")
            more()

    server = Server(script)
    failure = await failure_of(client.ask(post(listen(server), limit=5), b"{}"))
    assert isinstance(failure, Unreachable)
    assert failure.why == "the head of the answer is longer than 131072 bytes"
    await until(lambda: server.connections[0].lost)
    assert sent < 2_000_000 and len(server.connections) == 1  # no retry


BIG = {
    "announced": b"HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n",
    "by length": b"HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n" + b"x" * 4097,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n"
    + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 4,
    "endless": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 4097,
    "as an error": b"HTTP/1.1 503 Sorry\r\nContent-Length: 99999\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BIG)
@pytest_twisted.ensureDeferred
async def test_an_answer_over_the_limit_ends_its_connection(
    listen: Listen, client: HttpClient, name: str
) -> None:
    server = answering(BIG[name])
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, TooLarge) and failure.status == (503 if name == "as an error" else 200)
    assert "4096" in failure.why
    await until(lambda: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_exactly_as_large_as_allowed(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n" + b"x" * 4096)
    assert len((await client.ask(post(listen(server)), b"{}")).body) == 4096


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "Identity, gzip"])
@pytest_twisted.ensureDeferred
async def test_a_content_coding_is_refused(listen: Listen, client: HttpClient, coding: str) -> None:
    packed = gzip.compress(b"x" * 1_000_000)
    server = answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (coding.encode(), len(packed), packed)
    )
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, Encoded) and failure.status == 200 and "content coding" in failure.why
    await until(lambda: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_identity_is_no_content_coding(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.ask(post(listen(server)), b"{}")).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_response_without_a_content_coding_has_no_such_header(
    listen: Listen, client: HttpClient
) -> None:
    answer = await client.ask(post(listen(answering(OK))), b"{}")
    assert not answer.headers.hasHeader("content-encoding")


GZIPPED = {
    "as it must be": (gzip.compress(b"hello"), b"hello"),
    "exactly the limit": (gzip.compress(b"x" * 4096), b"x" * 4096),
    "one byte more": (gzip.compress(b"x" * 4097), TooLarge),
    "a bomb": (gzip.compress(b"x" * 50_000_000), TooLarge),
    "cut short": (gzip.compress(b"hello")[:-3], Encoded),
    "not compressed": (b"hello", Encoded),
    "empty": (b"", Encoded),
}


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP"])
@pytest.mark.parametrize("name", GZIPPED)
@pytest_twisted.ensureDeferred
async def test_gzip_where_the_call_accepts_it(
    listen: Listen, client: HttpClient, name: str, coding: str
) -> None:
    packed, expected = GZIPPED[name]
    server = answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (coding.encode(), len(packed), packed)
    )
    asking = client.ask(
        post(listen(server), gzip=True, max_bytes=60_000 if name == "a bomb" else 4096), b"{}"
    )
    if isinstance(expected, bytes):
        assert (await asking).body == expected
    else:
        assert isinstance(await failure_of(asking), expected)
    assert b"gzip" not in server.requests[0][1]  # no Accept-Encoding
