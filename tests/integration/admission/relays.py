"""A relay as operators run it: a twistd process with settings in its environment; output and exit status are kept."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.drill.relay import until
from tests.integration.admission.peers import Upgrade, dial, upgrade
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
ADMIN_TOKEN = "an-operator-knows-this-one"
_RUN = [sys.executable, "-B", "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon"]


def environment(settings: dict[str, str]) -> dict[str, str]:
    """This process' environment without relay settings, plus `settings`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RELAY_") and name not in {"SERVER_URL", "HOST", "PORT", "MAX_LOGS"}
    }
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


def run(
    settings: dict[str, str], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a relay that is expected to end by itself."""
    return subprocess.run(
        [*_RUN, "viewport-relay", *arguments],
        env=environment(settings), cwd=cwd, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


class Relay:
    """A relay process, started by the constructor. `listening` waits for any response, `ready` for readiness."""

    def __init__(
        self,
        settings: dict[str, str],
        *arguments: str,
        host: str = "127.0.0.1",
        tls: bool = False,
        preamble: bytes = b"",
        nofile: int = 0,
    ) -> None:
        self.host = host
        self.tls = tls
        self.preamble = preamble  # sent first on each connection of these methods
        self.port = free_port(host)
        defaults = {
            "RELAY_LISTEN_HOST": host,
            "RELAY_LISTEN_PORT": str(self.port),
            "RELAY_ADMIN_TOKEN": ADMIN_TOKEN,
            "RELAY_DRAIN_SECONDS": "1",
        }
        self.process = subprocess.Popen(
            [*_RUN, "viewport-relay", *arguments],
            env=environment({**defaults, **settings}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))) if nofile else None,
        )  # fmt: skip
        self.kept: list[Upgrade] = []  # connections that a test keeps open until the relay ends
        self.written: list[str] = []  # lines of standard output
        self.complained: list[str] = []  # lines of standard error
        self._readers = [
            threading.Thread(target=kept.extend, args=(stream,), daemon=True)
            for stream, kept in ((self.process.stdout, self.written), (self.process.stderr, self.complained))
        ]
        for reader in self._readers:
            reader.start()

    # -- start and stop ------------------------------------------------------------------------------------------

    def listening(self) -> Relay:
        return self._answering("/health")

    def ready(self) -> Relay:
        return self._answering("/ready")

    def _answering(self, path: str) -> Relay:
        def look() -> bool:
            assert self.process.poll() is None, "".join(self.written + self.complained)
            try:
                return self.get(path)[0] == 200
            except OSError:
                return False

        until(look, what=f"{path} answers: {self.written}", seconds=30)
        return self

    def stop(self) -> int:
        """Send SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        try:
            status = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(15)
        for reader in self._readers:
            reader.join(5)
        return status

    # -- the operator's view ---------------------------------------------------------------------------------------

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError without a response."""
        connection = dial(self.port, host=self.host, tls=self.tls, preamble=self.preamble)
        with connection:
            lines = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\r\n"
            connection.sendall(lines.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        first, _, body = answer.partition(b"\r\n\r\n")
        if not first.startswith(b"HTTP/1.1 "):
            raise OSError(f"no HTTP: {first[:100]!r}")
        return int(first[9:12]), body

    def logs(self) -> list[dict[str, Any]]:
        """Entries of `/logs`."""
        status, body = self.get("/logs")
        assert status == 200, body
        entries: list[dict[str, Any]] = json.loads(body)["logs"]
        return entries

    def lines(self) -> list[dict[str, Any]]:
        """Entries on standard output; each line must be JSON."""
        return [json.loads(line) for line in list(self.written)]

    def entry(self, **wanted: Any) -> dict[str, Any]:
        """The only entry with these members or details; it must be in `/logs` and on standard output."""

        def matching(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [e for e in entries if all({**e["details"], **e}.get(k) == v for k, v in wanted.items())]

        def look() -> dict[str, Any] | None:
            kept, written = matching(self.logs()), matching(self.lines())
            return kept[0] if len(kept) == 1 and kept == written else None

        return until(
            look, what=f"one entry with {wanted} in the log and on standard output: {self.written[-5:]}"
        )

    def metrics(self) -> dict[str, float]:
        """Samples of `/metrics` by name with labels."""
        status, body = self.get("/metrics")
        assert status == 200, body
        samples = re.findall(r"(?m)^([a-z_]+(?:\{[^}]*\})?) (\S+)$", body.decode())
        return {name: float(value) for name, value in samples}

    # -- peers -----------------------------------------------------------------------------------------------------

    def upgrade(
        self, role: str, workspace: str, token: str | None, target: str | None = "t", **rest: Any
    ) -> Upgrade:
        return upgrade(self.port, role, workspace, token, target, host=self.host, tls=self.tls, **rest)
