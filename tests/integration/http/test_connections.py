"""Connections of the outbound HTTP client: kept alive, shared, dropped by the server, closed by the relay."""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThread

from tests.drill.certificates import Identity
from tests.integration.http.servers import (
    OK,
    Listen,
    Server,
    answering,
    dropping,
    failure_of,
    pause,
    post,
    reactor,
    until,
)
from viewport_relay.admission.agent import pooled_agent
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Call, Unreachable
from viewport_relay.admission.tls import ClientTls


@pytest_twisted.ensureDeferred
async def test_one_connection_serves_many_requests(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = post(listen(server))
    for _ in range(20):
        await client.ask(call, b"{}")
    assert len(server.connections) == 1 and len(server.requests) == 20


@pytest_twisted.ensureDeferred
async def test_concurrent_requests_do_not_wait_for_each_other(listen: Listen, client: HttpClient) -> None:
    def script(connection: Any, head: bytes | None) -> None:
        if head is not None:
            reactor.callLater(1.0 if b"/slow" in head else 0.0, connection.transport.write, OK)

    server = Server(script)
    port = listen(server)
    slow = Deferred.fromCoroutine(client.ask(post(port, "/slow"), b"{}"))
    began = reactor.seconds()
    await gatherResults([Deferred.fromCoroutine(client.ask(post(port), b"{}")) for _ in range(8)])
    assert reactor.seconds() - began < 0.8
    assert (await slow).body == b"ok"
    await client.ask(post(port), b"{}")
    assert len(server.connections) == 9  # all kept, and reused


@pytest_twisted.ensureDeferred
async def test_connection_close_is_respected(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    call = post(listen(server))
    for _ in range(3):
        await client.ask(call, b"{}")
    assert len(server.connections) == 3


@pytest_twisted.ensureDeferred
async def test_close_drops_kept_connections(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = post(listen(server))
    await client.ask(call, b"{}")
    client.close()
    await until(lambda: server.connections[0].lost)
    assert (await client.ask(call, b"{}")).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_request_on_a_dropped_kept_connection_is_retried(listen: Listen, client: HttpClient) -> None:
    server = dropping(1, 1)
    call = post(listen(server))
    await client.ask(call, b"1")
    assert (await client.ask(call, b"2")).body == b"ok"
    assert [(number, body) for number, _, body in server.requests] == [(0, b"1"), (0, b"2"), (1, b"2")]


@pytest_twisted.ensureDeferred
async def test_after_a_restart_of_the_server_each_request_needs_at_most_one_retry(
    listen: Listen, client: HttpClient
) -> None:
    """All kept connections are dropped on use: the retry opens a new connection instead of trying the next old one."""
    server = dropping(1, 5)
    call = post(listen(server))
    await gatherResults([Deferred.fromCoroutine(client.ask(call, b"{}")) for _ in range(5)])
    assert len(server.connections) == 5
    assert (await client.ask(call, b"{}")).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_one_retry_and_no_more(listen: Listen, client: HttpClient) -> None:
    server = dropping(0, 99)
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, Unreachable) and failure.why == "connection closed without an answer"
    assert len(server.requests) == 2


@pytest_twisted.ensureDeferred
async def test_no_retry_where_the_call_forbids_it(listen: Listen, client: HttpClient) -> None:
    server = dropping(1, 99)
    call = post(listen(server), retry=False)
    await client.ask(call, b"{}")
    assert isinstance(await failure_of(client.ask(call, b"{}")), Unreachable)
    assert len(server.requests) == 2


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_is_already_closed_is_not_used(
    listen: Listen, client: HttpClient
) -> None:
    server = answering(OK)
    call = post(listen(server), retry=False)
    await client.ask(call, b"{}")
    server.connections[0].transport.loseConnection()
    await until(lambda: server.connections[0].lost)
    await pause(0.05)
    assert (await client.ask(call, b"{}")).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_unsolicited_bytes_end_a_kept_connection(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = post(listen(server))
    await client.ask(call, b"{}")
    server.connections[0].transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await until(lambda: server.connections[0].lost)
    assert (await client.ask(call, b"{}")).body == b"ok"


TARGETS = [
    "/a/b%2Fc?x=1&y=%20",
    "/x//y/../z?a=b?c",
    "/x?a=1&&b",
    "/;p=1?q=[1]",
    "/{|}\"'`",
    "/a\\b/c",
    "/%zz",
    "/?x=1",
    "/x?",
    "/x;",
    "/x;?",
    "/x/;a=?b",
    "//x??",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest_twisted.ensureDeferred
async def test_a_path_is_sent_as_it_stands(listen: Listen, client: HttpClient, target: str) -> None:
    server = answering(OK)
    await client.ask(post(listen(server), target), b"{}")
    assert server.requests[0][1].startswith(b"POST %b HTTP/1.1\r\n" % target.encode())


@pytest_twisted.ensureDeferred
async def test_an_ipv6_address(ports: list[IListeningPort], client: HttpClient) -> None:
    server = answering(OK)
    ports.append(reactor.listenTCP(0, server, interface="::1"))
    number = ports[-1].getHost().port  # type: ignore[attr-defined]
    answer = await client.ask(Call.make("GET", f"http://[::1]:{number}/", {}, limit=2, max_bytes=10))
    assert answer.body == b"ok" and b"Host: [::1]:%d" % number in server.requests[0][1]


class Deaf:
    """A TLS server that responds once and sends close_notify, then neither closes nor reads the client's close_notify."""

    def __init__(self, identity: Identity) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            files = identity.write(Path(folder), "deaf")
            self._context.load_cert_chain(files.cert, files.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def serve(self) -> float:
        """Serve one connection (blocking); returns the seconds from the response until the connection is gone."""
        with (
            self._listener,
            self._listener.accept()[0] as plain,
            self._context.wrap_socket(plain, server_side=True) as tls,
        ):
            tls.recv(65_536)
            tls.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            began = time.monotonic()
            raw = socket.socket(fileno=tls.detach())
            with raw:
                raw.settimeout(10)
                try:
                    while raw.recv(65_536):
                        pass
                except ConnectionResetError:
                    pass
            return time.monotonic() - began


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_answer_close_notify_is_cut_off(client: HttpClient) -> None:
    server = Deaf(Identity.self_signed("deaf", "127.0.0.1"))
    serving = deferToThread(server.serve)
    agent, _ = pooled_agent(reactor, ClientTls(verify=False))
    call = Call.make("GET", f"https://127.0.0.1:{server.port}/", {}, limit=3, max_bytes=10)
    assert (await HttpClient(reactor, agent).ask(call)).body == b"ok"
    assert await serving < 5
