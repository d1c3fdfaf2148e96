"""A relay as a twistd process, and a development platform in the test's process.

    platform, relay = await start_pair(reactor, {"RELAY_ADMIN_TOKEN": …})

The output of the relay is kept.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.ports import free_port

ROOT = Path(__file__).parents[2]


@frozen
class Reply:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


class RelayProcess:
    """A relay process, started by the constructor; `wait` until it responds. All methods block: call them in a thread."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.port = free_port()
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RELAY_") and name not in {"SERVER_URL", "HOST", "PORT", "MAX_LOGS"}
        }
        environ |= {"PYTHONPATH": str(ROOT), "RELAY_LISTEN_PORT": str(self.port), "RELAY_DRAIN_SECONDS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=",
             "viewport-relay"],
            env=environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for piece in iter(lambda: self.process.stdout.read1(65_536), b""):  # type: ignore[union-attr]
            self._output += piece

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def output(self) -> str:
        """Standard output and standard error so far."""
        return bytes(self._output).decode("utf-8", "replace")

    def wait(self, path: str = "/ready", seconds: float = 60.0) -> RelayProcess:
        """Wait until a GET of this path is answered 200. Two workers take 2 s of CPU to start: 20 s on a busy machine."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output()
            try:
                if self.ask("GET", path).status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready in {seconds} s: {self.output()[-3000:]}")

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        request = urllib.request.Request(self.base + path, body, headers or {}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def stop(self) -> int:
        """Send SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(10)
        self._reader.join(5)
        return status
