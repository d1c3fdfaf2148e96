"""A relay process under conditions set by a test: limits, sockets, streams, a patched clock.

    relay = Relay(platform.environment(), nofile=128)
    relay.wait()
    …
    assert relay.stop() == 0 and relay.errors() == []

twistd starts the process, as in production. All methods block.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.drill.peer import dial
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
ADMIN = "drill-admin-token-0123456789abcdefABCDEF"
TWISTD = "from twisted.scripts.twistd import run; run()"

#: Settings without rates and without the cap of an address.
NO_RATES = dict.fromkeys(
    [
        "RELAY_RATE_LIMIT_PER_IP",
        "RELAY_MAX_CONNECTIONS_PER_IP",
        "RELAY_KEX_INIT_RATE_PER_MINUTE",
        "RELAY_PAIRING_RATE_PER_MINUTE",
        "RELAY_RUNTIME_RATE_PER_MINUTE",
        "RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE",
        "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE",
    ],
    "0",
)
#: Settings of a drill's relay: no limit that a drill does not test.
GENEROUS = NO_RATES | {
    "RELAY_LISTEN_HOST": "127.0.0.1",
    "RELAY_ADMIN_TOKEN": ADMIN,
    "RELAY_MAX_TOTAL_CONNECTIONS": "5000",
    "RELAY_DRAIN_SECONDS": "1",
}


class Relay:
    """The process, started at once. `before` is Python code that runs first (a patched clock)."""

    def __init__(
        self,
        settings: dict[str, str],
        *,
        port: int | None = None,
        before: str = "",
        listener: socket.socket | None = None,
        nofile: int = 0,
        memory: int = 0,
        stdout: str = "",
        tls: ssl.SSLContext | None = None,
        code: Path = ROOT,
    ) -> None:
        """`code` is the source tree that runs. `nofile` and `memory` are hard limits (open files; bytes of address space).
        `listener` is passed as by systemd. `stdout` is a path that receives the output.
        """
        self.port = listener.getsockname()[1] if listener else port or free_port()
        self.tls = tls
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RELAY_", "LISTEN_", "NOTIFY_", "WATCHDOG_"))
            and name not in {"SERVER_URL", "HOST", "PORT", "MAX_LOGS"}
        }
        environ |= {"PYTHONPATH": str(code), "RELAY_LISTEN_PORT": str(self.port)} | GENEROUS | settings
        program = (before + "\n" if before else "") + TWISTD
        command = [sys.executable, "-B", "-c", program, "--nodaemon", "--pidfile=", "viewport-relay"]
        keep: tuple[int, ...] = ()
        if listener is not None:
            # systemd sets LISTEN_PID after its fork; here a shell does.
            environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "viewport-relay.socket"}
            environ.setdefault("RELAY_LISTEN_ENDPOINT", "systemd:domain=INET:index=0")
            keep = (listener.fileno(),)
            moved = f"exec 3<&{listener.fileno()} {listener.fileno()}<&-; " if listener.fileno() != 3 else ""
            command = ["/bin/bash", "-c", moved + 'LISTEN_PID=$$ exec "$0" "$@"', *command]

        def limits() -> None:
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        with open(stdout, "wb") if stdout else os.fdopen(os.dup(self._log.fileno()), "wb") as out:
            self.process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=self._log, preexec_fn=limits,
                pass_fds=keep, start_new_session=True, cwd=code,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # -- log and admin endpoints -------------------------------------------------------------------------------

    def output(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def entries(self) -> list[dict[str, Any]]:
        """The log's entries so far; a line without a JSON object becomes an entry with event "not json".

        A last line that a running relay has not finished is left out.
        """
        found = []
        running = self.process.poll() is None
        *lines, last = self.output().split("\n")
        for line in lines if running or not last else [*lines, last]:
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"event": "not json", "level": "error", "message": line})
        return found

    def errors(self, *expected: str) -> list[dict[str, Any]]:
        """Log entries of level error, unhandled errors included, except the expected events or reasons."""
        return [
            entry
            for entry in self.entries()
            if entry.get("level") == "error" and not {entry["event"], entry.get("reason")} & set(expected)
        ]

    def logged(self, event: str, seconds: float = 10.0) -> dict[str, Any]:
        """Wait for the first log entry of this event."""
        return until(
            lambda: next((entry for entry in self.entries() if entry["event"] == event), None), seconds, event
        )

    def http(self, path: str, method: str = "GET", port: int | None = None) -> tuple[int, bytes]:
        """Status and body of an admin request; status 0 if the connection ended without a response."""
        with dial(port or self.port, self.tls if port is None else None) as sock:
            sock.sendall(
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Relay-Admin-Token: {ADMIN}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            data = b""
            while piece := sock.recv(65_536):
                data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        return (int(head.split()[1]) if head else 0), body

    def state(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.http("/state")[1])["workspaces"]
        return found

    def wait(self, path: str = "/ready", seconds: float = 40.0) -> Relay:
        def answers() -> bool:
            assert self.process.poll() is None, self.output()[-4000:]
            try:
                return self.http(path)[0] == 200
            except OSError:
                return False

        until(answers, seconds, path)
        return self

    # -- resources ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> list[int]:
        """Process ids of the workers (RELAY_WORKERS)."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def rss(self) -> int:
        """Resident memory, bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Number of open descriptors of the process and its workers."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.pid, *self.workers()))

    def accepted(self) -> int:
        """Number of connections to the relay's port whose descriptor the process or a worker holds."""
        held = set()
        for pid in (self.pid, *self.workers()):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    held.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        listening, count = "0A", 0
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == self.port and fields[3] != listening:
                count += f"socket:[{fields[9]}]" in held
        return count

    def cpu(self) -> float:
        """CPU time used, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # -- end ---------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, seconds: float = 30.0) -> int:
        """Send SIGTERM and return the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._log.close()


def until(check: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """Poll `check`; returns its first true result."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.03)


@contextmanager
def running(settings: dict[str, str], **options: Any) -> Iterator[Relay]:
    """A relay that is ready; at the end it must stop with status 0."""
    with Relay(settings, **options) as relay:
        relay.wait()
        yield relay
        assert relay.stop() == 0, relay.output()[-3000:]
