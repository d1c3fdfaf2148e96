"""`stopService` of a whole relay, in each state that its parts can be in: when its Deferred fires, the reactor has nothing of it left."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
import pytest_twisted
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

from tests.drill.certificates import Identity
from tests.logentries import entries_of
from tests.ports import free_port
from viewport_relay.config import load
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.process import Process
from viewport_relay.service.relay import Relay

reactor: Any = _reactor

KEY: Final = ec.generate_private_key(ec.SECP256R1())
CLAIMS: Final = {"workspaceId": "w", "runtimeTargetId": "t", "scope": "runtime", "clientId": "c"}


class Server:
    """A server in a thread of its own, so that nothing of it is the reactor's: a platform, or a silent one."""

    def __init__(self) -> None:
        self.answers: set[bytes] = set()  # what is answered: b"GET" the key set, b"POST" the validation
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))
        bodies = {b"GET": {"keys": [{**jwk, "kid": "v1"}]}, b"POST": {"ok": True, "claims": CLAIMS}}
        while data := _received(peer):
            method = data.partition(b" ")[0]
            if method in self.answers:
                body = json.dumps(bodies[method]).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                peer.sendall(head.encode() + body)

    def close(self) -> None:
        self._socket.close()
        for peer in self.connections:
            peer.close()


def _received(peer: socket.socket) -> bytes:
    try:
        return peer.recv(65536)
    except OSError:
        return b""


class Stop:
    """A relay in this process, and the other ends of what is connected to it."""

    def __init__(self, platform: Server, **environ: str) -> None:
        self.platform = platform
        base = f"http://127.0.0.1:{platform.port}"
        settings = {
            "RELAY_LISTEN_HOST": "127.0.0.1",
            "RELAY_LISTEN_PORT": str(free_port()),
            "RELAY_JWKS_URL": f"{base}/jwks",
            "RELAY_VALIDATE_URL": f"{base}/validate",
            "RELAY_INTERNAL_KEY": "k" * 32,
            "RELAY_DRAIN_SECONDS": "1",
            **environ,
        }
        self.port = int(settings["RELAY_LISTEN_PORT"])
        self.log = EventLog(io.StringIO(), max_entries=100)
        self.process = Process(reactor, load(settings), self.log, Relay)
        self.process.startService()
        self._peers: list[socket.socket] = []

    def connect(self, data: bytes = b"") -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self.port), 5)
        self._peers.append(peer)
        peer.sendall(data)
        return peer

    def upgrade(self) -> socket.socket:
        now = int(time.time())
        payload = {
            "iss": "viewport-server",
            "aud": "viewport-relay",
            "exp": now + 60,
            "jti": os.urandom(8).hex(),
        }
        token = jwt.encode(payload, KEY, "ES256", {"kid": "v1"})
        return self.connect(
            b"GET /ws?role=client&workspaceId=w&runtimeTargetId=t HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\nAuthorization: Bearer %b\r\n\r\n"
            % (base64.b64encode(os.urandom(16)), token.encode())
        )

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(500):
            if condition():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError(f"not in time; logged: {entries_of(self.log)}")

    def logged(self, event: str) -> bool:
        return any(entry["event"] == event for entry in entries_of(self.log))

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


async def _idle(stop: Stop) -> None:
    await stop.until(lambda: stop.logged("jwks_fetched"))


async def _waits_for_the_keys(stop: Stop) -> None:
    await stop.until(lambda: stop.platform.connections)


async def _backs_off(stop: Stop) -> None:
    await stop.until(lambda: stop.logged("jwks_fetch_failed"))


async def _connected(stop: Stop) -> None:
    await _idle(stop)
    stop.connect()
    await deferLater(reactor, 0.05)


async def _half_a_request(stop: Stop) -> None:
    await _idle(stop)
    stop.connect(b"GET /health HTTP/1.1\r\nHo")
    await deferLater(reactor, 0.05)


async def _kept_after_an_answer(stop: Stop) -> None:
    await _idle(stop)
    peer = stop.connect(b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n")
    peer.setblocking(False)
    await deferLater(reactor, 0.1)
    assert b"200" in peer.recv(4096)


async def _waits_for_the_platform(stop: Stop) -> None:
    await _idle(stop)
    stop.upgrade()
    await deferLater(reactor, 0.1)


async def _open_and_silent(stop: Stop) -> None:
    await _idle(stop)
    stop.platform.answers.add(b"POST")
    stop.upgrade()
    await stop.until(lambda: stop.logged("join"))


async def _platform_connection_is_kept(stop: Stop) -> None:
    await _open_and_silent(stop)
    stop.close()
    await stop.until(lambda: stop.logged("leave"))


async def _backplane_is_down(stop: Stop) -> None:
    await stop.until(lambda: stop.logged("backplane_unreachable"))


async def _backplane_is_silent(stop: Stop) -> None:
    await _idle(stop)
    await deferLater(reactor, 0.1)


KEYS: Final = frozenset({b"GET"})
REDIS: Final = {
    "RELAY_BACKPLANE_MODE": "redis",
    "RELAY_BUS_HMAC_KEY": "h" * 32,
    "RELAY_PUBLIC_WS_BASE_URL": "ws://relay:7781",
}

STATES: Final[dict[str, tuple[Any, frozenset[bytes], dict[str, str]]]] = {
    "idle": (_idle, KEYS, {}),
    "the keys are waited for": (_waits_for_the_keys, frozenset(), {}),
    "the next fetch of keys is waited for": (_backs_off, frozenset(), {"RELAY_JWKS_URL": "http://127.0.0.1:1/jwks"}),
    "a connection without a request": (_connected, KEYS, {}),
    "a TLS handshake that does not go on": (_connected, KEYS, {"RELAY_TLS": "1"}),
    "half of a request": (_half_a_request, KEYS, {}),
    "a connection that is kept after an answer": (_kept_after_an_answer, KEYS, {}),
    "an upgrade that waits for the platform": (_waits_for_the_platform, KEYS, {}),
    "a peer that does not answer the close": (_open_and_silent, KEYS, {}),
    "a kept connection to the platform": (_platform_connection_is_kept, KEYS, {}),
    "Redis refuses connections": (_backplane_is_down, KEYS, {**REDIS, "RELAY_REDIS_URL": "redis://127.0.0.1:1"}),
    "Redis does not answer": (_backplane_is_silent, KEYS, REDIS),
    "the platform's bus does not answer": (_open_and_silent, KEYS, {**REDIS, "RELAY_BACKPLANE_MODE": "server"}),
}  # fmt: skip


@pytest.fixture
def platform() -> Iterator[Server]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    server = Server()
    yield server
    server.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _busy() -> set[object]:
    """What the reactor serves: descriptors, and the owners of delayed calls.

    Owners, because a periodic call of an earlier test's server is another `DelayedCall` each time.
    """
    functions = [call.func for call in reactor.getDelayedCalls()]
    owners = [getattr(function, "__self__", function) for function in functions]
    return {*reactor.getReaders(), *reactor.getWriters(), *owners}


@pytest.mark.parametrize("state", STATES)
@pytest_twisted.ensureDeferred
async def test_nothing_is_left_after_a_stop(state: str, platform: Server, tmp_path: Path) -> None:
    enter, answers, environ = STATES[state]
    platform.answers |= answers
    if state == "Redis does not answer":
        environ = {**environ, "RELAY_REDIS_URL": f"redis://127.0.0.1:{platform.port}"}
    if "RELAY_TLS" in environ:
        files = Identity.self_signed("localhost").write(tmp_path, "relay")
        environ = {**environ, "RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    await deferLater(reactor, 0)  # the test's own time limit is set
    before = _busy()
    stop = Stop(platform, **environ)
    await enter(stop)
    began = reactor.seconds()
    first, second = stop.process.stopService(), stop.process.stopService()
    await first
    await second
    left = _busy() - before
    assert not left, f"left: {[str(thing) for thing in left]}"
    assert reactor.seconds() - began < 3
    stop.close()
