"""`viewport-relay healthcheck` as images, units and orchestrators run it: on the relay's host, with the relay's
settings."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.drill.certificates import Identity
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ROOT, Relay, until
from viewport_relay.cli.healthcheck import Listener, Unhealthy, listener
from viewport_relay.config import load

BASE = {"SERVER_URL": "https://platform.example"}

#: Environments of hosts with an HTTP proxy that cannot reach this machine.
PROXIED = {
    "http_proxy": "http://proxy.invalid:3128",
    "HTTP_PROXY": "http://proxy.invalid:3128",
    "ALL_PROXY": "socks5h://proxy.invalid:1080",
    "https_proxy": "http://proxy.invalid:3128",
}


def check(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "viewport_relay.cli.main", "healthcheck", *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate for a public name, not for 127.0.0.1."""
    files = (
        Identity.self_signed("test CA")
        .issue("relay", "relay.example")
        .write(tmp_path_factory.mktemp("tls"), "relay")
    )
    return {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}


#: (place, settings of the relay, additional environment of the check)
ROADS: list[tuple[str, dict[str, str], dict[str, str]]] = [
    ("docker run", {"RELAY_LISTEN_HOST": "0.0.0.0", "RELAY_MODE": "dev"}, {}),
    ("a company host with http_proxy and ALL_PROXY", {}, PROXIED),
    ("all interfaces, IPv6", {"RELAY_LISTEN_HOST": "::", "RELAY_MODE": "dev"}, {}),
    ("another loopback address", {"RELAY_LISTEN_HOST": "127.0.0.9"}, {}),
    ("behind a load balancer that speaks PROXY protocol", {"RELAY_PROXY_PROTOCOL": "1"}, {}),
    ("behind a balancer that alone is trusted", {"RELAY_PROXY_PROTOCOL": "1", "RELAY_TRUSTED_PROXIES": "10.0.0.5"}, {}),
    ("the same on a Unix socket", {
        "RELAY_PROXY_PROTOCOL": "1", "RELAY_TRUSTED_PROXIES": "10.0.0.5", "endpoint": "unix:{socket}",
    }, {}),
    ("TLS in the relay", {"tls": ""}, {}),
    ("TLS behind PROXY protocol, with a proxy in the environment", {"tls": "", "RELAY_PROXY_PROTOCOL": "1"}, PROXIED),
    ("an endpoint instead of host and port", {"endpoint": r"tcp:{port}:interface=127.0.0.1"}, {}),
    ("an endpoint with an IPv6 address", {"endpoint": r"tcp6:{port}:interface=\:\:1"}, {}),
    ("an endpoint that is a Unix socket, behind nginx", {"endpoint": "unix:{socket}"}, {}),
    ("the admin paths on a port of their own", {"RELAY_ADMIN_LISTEN": "127.0.0.1:0"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("where", "settings", "around"), ROADS, ids=[road[0] for road in ROADS])
def test_a_healthy_relay_on_each_kind_of_listener(
    where: str,
    settings: dict[str, str],
    around: dict[str, str],
    tls: dict[str, str],
    platform: FaultyPlatform,
    free_port: int,
) -> None:
    with TemporaryDirectory() as folder:  # a short path: the path of a Unix socket is limited to 107 bytes
        made = platform.environment() | {k: v for k, v in settings.items() if k.startswith("RELAY_")}
        made |= tls if "tls" in settings else {}
        if "endpoint" in settings:
            filled = settings["endpoint"].format(port=free_port, socket=f"{folder}/relay.sock")
            made |= {"RELAY_LISTEN_ENDPOINT": filled, "RELAY_MODE": "dev"}
        with Relay(made, port=free_port) as relay:
            environ = made | {"RELAY_LISTEN_PORT": str(free_port)} | around
            until(
                lambda: check(environ).returncode == 0 or relay.process.poll() is not None,
                30,
                "a healthy relay",
            )
            done = check(environ)
            assert (done.returncode, done.stderr) == (0, ""), relay.output()
            assert done.stdout.startswith("healthy: ")
            assert relay.stop() == 0
        gone = check(environ)
        assert gone.returncode == 1
        assert gone.stderr.startswith("unhealthy: ")


def test_port_variables_of_hosting_platforms(platform: FaultyPlatform, free_port: int) -> None:
    """Heroku and Cloud Run set PORT."""
    with Relay(platform.environment() | {"RELAY_LISTEN_PORT": "", "PORT": str(free_port)}, port=free_port):
        environ = platform.environment() | {"PORT": str(free_port)}
        until(lambda: check(environ).returncode == 0, 30, "a healthy relay")


@pytest.fixture
def other_server() -> Iterator[tuple[int, list[bytes]]]:
    """A server with one response for every connection: (port, [response])."""
    answer = [b""]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                with sock:
                    sock.recv(4096)
                    sock.sendall(answer[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], answer
        server.shutdown(socket.SHUT_RDWR)


def _http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


#: (place, response, words)
OTHER_SERVERS = [
    ("another program has the port", _http("200 OK", "<html>"), "what answers is no relay"),
    (
        "another service with /health",
        _http("200 OK", '{"ok":true,"service":"api"}'),
        "what answers is no relay",
    ),
    ("a proxy in front whose relay is gone", _http("502 Bad Gateway", "{}"), "/health answers 502"),
    ("a program that closes the connection", b"", "Remote end closed connection"),
    ("a program with another protocol", b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"),
]


@pytest.mark.parametrize(("where", "answer", "words"), OTHER_SERVERS, ids=[case[0] for case in OTHER_SERVERS])
def test_other_servers_are_unhealthy(
    where: str, answer: bytes, words: str, other_server: tuple[int, list[bytes]]
) -> None:
    port, answers = other_server
    answers[0] = answer
    done = check({**BASE, "RELAY_LISTEN_PORT": str(port)})
    assert done.returncode == 1
    assert words in done.stderr


def test_invalid_settings_are_unhealthy_and_named() -> None:
    done = check({"RELAY_LISTEN_PORT": "x"})
    assert done.returncode == 1
    assert "RELAY_LISTEN_PORT: got 'x'" in done.stderr


#: (place, settings, listener)
DESCRIBED = [
    ("the unit's socket", {"RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:index=0"}, Listener("127.0.0.1", 7781)),
    ("a port by name", {"RELAY_LISTEN_ENDPOINT": "tcp:port=7800"}, Listener("127.0.0.1", 7800)),
    ("TLS by endpoint", {"RELAY_LISTEN_ENDPOINT": "ssl:443:privateKey=k.pem:certKey=c.pem"}, Listener("127.0.0.1", 443, tls=True)),
    ("Twisted's own PROXY protocol wrapper", {"RELAY_LISTEN_ENDPOINT": "haproxy:tcp:7800"}, Listener("127.0.0.1", 7800, proxied=True)),
    ("a Unix socket by name", {"RELAY_LISTEN_ENDPOINT": "unix:address=/run/relay.sock:mode=660"},
     Listener("127.0.0.1", 7781, path="/run/relay.sock")),
    ("every IPv6 interface", {"RELAY_LISTEN_ENDPOINT": "tcp6:7800"}, Listener("::1", 7800)),
]  # fmt: skip


@pytest.mark.parametrize(("where", "settings", "wanted"), DESCRIBED, ids=[case[0] for case in DESCRIBED])
def test_the_listener_of_the_settings(where: str, settings: dict[str, str], wanted: Listener) -> None:
    assert listener(load({**BASE, "RELAY_MODE": "dev", **settings})) == wanted


def test_a_port_chosen_at_start_is_unknown() -> None:
    with pytest.raises(Unhealthy, match="--address"):
        listener(load({**BASE, "RELAY_LISTEN_PORT": "0"}))


def test_the_address_option(platform: FaultyPlatform, free_port: int) -> None:
    """A socket unit with its own address."""
    environ = platform.environment() | {
        "RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:index=0",
        "RELAY_MODE": "dev",
    }
    with Relay(platform.environment(), port=free_port) as relay:
        relay.wait()
        assert check(environ, "--address", f"127.0.0.1:{free_port}").returncode == 0
        assert check(environ, "--address", "nonsense").returncode == 1


def test_an_address_needs_no_settings(platform: FaultyPlatform, free_port: int) -> None:
    """A shell beside a systemd unit."""
    with Relay(platform.environment(), port=free_port) as relay:
        relay.wait()
        assert check({}, "--address", f"127.0.0.1:{free_port}").returncode == 0
    assert check({}).returncode == 1


def test_the_image_and_the_unit_use_it() -> None:
    assert 'CMD ["viewport-relay", "healthcheck"]' in Path(ROOT / "Dockerfile").read_text()
