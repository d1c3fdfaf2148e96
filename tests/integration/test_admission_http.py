"""The outbound HTTP client against real servers on loopback: slow, lying, dropping, and behind TLS."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from treq.client import HTTPClient
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.drill.certificates import Identity
from viewport_relay.admission.connections import DirectTreq, place_of
from viewport_relay.admission.http import Answer, Call, Encoded, HttpClient, TimedOut, TooLarge, Unreachable
from viewport_relay.admission.tls import ClientTls
from viewport_relay.config import ConfigError, load

reactor: Any = real_reactor
Listen = Callable[[Factory], int]


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait for something that must come."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, "it did not come"
        await pause(0.01)


def post(port: int, path: str = "/", limit: float = 2.0, max_bytes: int = 4096, **rest: Any) -> Call:
    return Call.make("POST", f"http://127.0.0.1:{port}{path}", {}, limit=limit, max_bytes=max_bytes, **rest)


# -- servers ---------------------------------------------------------------------------------------------------


class Scripted(Protocol):
    """Hands every whole request to the factory's script."""

    def connectionMade(self) -> None:
        self.buffer = b""
        self.lost = False
        self.number = len(self.factory.connections)
        self.factory.connections.append(self)
        self.factory.script(self, None)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.factory.requests.append((self.number, head, rest[:length]))
            self.factory.script(self, head)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class Server(Factory):
    protocol = Scripted
    noisy = False

    def __init__(self, script: Callable[[Any, bytes | None], None]) -> None:
        self.script = script
        self.connections: list[Scripted] = []
        self.requests: list[tuple[int, bytes, bytes]] = []


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answering(wire: bytes, close: bool = False) -> Server:
    """A server that answers each request with the same bytes."""

    def script(connection: Any, head: bytes | None) -> None:
        if head is not None:
            connection.transport.write(wire)
            if close:
                connection.transport.loseConnection()

    return Server(script)


@pytest_twisted.async_yield_fixture
async def ports() -> AsyncIterator[list[IListeningPort]]:
    listening: list[IListeningPort] = []
    yield listening
    for port in listening:
        await port.stopListening()  # type: ignore[misc]


@pytest.fixture
def listen(ports: list[IListeningPort]) -> Listen:
    def start(factory: Factory) -> int:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        ports.append(port)
        return int(port.getHost().port)

    return start


@pytest.fixture
def client() -> Iterator[HttpClient]:
    made = HttpClient(reactor, DirectTreq(reactor, ClientTls()))
    yield made
    made.close()


async def failure_of(waiting: Awaitable[Answer]) -> Exception:
    try:
        answer = await waiting
    except Exception as error:
        return error
    raise AssertionError(f"it was answered: {answer!r}")


# -- asking ----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_question_and_its_answer(listen: Listen, client: HttpClient) -> None:
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
async def test_one_connection_serves_many_questions(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = post(listen(server))
    for _ in range(20):
        await client.ask(call, b"{}")
    assert len(server.connections) == 1 and len(server.requests) == 20


@pytest_twisted.ensureDeferred
async def test_questions_at_the_same_time_do_not_wait_for_each_other(
    listen: Listen, client: HttpClient
) -> None:
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
    assert len(server.connections) == 9  # all kept, and used again


@pytest_twisted.ensureDeferred
async def test_connection_close_is_respected(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    call = post(listen(server))
    for _ in range(3):
        await client.ask(call, b"{}")
    assert len(server.connections) == 3


@pytest_twisted.ensureDeferred
async def test_close_drops_what_is_kept(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = post(listen(server))
    await client.ask(call, b"{}")
    client.close()
    await until(lambda: server.connections[0].lost)
    assert (await client.ask(call, b"{}")).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_redirects_are_answers_and_cookies_are_not_kept(listen: Listen, client: HttpClient) -> None:
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


# -- time ------------------------------------------------------------------------------------------------------


def drip(connection: Any, piece: bytes) -> None:
    def more() -> None:
        if not connection.lost:
            connection.transport.write(piece)
            reactor.callLater(0.05, more)

    more()


SLOW: dict[str, tuple[bytes, bytes]] = {
    "says nothing": (b"", b""),
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
    await until(lambda: server.connections[0].lost)  # nothing is left behind


@pytest_twisted.ensureDeferred
async def test_the_limit_covers_connecting(client: HttpClient) -> None:
    """A listener whose queue is full does not answer the handshake of TCP."""
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
async def test_a_question_that_is_given_up_ends_its_connection(listen: Listen, client: HttpClient) -> None:
    for first in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"):
        server = answering(first)
        waiting = Deferred.fromCoroutine(client.ask(post(listen(server)), b"{}"))
        await until(lambda server=server: bool(server.requests))
        await pause(0.05)
        waiting.cancel()
        assert isinstance(await failure_of(waiting), CancelledError)
        await until(lambda server=server: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_a_question_that_is_given_up_while_connecting(client: HttpClient) -> None:
    waiting = Deferred.fromCoroutine(client.ask(post(1), b"{}"))
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)


# -- what is no answer -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_nobody_listens(client: HttpClient, free_port: int) -> None:
    failure = await failure_of(client.ask(post(free_port), b"{}"))
    assert isinstance(failure, Unreachable) and failure.why == "connection refused"


@pytest_twisted.ensureDeferred
async def test_a_name_that_does_not_resolve(client: HttpClient) -> None:
    call = Call.make("GET", "http://nowhere.invalid/", {}, limit=5, max_bytes=10)
    failure = await failure_of(client.ask(call))
    assert isinstance(failure, Unreachable)
    assert failure.why == "the name does not resolve" or isinstance(
        failure, TimedOut
    )  # a resolver that is away


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
async def test_what_is_no_answer(listen: Listen, client: HttpClient, name: str) -> None:
    wire, why = NO_ANSWER[name]
    server = answering(wire, close=True)
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, Unreachable) and failure.why == why
    assert len(server.requests) == 1  # something came back: it is not asked again


@pytest_twisted.ensureDeferred
async def test_a_head_without_end_is_cut_off(listen: Listen, client: HttpClient) -> None:
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
    assert isinstance(failure, Unreachable) and not isinstance(failure, TimedOut)
    await until(lambda: server.connections[0].lost)
    assert sent < 2_000_000


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
async def test_too_large(listen: Listen, client: HttpClient, name: str) -> None:
    server = answering(BIG[name])
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, TooLarge) and failure.status == (503 if name == "as an error" else 200)
    assert "4096" in failure.why
    await until(lambda: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_exactly_as_large_as_allowed(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n" + b"x" * 4096)
    assert len((await client.ask(post(listen(server)), b"{}")).body) == 4096


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "Identity, gzip"])
@pytest_twisted.ensureDeferred
async def test_compressed_bodies_are_refused(listen: Listen, client: HttpClient, encoding: str) -> None:
    packed = gzip.compress(b"x" * 1_000_000)
    server = answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (encoding.encode(), len(packed), packed)
    )
    failure = await failure_of(client.ask(post(listen(server)), b"{}"))
    assert isinstance(failure, Encoded) and failure.status == 200
    await until(lambda: server.connections[0].lost)


@pytest_twisted.ensureDeferred
async def test_identity_is_no_compression(listen: Listen, client: HttpClient) -> None:
    server = answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.ask(post(listen(server)), b"{}")).body == b"ok"


# -- dropped connections ---------------------------------------------------------------------------------------


def dropping(answers_before: int, connections: int) -> Server:
    """Closes without an answer after so many answers, on so many connections; later ones it answers always."""

    def script(connection: Any, head: bytes | None) -> None:
        if head is None:
            connection.left = answers_before
        elif connection.number >= connections or connection.left > 0:
            connection.left -= 1
            connection.transport.write(OK)
        else:
            connection.transport.loseConnection()

    return Server(script)


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_was_dropped_is_asked_again(listen: Listen, client: HttpClient) -> None:
    server = dropping(1, 1)
    call = post(listen(server))
    await client.ask(call, b"1")
    assert (await client.ask(call, b"2")).body == b"ok"
    assert [(number, body) for number, _, body in server.requests] == [(0, b"1"), (0, b"2"), (1, b"2")]


@pytest_twisted.ensureDeferred
async def test_after_a_restart_of_the_server_each_question_needs_one_retry_at_most(
    listen: Listen, client: HttpClient
) -> None:
    """Several kept connections, all dropped when they are used: the retry takes a new one, not the next old one."""
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
async def test_no_retry_where_it_is_not_wanted(listen: Listen, client: HttpClient) -> None:
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
async def test_bytes_that_nobody_asked_for_end_a_kept_connection(listen: Listen, client: HttpClient) -> None:
    server = answering(OK)
    call = post(listen(server))
    await client.ask(call, b"{}")
    server.connections[0].transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await until(lambda: server.connections[0].lost)
    assert (await client.ask(call, b"{}")).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_treqs_own_client_fits_as_well(listen: Listen) -> None:
    pool = HTTPConnectionPool(reactor)
    client = HttpClient(reactor, HTTPClient(Agent(reactor, pool=pool)))
    assert (await client.ask(post(listen(answering(OK))), b"{}")).body == b"ok"
    assert isinstance(
        await failure_of(client.ask(post(listen(answering(BIG["by length"]))), b"{}")), TooLarge
    )
    stuck = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    assert isinstance(await failure_of(client.ask(post(listen(stuck), limit=0.2), b"{}")), TimedOut)
    await pool.closeCachedConnections()


# -- TLS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ca() -> Identity:
    return Identity.self_signed("Test CA")


class TlsServer:
    """Serves "ok" on one port and remembers handshakes and client names."""

    def __init__(self, identity: Identity, client_ca: Identity | None = None) -> None:
        self.options = identity.options(client_ca)
        self.clients: list[str] = []
        self.connections: set[object] = set()
        outer = self

        class Root(Resource):
            isLeaf = True

            def render(self, request: Any) -> bytes:
                outer.connections.add(request.transport)
                peer = request.transport.getPeerCertificate()
                outer.clients.append(peer.to_cryptography().subject.rfc4514_string() if peer else "")
                return b"ok"

        self.site = Site(Root())
        self.site.noisy = False

    def listen(self, ports: list[IListeningPort]) -> int:
        port = reactor.listenSSL(0, self.site, self.options, interface="127.0.0.1")
        ports.append(port)
        return int(port.getHost().port)


ENVIRON = {"SERVER_URL": "https://platform.example", "RELAY_LISTEN_HOST": "127.0.0.1"}


@pytest.fixture
def files(tmp_path: Path, ca: Identity) -> dict[str, str]:
    """PEM files, by name."""
    robot, stranger = ca.issue("relay-1"), Identity.self_signed("Other CA").issue("stranger")
    contents = {
        "ca": ca.cert_pem,
        "other_ca": Identity.self_signed("Other CA").cert_pem,
        "both_cas": Identity.self_signed("Other CA").cert_pem + ca.cert_pem,
        "cert": robot.cert_pem,
        "key": robot.key_pem(),
        "locked_key": robot.key_pem(b"pass phrase"),
        "stranger_cert": stranger.cert_pem,
        "stranger_key": stranger.key_pem(),
        "nonsense": b"nothing here\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in contents}


async def ask_over_tls(url: str, environ: dict[str, str], times: int = 1) -> Answer:
    config = load({**ENVIRON, **environ})
    client = HttpClient.from_config(reactor, config)
    try:
        for _ in range(times):
            answer = await client.ask(Call.make("GET", url, {}, limit=3, max_bytes=10))
        return answer
    finally:
        client.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_a_private_ca(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], host: str
) -> None:
    server = TlsServer(ca.issue("platform", "localhost", "127.0.0.1"))
    port = server.listen(ports)
    for name in ("ca", "both_cas"):
        answer = await ask_over_tls(f"https://{host}:{port}/", {"RELAY_SERVER_CA_CERT_PATH": files[name]}, 5)
        assert answer.body == b"ok"
    assert len(server.connections) == 2 and len(server.clients) == 10  # one handshake for many questions


TLS_FAILURES = {
    "the system's CAs do not know it": ({}, ("localhost",), "signed by a CA that is not trusted here"),
    "another CA": (
        {"RELAY_SERVER_CA_CERT_PATH": "other_ca"}, ("localhost",), "signed by a CA that is not trusted here",
    ),
    "another host name": ({"RELAY_SERVER_CA_CERT_PATH": "ca"}, ("other.example",), "for another name"),
    "an address only": ({"RELAY_SERVER_CA_CERT_PATH": "ca"}, ("127.0.0.1",), "for another name"),
    "no name at all": ({"RELAY_SERVER_CA_CERT_PATH": "ca"}, (), "names no host"),
}  # fmt: skip


@pytest.mark.parametrize("name", TLS_FAILURES)
@pytest_twisted.ensureDeferred
async def test_certificates_that_do_not_fit(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], name: str
) -> None:
    environ, names, why = TLS_FAILURES[name]
    server = TlsServer(ca.issue("platform", *names))
    url = f"https://localhost:{server.listen(ports)}/"
    failure = await failure_of(ask_over_tls(url, {key: files[value] for key, value in environ.items()}))
    assert isinstance(failure, Unreachable) and failure.why.startswith("TLS: ") and why in failure.why
    assert server.clients == []  # no request was ever sent


@pytest_twisted.ensureDeferred
async def test_an_address_that_the_certificate_does_not_have(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str]
) -> None:
    server = TlsServer(ca.issue("platform", "localhost", "127.0.0.2"))
    url = f"https://127.0.0.1:{server.listen(ports)}/"
    failure = await failure_of(ask_over_tls(url, {"RELAY_SERVER_CA_CERT_PATH": files["ca"]}))
    assert (
        isinstance(failure, Unreachable)
        and failure.why == "TLS: the certificate is for another name than 127.0.0.1"
    )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_verification_turned_off(ports: list[IListeningPort], ca: Identity, host: str) -> None:
    server = TlsServer(ca.issue("platform", "other.example"))
    url = f"https://{host}:{server.listen(ports)}/"
    assert (await ask_over_tls(url, {"RELAY_SERVER_TLS_VERIFY": "0"})).body == b"ok"


@pytest.mark.parametrize("locked", [False, True])
@pytest_twisted.ensureDeferred
async def test_mtls(ports: list[IListeningPort], ca: Identity, files: dict[str, str], locked: bool) -> None:
    server = TlsServer(ca.issue("platform", "localhost"), ca)
    environ = {
        "RELAY_SERVER_CA_CERT_PATH": files["ca"], "RELAY_SERVER_MTLS": "1",
        "RELAY_SERVER_CLIENT_CERT_PATH": files["cert"],
        "RELAY_SERVER_CLIENT_KEY_PATH": files["locked_key" if locked else "key"],
    }  # fmt: skip
    if locked:
        environ["RELAY_SERVER_CLIENT_KEY_PASSPHRASE"] = "pass phrase"
    answer = await ask_over_tls(f"https://localhost:{server.listen(ports)}/", environ)
    assert answer.body == b"ok" and server.clients == ["CN=relay-1"]


@pytest.mark.parametrize("who", ["nobody", "stranger"])
@pytest_twisted.ensureDeferred
async def test_mtls_with_nothing_or_another_certificate(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str], who: str
) -> None:
    server = TlsServer(ca.issue("platform", "localhost"), ca)
    environ = {"RELAY_SERVER_CA_CERT_PATH": files["ca"]}
    if who == "stranger":
        environ |= {
            "RELAY_SERVER_MTLS": "1", "RELAY_SERVER_CLIENT_CERT_PATH": files["stranger_cert"],
            "RELAY_SERVER_CLIENT_KEY_PATH": files["stranger_key"],
        }  # fmt: skip
    failure = await failure_of(ask_over_tls(f"https://localhost:{server.listen(ports)}/", environ))
    assert isinstance(failure, Unreachable) and server.clients == []


MTLS = {
    "RELAY_SERVER_MTLS": "1",
    "RELAY_SERVER_CLIENT_CERT_PATH": "cert",
    "RELAY_SERVER_CLIENT_KEY_PATH": "key",
}


@pytest.mark.parametrize(
    "change,named",
    [
        ({"RELAY_SERVER_CA_CERT_PATH": "nonsense"}, "RELAY_SERVER_CA_CERT_PATH"),
        ({"RELAY_SERVER_CA_CERT_PATH": "key"}, "RELAY_SERVER_CA_CERT_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_CERT_PATH": "nonsense"}, "RELAY_SERVER_CLIENT_CERT_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PATH": "nonsense"}, "RELAY_SERVER_CLIENT_KEY_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PATH": "stranger_key"}, "RELAY_SERVER_CLIENT_KEY_PATH"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PATH": "locked_key"}, "RELAY_SERVER_CLIENT_KEY_PASSPHRASE"),
        ({**MTLS, "RELAY_SERVER_CLIENT_KEY_PASSPHRASE": "=hush"}, "RELAY_SERVER_CLIENT_KEY_PASSPHRASE"),
        (
            {
                **MTLS,
                "RELAY_SERVER_CLIENT_KEY_PATH": "locked_key",
                "RELAY_SERVER_CLIENT_KEY_PASSPHRASE": "=hush",
            },
            "RELAY_SERVER_CLIENT_KEY_PATH",
        ),
    ],
)
def test_files_that_cannot_be_used_are_configuration_errors(
    files: dict[str, str], change: dict[str, str], named: str
) -> None:
    environ = {
        name: value[1:] if value[0] == "=" else files.get(value, value) for name, value in change.items()
    }
    config = load({**ENVIRON, **environ})
    with pytest.raises(ConfigError) as wrong:
        ClientTls.for_platform(config)
    assert named in str(wrong.value) and "hush" not in str(wrong.value)


@pytest_twisted.ensureDeferred
async def test_a_dripping_tls_server_is_cut_off(
    ports: list[IListeningPort], ca: Identity, files: dict[str, str]
) -> None:
    ended: list[object] = []

    class Drip(Resource):
        isLeaf = True

        def render(self, request: Any) -> int:
            request.notifyFinish().addBoth(ended.append)
            request.setHeader("content-length", "100000")

            def more() -> None:
                if not ended:
                    request.write(b" ")
                    reactor.callLater(0.05, more)

            more()
            return NOT_DONE_YET

    server = TlsServer(ca.issue("platform", "localhost"))
    server.site.resource = Drip()
    url = f"https://localhost:{server.listen(ports)}/"
    client = HttpClient.from_config(reactor, load({**ENVIRON, "RELAY_SERVER_CA_CERT_PATH": files["ca"]}))
    call = Call.make("GET", url, {}, limit=0.5, max_bytes=200_000)
    assert isinstance(await failure_of(client.ask(call)), TimedOut)
    await until(lambda: bool(ended))


# -- URLs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url,origin,host_header,target",
    [
        ("http://a.example", ("http", "a.example", 80), b"a.example", b"/"),
        ("HTTP://A.Example:80/", ("http", "a.example", 80), b"a.example", b"/"),
        ("https://a.example:/x", ("https", "a.example", 443), b"a.example", b"/x"),
        ("https://a.example:8443/x//y/../z?a=b?c#frag", ("https", "a.example", 8443), b"a.example:8443", b"/x//y/../z?a=b?c"),
        ("http://a.example?x=1", ("http", "a.example", 80), b"a.example", b"/?x=1"),
        ("http://[::1]:99/p%2Fq", ("http", "::1", 99), b"[::1]:99", b"/p%2Fq"),
        ("http://bücher.example/ä", ("http", "xn--bcher-kva.example", 80), b"xn--bcher-kva.example", b"/%C3%A4"),
    ],
)  # fmt: skip
def test_urls(url: str, origin: tuple[str, str, int], host_header: bytes, target: bytes) -> None:
    place = place_of(url)
    assert (place.origin, place.host_header, place.target) == (origin, host_header, target)


@pytest.mark.parametrize(
    "url",
    [
        "", "a.example", "/x", "ftp://a.example/", "http://", "http:///x", "http://user:pass@a.example/",
        "http://a.example:0/", "http://a.example:65536/", "http://a.example:x/", "http://a b/", "http://a.example/a b",
        "http://a.example/\r\nX: y", "http://a.example\r\n", "http://[::1/", "http://a.example\\@evil.example/",
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError):
        Call.make("GET", url, {}, limit=1, max_bytes=1)
