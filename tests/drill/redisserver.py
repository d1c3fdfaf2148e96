"""A redis-server process for one test: start, kill, stop, continue, command."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.ports import free_port

#: Seconds until the server listens.
WAIT = 10.0


class RedisServer:
    """A redis-server without persistence. The port stays the same over `kill` and `start`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.folder = folder
        self.arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *, port: str = "--port", config: str | None = None) -> RedisServer:
        program = shutil.which("redis-server")
        assert program is not None
        self._process = subprocess.Popen(
            [program, *([config] if config else []), port, str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder),
             *self.arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server does not listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process: commands get no answer, connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str | bytes | int) -> Any:
        """Send one command and return the reply; blocks."""
        parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            with sock.makefile("rb") as stream:
                return _reply(stream)


def start_sentinel(folder: Path, primary: RedisServer, quorum: int) -> RedisServer:
    """A Sentinel that watches `primary` under the name "main" and takes it for failed after half a second of silence."""
    sentinel = RedisServer(folder, "--sentinel")
    configuration = folder / f"sentinel-{sentinel.port}.conf"
    configuration.write_text(
        f"sentinel monitor main 127.0.0.1 {primary.port} {quorum}\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
    )
    return sentinel.start(config=str(configuration))


def _reply(stream: Any) -> Any:
    line = stream.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [_reply(stream) for _ in range(int(rest))]
    if kind == b":":
        return int(rest)
    if kind == b"-":
        raise AssertionError(rest.decode())
    return rest.decode()
