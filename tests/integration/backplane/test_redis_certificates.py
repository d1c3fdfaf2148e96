"""A TLS Redis with an unacceptable certificate: refused before a command is sent, with the reason in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as real_reactor

from tests.drill.certificates import Identity
from tests.drill.redisserver import RedisServer
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisserver import redis_of
from viewport_relay.config import load

reactor: Any = real_reactor
Start = Callable[[Identity], RedisServer]

CA = Identity.self_signed("Redis CA")
STRANGE_CA = Identity.self_signed("Strange CA")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[RedisServer] = []

    def begin(identity: Identity) -> RedisServer:
        files = identity.write(tmp_path, "redis")
        (tmp_path / "ca.crt").write_bytes(CA.cert_pem)
        tls = ["--tls-cert-file", files.cert, "--tls-key-file", files.key, "--tls-auth-clients", "no"]
        server = RedisServer(tmp_path, *tls, "--port", "0").start(port="--tls-port")
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.kill()


async def ping(server: RedisServer, folder: Path) -> Any:
    config = load(
        {
            "SERVER_URL": "http://127.0.0.1:1",
            "RELAY_BACKPLANE_MODE": "redis",
            "RELAY_INTERNAL_KEY": "an-internal-key-of-the-test",
            "RELAY_REDIS_URL": f"rediss://localhost:{server.port}",
            "RELAY_REDIS_CA_CERT_PATH": str(folder / "ca.crt"),
        }
    )
    redis, [answer] = await redis_of(reactor, config, 3.0).connect((("PING",),), 3.0)
    redis.abort()
    if isinstance(answer, CarrierFailed):
        raise answer
    return answer


@pytest_twisted.ensureDeferred
async def test_an_accepted_certificate(start: Start, tmp_path: Path) -> None:
    server = start(CA.issue("redis", "localhost"))
    assert await ping(server, tmp_path) in ("PONG", b"PONG")


REFUSED = {
    "no subjectAltName": (CA.issue("localhost"), "the certificate names no host"),
    "another name": (
        CA.issue("redis", "other.example"),
        "the certificate is for another name than localhost",
    ),
    "an address only": (CA.issue("redis", "127.0.0.1"), "the certificate is for another name than localhost"),
    "expired": (CA.issue("redis", "localhost", days=-2), "the certificate has expired on 20"),
    "another CA": (STRANGE_CA.issue("redis", "localhost"), "signed by a CA that is not trusted here"),
    "self-signed": (
        Identity.self_signed("Self", "localhost"),
        "the certificate is self-signed, and not trusted here",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest_twisted.ensureDeferred
async def test_a_refused_certificate(start: Start, tmp_path: Path, name: str) -> None:
    identity, words = REFUSED[name]
    server = start(identity)
    with pytest.raises(CarrierFailed) as failed:
        await ping(server, tmp_path)
    where = f"cannot connect to Redis localhost:{server.port}: TLS: the certificate "
    assert failed.value.why.startswith(where)
    assert words in failed.value.why
