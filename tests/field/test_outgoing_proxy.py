"""Requests to the platform through an HTTP proxy: networks whose only way out is squid or the like."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as real_reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.drill.certificates import Identity
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Call, TimedOut, Unreachable
from viewport_relay.config import load

reactor: Any = real_reactor
CA = Identity.self_signed("platform CA")


class _Pipe(Protocol):
    """The proxy's connection to the platform."""

    def __init__(self, peer: Protocol) -> None:
        self._peer = peer

    def dataReceived(self, data: bytes) -> None:
        self._peer.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        self._peer.transport.loseConnection()


class Proxied(Protocol):
    """One connection to the proxy."""

    factory: CompanyProxy

    def connectionMade(self) -> None:
        self._head = b""
        self._pipe: Any = None
        self.factory.connections.append(self)
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        if self._pipe is not None:
            self._pipe.transport.write(data)
            return
        self._head += data
        if self._head.endswith(b"\r\n\r\n"):
            self.factory.asked.append(self._head)
            answer = self.factory.answer(self._head)
            if answer.startswith(b"HTTP/1.1 200"):
                connecting = TCP4ClientEndpoint(reactor, "127.0.0.1", self.factory.platform).connect(
                    Factory.forProtocol(lambda: _Pipe(self))
                )
                connecting.addCallback(self._piped, answer)
            else:
                self.transport.write(answer)
                if answer:
                    self.transport.loseConnection()

    def _piped(self, pipe: Any, answer: bytes) -> None:
        self._pipe = pipe
        self.transport.write(answer)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        if self._pipe is not None:
            self._pipe.transport.loseConnection()


class CompanyProxy(Factory):
    """HTTP proxy that opens tunnels to the platform's port for any host name, because the proxy resolves names."""

    protocol = Proxied
    noisy = False

    def __init__(self, platform: int) -> None:
        self.platform = platform
        self.asked: list[bytes] = []
        self.connections: list[Proxied] = []
        self.answer: Callable[[bytes], bytes] = lambda head: (
            b"HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\n"
        )


class Ok(Resource):
    isLeaf = True

    def render(self, request: Any) -> bytes:
        return b"ok"


@pytest.fixture
def proxy(ports: list[IListeningPort]) -> CompanyProxy:
    site = Site(Ok())
    site.noisy = False
    options = CA.issue("platform", "platform.example").options()
    ports.append(reactor.listenSSL(0, site, options, interface="127.0.0.1"))
    return CompanyProxy(ports[0].getHost().port)  # type: ignore[attr-defined]


@pytest.fixture
def ask(ports: list[IListeningPort], proxy: CompanyProxy, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "ca.pem").write_bytes(CA.cert_pem)
    ports.append(reactor.listenTCP(0, proxy, interface="127.0.0.1"))
    where = f"127.0.0.1:{ports[-1].getHost().port}"  # type: ignore[attr-defined]

    async def asked(
        url: str = "https://platform.example/x", times: int = 1, user: str = "", limit: float = 3.0
    ) -> Any:
        environ = {
            "SERVER_URL": "https://platform.example",
            "RELAY_LISTEN_HOST": "127.0.0.1",
            "RELAY_SERVER_CA_CERT_PATH": str(tmp_path / "ca.pem"),
            "HTTPS_PROXY": f"http://{user}{where}",
        }
        client = HttpClient.from_config(reactor, load(environ))
        call = Call.make("GET", url, {}, limit=limit, max_bytes=100)
        try:
            answers = [await client.ask(call) for _ in range(times)]
        except Unreachable as failure:
            return failure
        finally:
            client.close()
        return answers[-1].body

    return asked


@pytest_twisted.ensureDeferred
async def test_a_tunnel_is_opened_once_and_kept(proxy: CompanyProxy, ask: Any) -> None:
    assert await ask(times=5) == b"ok"
    [head] = proxy.asked
    assert head.startswith(b"CONNECT platform.example:443 HTTP/1.1\r\nHost: platform.example:443\r\n")
    assert b"authorization" not in head.lower()


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_requires_authentication(proxy: CompanyProxy, ask: Any) -> None:
    right = b"Proxy-Authorization: Basic " + base64.b64encode(b"relay:of the company")
    proxy.answer = lambda head: (
        b"HTTP/1.1 200 OK\r\n\r\n"
        if right in head
        else b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n"
    )
    assert await ask(user="relay:of%20the%20company@") == b"ok"
    for user in ("", "relay:wrong@"):
        failure = await ask(user=user)
        assert (
            failure.why.startswith("proxy 127.0.0.1:")
            and "another user and password are needed (HTTP 407)" in failure.why
        )
        assert "wrong" not in failure.why


REFUSALS = {
    "forbidden": (b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", "CONNECT is refused with HTTP 403"),
    "HTTP/1.0": (b"HTTP/1.0 502 Bad Gateway\r\nX: y\r\n\r\n", "CONNECT is refused with HTTP 502"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
    "TLS wanted": (b"\x15\x03\x01\x00\x02\x02\x46\r\n", "the answer is not HTTP"),
    "endless line": (b"HTTP/1.1 200 " + b"x" * 70_000, "the answer is too long"),
    "endless head": (b"HTTP/1.1 403 No\r\n" + b"X: y\r\n" * 200, "the answer is too long"),
    "nothing": (b"\r\n", "the answer is not HTTP"),
    "closes": (b"HTTP/1.1 403", "the connection was closed"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest_twisted.ensureDeferred
async def test_a_proxy_that_refuses_connect(proxy: CompanyProxy, ask: Any, name: str) -> None:
    answer, words = REFUSALS[name]
    proxy.answer = lambda head: answer
    failure = await ask()
    assert failure.why.startswith("proxy 127.0.0.1:") and failure.why.endswith(words)


@pytest_twisted.ensureDeferred
async def test_a_silent_proxy_is_a_time_out(proxy: CompanyProxy, ask: Any) -> None:
    proxy.answer = lambda head: b""
    failure = await ask(limit=0.3)
    assert isinstance(failure, TimedOut)
    for _ in range(100):
        if proxy.connections[0].lost:
            break
        await deferLater(reactor, 0.02)
    assert proxy.connections[0].lost


@pytest_twisted.ensureDeferred
async def test_the_certificate_is_checked_through_the_tunnel(proxy: CompanyProxy, ask: Any) -> None:
    failure = await ask("https://other.example/")
    assert failure.why == "TLS: the certificate is for another name than other.example"
    assert len(proxy.asked) == 1


@pytest_twisted.ensureDeferred
async def test_an_unreachable_proxy(ask: Any, ports: list[IListeningPort]) -> None:
    await ports.pop().stopListening()  # type: ignore[misc]
    failure = await ask()
    assert failure.why.startswith("proxy 127.0.0.1:") and failure.why.endswith(": connection refused")
