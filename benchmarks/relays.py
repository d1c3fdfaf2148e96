"""The measured relays, the platform, and start and end of their processes.

All relays get the same environment. Rate limits are very high, not off, so that the relays count as in production.
Nothing is measured here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from attrs import frozen

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
NODE_RELAY = HERE / "peers" / "node-relay"
#: Seconds that a process has to listen, and to end.
PATIENCE = 20.0
#: Ports that are tried for a process.
MOST_PORTS = 3

_FAR = "1000000000"
LIMITS: Mapping[str, str] = {
    "RELAY_RATE_LIMIT_PER_IP": _FAR,
    "RELAY_MAX_TOTAL_CONNECTIONS": _FAR,
    "RELAY_MAX_CONNECTIONS_PER_IP": _FAR,
    "RELAY_MAX_CLIENTS_PER_WORKSPACE": _FAR,
    "RELAY_KEX_INIT_RATE_PER_MINUTE": _FAR,
    "RELAY_PAIRING_RATE_PER_MINUTE": _FAR,
    "RELAY_RUNTIME_RATE_PER_MINUTE": _FAR,
    "RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE": _FAR,
    "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE": _FAR,
    # Above 16 frames of 900 KB to one client; otherwise this limit would be measured.
    "RELAY_MAX_PENDING_BYTES": "268435456",
    "RELAY_SESSION_OWNER_TRACK_MAX": "8192",
    "RELAY_PAIRING_REQUEST_TRACK_MAX": "8192",
}


@frozen
class Kind:
    """A relay to measure. `admits`: it checks tokens, so that its upgrades can be measured."""

    name: str
    about: str
    command: tuple[str, ...]  # the port is RELAY_LISTEN_PORT, and replaces PORT here
    environment: Mapping[str, str]
    admits: bool = True
    tls: bool = True  # supports TLS by RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH
    links: bool = False  # supports the Noise link


_OURS = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "viewport-relay")
_NODE = ("node", str(NODE_RELAY / "relay.mjs"))

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("relay", "this relay", _OURS, {"RELAY_FAST_PATH": "1"}, links=True),
        Kind("relay-plain", "this relay with RELAY_FAST_PATH=0", _OURS, {"RELAY_FAST_PATH": "0"}, links=True),
        Kind("relay-workers", "this relay with RELAY_WORKERS=2", _OURS, {"RELAY_WORKERS": "2"}, links=True),
        Kind(
            "node",
            "minimal relay on Node and ws",
            _NODE,
            {"WS_NO_BUFFER_UTIL": "1", "NODE_ENV": "production"},
        ),
        Kind("node-native", "the same with the native bufferutil", _NODE, {"NODE_ENV": "production"}),
        Kind(
            "floor",
            "C, unmasks and sends on, checks nothing",
            (str(BUILD / "reframe"), "PORT"),
            {},
            admits=False,
            tls=False,
        ),
        Kind(
            "autobahn",
            "onMessage, json.loads, sendMessage",
            (sys.executable, str(HERE / "peers" / "autobahn_relay.py"), "PORT"),
            {},
            admits=False,
            tls=False,
        ),
    )
}


def checkout(name: str, folder: str) -> Kind:
    """This relay with the code in `folder` and the dependencies of this environment."""
    environment = {"PYTHONPATH": str(Path(folder).resolve())}
    return Kind(name, "this relay, another checkout", _OURS, environment, links=True)


#: The relay that all others are compared with.
BASE = "node"


@frozen
class Running:
    """A listening relay."""

    kind: Kind
    process: subprocess.Popen[bytes]
    port: int  # port for the load generator; over TLS that of the HAProxy in front

    @property
    def pid(self) -> int:
        return self.process.pid


@frozen
class Platform:
    """The fake platform and its signing key."""

    port: int
    internal_key: str
    tokens: Path
    fresh: Path

    def environment(self) -> dict[str, str]:
        """Settings of a relay that uses this platform."""
        return {
            "RELAY_JWKS_URL": f"http://127.0.0.1:{self.port}/jwks.json",
            "RELAY_VALIDATE_URL": f"http://127.0.0.1:{self.port}/relay/validate",
            "RELAY_INTERNAL_KEY": self.internal_key,
            "RELAY_ADMIN_TOKEN": self.internal_key,
        }


class NotListening(SystemExit):
    """A process was started and does not listen: its port may have been taken meanwhile."""


T = TypeVar("T")


def on_free_port(start: Callable[[int], T]) -> T:
    """What `start` returns for a free port. Another port is tried when the process does not come to listen on it."""
    for _ in range(MOST_PORTS - 1):
        try:
            return start(free_port())
        except NotListening as failed:
            print(f"{failed}; another port is tried", file=sys.stderr)
    return start(free_port())


def free_port() -> int:
    """A free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def build() -> None:
    """Compile the C programs, and install the Node relay's packages, where missing or out of date."""
    BUILD.mkdir(exist_ok=True)
    for source in (HERE / "loadgen.c", HERE / "platform.c", HERE / "peers" / "reframe.c"):
        program = BUILD / source.stem
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            flags = ("-std=gnu11", "-O3", "-march=native", "-Wall", "-Wextra")
            subprocess.run((os.environ.get("CC", "cc"), *flags, "-o", str(program), str(source)), check=True)
    installed, lock = NODE_RELAY / "node_modules" / ".package-lock.json", NODE_RELAY / "package-lock.json"
    fresh = installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime
    if shutil.which("npm") and not fresh:
        subprocess.run(("npm", "ci", "--silent", "--no-progress"), cwd=NODE_RELAY, check=True)


def _start(
    command: tuple[str, ...], environment: Mapping[str, str], port: int, cores: set[int] | None
) -> subprocess.Popen[bytes]:
    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, cores)

    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(BUILD / "stderr.log").open("ab"),
        preexec_fn=pin,
    )
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                _end(process)
                raise NotListening(f"{command[0]} does not listen; see {BUILD / 'stderr.log'}") from None
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_platform(folder: Path, cores: set[int] | None = None) -> Iterator[Platform]:
    """The platform, with the files that `mint.mint` has written to `folder`."""
    key = secrets.token_urlsafe(24)

    def start(port: int) -> tuple[subprocess.Popen[bytes], int]:
        command = (str(BUILD / "platform"), str(port), str(folder / "jwks.json"), key)
        return _start(command, {}, port, cores), port

    process, port = on_free_port(start)
    try:
        yield Platform(port, key, folder / "tokens.tsv", folder / "fresh.tsv")
    finally:
        _end(process)


@contextmanager
def running(
    kind: Kind,
    platform: Platform,
    more: Mapping[str, str] | None = None,
    cores: set[int] | None = None,
    *,
    tls: str = "",
    other_cores: set[int] | None = None,
) -> Iterator[Running]:
    """A relay of this kind on a free port, for the duration of the block. `more` extends its environment.

    With `tls` ("resumed" or "full", see `cells.Cell`) the relay ends TLS, and an HAProxy on `other_cores` is the TLS
    client: the load generator sends plain TCP to the HAProxy.
    """
    environment = {
        "RELAY_LISTEN_HOST": "127.0.0.1",
        "RELAY_MODE": "staging",
        **LIMITS,
        **platform.environment(),
        **kind.environment,
        **(more or {}),
        **(tls_settings() if tls else {}),
    }

    def start(port: int) -> tuple[subprocess.Popen[bytes], int]:
        command = tuple(str(port) if word == "PORT" else word for word in kind.command)
        return _start(command, environment | {"RELAY_LISTEN_PORT": str(port)}, port, cores), port

    process, port = on_free_port(start)
    try:
        if not tls:
            yield Running(kind, process, port)
            return
        with _tls_client(port, resumes=tls == "resumed", cores=other_cores) as front:
            yield Running(kind, process, front)
    finally:
        _end(process)


def tls_settings() -> dict[str, str]:
    """A self-signed ECDSA certificate for the relays, made once."""
    cert, key = BUILD / "tls.crt", BUILD / "tls.key"
    if not cert.exists():
        made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        where = ("-keyout", str(key), "-out", str(cert), "-days", "30", "-subj", "/CN=localhost")
        subprocess.run((*made, *where), check=True, capture_output=True)
    return {"RELAY_TLS": "1", "RELAY_TLS_CERT_PATH": str(cert), "RELAY_TLS_KEY_PATH": str(key)}


@contextmanager
def _tls_client(relay: int, *, resumes: bool, cores: set[int] | None) -> Iterator[int]:
    """An HAProxy that forwards plain TCP of a port to the relay over TLS; yields the port."""
    port = free_port()
    reuse = "" if resumes else " no-ssl-reuse"
    configuration = BUILD / f"haproxy-{port}.cfg"
    configuration.write_text(
        "global\n    nbthread 1\n    maxconn 4000\n"
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
        f"listen tls\n    bind 127.0.0.1:{port}\n"
        f"    server relay 127.0.0.1:{relay} ssl verify none alpn http/1.1{reuse}\n"
    )
    process = _start(("haproxy", "-db", "-f", str(configuration)), {}, port, cores)
    try:
        yield port
    finally:
        _end(process)
        configuration.unlink()
