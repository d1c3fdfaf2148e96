"""The development platform's listener: stop and restart, TLS with client certificates, broken HTTP, the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread

from tests.drill.certificates import Files, Identity
from tests.integration.devplatform.calling import Caller, in_reactor
from viewport_relay.devplatform import DevPlatform, Rule
from viewport_relay.devplatform.resources import tls_options

JWKS = "/api/.well-known/jwks.json"
clock: Any = reactor


def talk(port: int, sent: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes on a new socket and read until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as peer:
        with suppress(ConnectionResetError, BrokenPipeError):
            peer.sendall(sent)
        received = b""
        with suppress(ConnectionResetError):
            while piece := peer.recv(65_536):
                received += piece
        return received


@in_reactor
async def test_down_cuts_connections_and_up_takes_the_same_port(platform: DevPlatform, call: Caller) -> None:
    port = platform.port
    kept = socket.create_connection(("127.0.0.1", port), timeout=10)
    kept.sendall(f"GET {JWKS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await deferToThread(kept.recv, 100)).startswith(b"HTTP/1.1 200")
    await platform.down()
    with suppress(ConnectionResetError):
        while await deferToThread(kept.recv, 65_536):
            pass
    kept.close()
    with pytest.raises(ConnectionRefusedError):
        await deferToThread(talk, port, b"")
    await platform.down()
    platform.up()
    assert platform.port == port
    assert (await call("GET", JWKS)).status == 200


@in_reactor
async def test_a_delayed_answer_is_cut_by_going_down(platform: DevPlatform, call: Caller) -> None:
    platform.rules[JWKS] = Rule(delay=3600)
    waiting = Deferred.fromCoroutine(call("GET", JWKS))
    failed: list[Any] = []
    waiting.addErrback(failed.append)
    while platform.records.jwks.total == 0:
        await pause(0.01)
    await platform.down()
    await waiting
    assert failed
    assert not [timer for timer in clock.getDelayedCalls() if timer.getTime() - clock.seconds() > 600]


@in_reactor
async def test_a_taken_port_is_an_error(platform: DevPlatform) -> None:
    other = DevPlatform(clock, internal_key="k", signing_key=platform.keys.signing)
    with pytest.raises(CannotListenError):
        other.listen(clock, platform.port)
    with pytest.raises(IndexError):
        other.port  # noqa: B018
    with pytest.raises(ValueError, match="internal key"):
        DevPlatform(clock, internal_key="", signing_key=platform.keys.signing)


@in_reactor
async def test_only_loopback_listens(platform: DevPlatform) -> None:
    assert (await deferToThread(talk, platform.port, b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", platform.port), timeout=10)
    environment = platform.relay_environment()
    assert environment["SERVER_URL"] == f"http://127.0.0.1:{platform.port}"
    assert environment["RELAY_VALIDATE_URL"].endswith("/api/runtime/internal/relay/validate")


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"\x00\xff\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nbroken\r\n\r\n", b"HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 403"),
        (b"GET /api/.well-known/jwks.json HTTP/1.0\r\n\r\n", b"HTTP/1.0 200"),
        (
            b"POST /api/runtime/relay-token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 3\r\n\r\n--x",
            b"HTTP/1.1 400",
        ),
        (
            b"POST /api/runtime/relay-token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 400",
        ),
    ],
)
@in_reactor
async def test_broken_http_gets_an_answer(
    platform: DevPlatform, call: Caller, sent: bytes, wanted: bytes
) -> None:
    received = await deferToThread(talk, platform.port, sent)
    assert received[: len(wanted)] == wanted
    assert b"Traceback" not in received
    assert (await call("GET", JWKS)).status == 200


@in_reactor
async def test_an_endless_body_is_cut_off(platform: DevPlatform, call: Caller) -> None:
    head = b"POST /api/runtime/relay-token HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    # The body is endless: a server that reads all of it fails this test by time-out.
    assert await deferToThread(talk, platform.port, head + chunk * 9) == b""
    told = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2097152\r\n\r\n"
    received = await deferToThread(talk, platform.port, told + b"x" * 2_097_152)
    assert received.startswith(b"HTTP/1.1 413")
    assert b"BODY_TOO_LARGE" in received
    assert (await call("GET", JWKS)).status == 200


async def pause(seconds: float) -> None:
    waited: Deferred[None] = Deferred()
    clock.callLater(seconds, waited.callback, None)
    await waited


def fetch_over_tls(url: str, trusted: Identity, own: Files | None = None) -> int:
    context = trusted.context()
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    handler = urllib.request.HTTPSHandler(context=context)
    with urllib.request.build_opener(urllib.request.ProxyHandler({}), handler).open(
        url, timeout=10
    ) as response:
        status: int = response.status
        return status


@in_reactor
async def test_tls_and_required_client_certificates(platform: DevPlatform, tmp_path: Path) -> None:
    server, client, stranger = (
        Identity.self_signed(name, "127.0.0.1") for name in ("server", "client", "stranger")
    )
    files = {
        "client": client.write(tmp_path, "client"),
        "stranger": stranger.write(tmp_path, "stranger"),
    }
    platform.listen(clock, tls=tls_options(server.cert_pem, server.key_pem()))
    assert platform.url.startswith("https://127.0.0.1:")
    assert await deferToThread(fetch_over_tls, platform.url + JWKS, server) == 200
    platform.listen(clock, tls=tls_options(server.cert_pem, server.key_pem(), client_ca=client.cert_pem))
    assert await deferToThread(fetch_over_tls, platform.url + JWKS, server, files["client"]) == 200
    for own in (None, files["stranger"]):
        with pytest.raises(OSError):
            await deferToThread(fetch_over_tls, platform.url + JWKS, server, own)
    await platform.down()
    platform.up()
    assert await deferToThread(fetch_over_tls, platform.url + JWKS, server, files["client"]) == 200


def program(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    hidden = ("RELAY_INTERNAL_KEY", "DEV_CREDENTIAL", "DEV_PAIRING_SECRET")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, "-m", "viewport_relay.devplatform", *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_listening(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if lines[-1]["event"] == "listening":
            return lines
    raise AssertionError(process.communicate()[1])


def test_the_program_says_where_it_listens_and_keeps_given_secrets() -> None:
    given = {name: f"given-{name}" for name in ("RELAY_INTERNAL_KEY", "DEV_CREDENTIAL", "DEV_PAIRING_SECRET")}
    with program("--port", "0", **given) as process:
        lines = until_listening(process)
        assert [line["event"] for line in lines] == ["listening"]
        assert lines[0]["url"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(lines[0]["jwksUrl"], timeout=10) as response:
            assert json.load(response)["keys"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
        assert (out, err) == ("", "")


def test_the_program_makes_and_prints_missing_secrets_once() -> None:
    with program() as process:
        lines = until_listening(process)
        made = {line["variable"]: line["value"] for line in lines if line["event"] == "generated"}
        assert set(made) == {"RELAY_INTERNAL_KEY", "DEV_CREDENTIAL", "DEV_PAIRING_SECRET"}
        asked = urllib.request.Request(
            lines[-1]["url"] + "/api/runtime/internal/relay/bus/pull",
            data=b'{"relayId":"r"}',
            headers={"x-relay-internal-key": made["RELAY_INTERNAL_KEY"]},
        )
        with urllib.request.urlopen(asked, timeout=10) as response:
            assert json.load(response) == {"ok": True, "frames": []}
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)


def test_the_program_names_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with program("--port", str(taken.getsockname()[1])) as process:
            _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert json.loads(err)["event"] == "error"
    with program("--port", "65536") as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 2
        assert "65536 is not in the range 0<=x<=65535" in err
