"""The relay process of the demonstration: `twistd -n viewport-relay --dev` as a child process.

It is started with its own port, admin token and development credential. Its state is read from its log lines and from
/health only.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

#: Time limits for start and stop of the relay, seconds.
START_SECONDS = 20.0
STOP_SECONDS = 10.0

#: The log event with the dev platform's address in `details.url`.
PLATFORM_EVENT = "dev_platform"
#: The log event with the relay's port in `details.port`.
RELAY_EVENT = "relay_started"

HOST = "127.0.0.1"

_PR_SET_PDEATHSIG = 1

# A process group of its own, or Ctrl-C at the terminal would reach it as well, and the signal that `stop` sends
# would be its second one, which cuts the drain short.
TWISTD = (
    "import os; os.setpgrp()\n"
    "from viewport_relay.cli.ownrelay import end_with_parent; end_with_parent({parent})\n"
    "from twisted.scripts.twistd import run; run()"
)


class RelayDidNotStart(Exception):
    """The relay ended, or was not ready in time; the text has its last log lines."""


@frozen
class Place:
    """URLs, tokens and credentials of the relay and its platform."""

    port: int
    platform_url: str
    credential: str = field(repr=False)
    admin_token: str = field(repr=False)

    @property
    def ws_url(self) -> str:
        return f"ws://{HOST}:{self.port}"

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self.port}"


def is_free(port: int) -> bool:
    """Whether a TCP port of 127.0.0.1 is free."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def end_with_parent(parent: int) -> None:
    """Let the kernel send this child process SIGTERM when its parent `parent` ends, also when that is killed or crashes.

    The setting (prctl(2), PR_SET_PDEATHSIG) survives exec. If the parent has ended already, the signal is sent at once. On
    other systems than Linux only the parent's own shutdown ends the child.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


class OwnRelay(ProcessProtocol):
    """The relay process. `on_line` gets each line of its standard output after the start."""

    def __init__(self, reactor: Any) -> None:
        self.on_line: Callable[[str], None] = lambda line: None
        self._reactor = reactor
        self._rest = {1: b"", 2: b""}
        self._last: list[str] = []
        self._found: dict[str, Any] = {}
        self._ready: Deferred[None] = Deferred()
        self.ended: Deferred[int] = Deferred()
        self.stopping = False

    async def start(self, environ: Mapping[str, str], wanted_port: int = 0) -> Place:
        """Start and wait until it listens, on `wanted_port` if that is free. Raises RelayDidNotStart."""
        credential, admin_token = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        own = {
            "RELAY_LISTEN_HOST": HOST,
            "RELAY_LISTEN_PORT": str(wanted_port if is_free(wanted_port) else 0),
            "RELAY_ADMIN_TOKEN": admin_token,
            "RELAY_INTERNAL_KEY": secrets.token_urlsafe(24),
            "DEV_CREDENTIAL": credential,
        }
        # RELAY_* variables of this process are for another relay: they are not passed on.
        kept = {name: value for name, value in environ.items() if not _is_setting(name)}
        program = TWISTD.format(parent=os.getpid())
        arguments = [sys.executable, "-c", program, "-n", "--pidfile=", "viewport-relay", "--dev"]
        self._reactor.spawnProcess(self, sys.executable, arguments, env={**kept, **own})
        try:
            await self._ready.addTimeout(START_SECONDS, self._reactor, self._too_late)
        except RelayDidNotStart:
            self.kill()
            raise
        return Place(self._found["port"], self._found["url"], credential, admin_token)

    async def stop(self) -> int:
        """Stop the relay (SIGTERM) and wait; returns the exit status, negative for a signal."""
        self.stopping = True
        self._signal("TERM")
        late = self._reactor.callLater(STOP_SECONDS, self.kill)
        status = await self.ended
        if late.active():
            late.cancel()
        return status

    def kill(self) -> None:
        """Kill the relay (SIGKILL)."""
        self._signal("KILL")

    # -- ProcessProtocol -----------------------------------------------------------------------------------

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Split an output into lines. A relay writes to standard error only when it cannot start."""
        *lines, rest = (self._rest[childFD] + data).split(b"\n")
        self._rest[childFD] = rest[-65_536:]
        for line in (line.decode("utf-8", "replace") for line in lines):
            self._last = [*self._last[-4:], line[:500]]
            if childFD == 1:
                self._look_at(line)
                self.on_line(line)

    def processEnded(self, reason: Failure) -> None:
        """Note the exit status and end all waits."""
        value: Any = reason.value
        status = -(value.signal or 0) if value.exitCode is None else value.exitCode
        if not self._ready.called:
            self._ready.errback(RelayDidNotStart(self._last_words(f"the relay ended with status {status}")))
        self.ended.callback(status)

    # -- inside --------------------------------------------------------------------------------------------

    def _look_at(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        event = entry.get("event") if isinstance(entry, dict) else None
        if event == PLATFORM_EVENT:
            self._found["url"] = entry["details"]["url"]
        elif event == RELAY_EVENT:
            self._found["port"] = entry["details"]["port"]
        if {"url", "port"} <= set(self._found) and not self._ready.called:
            self._ready.callback(None)

    def _signal(self, name: str) -> None:
        transport: Any = self.transport
        with suppress(ProcessExitedAlready):  # `processEnded` follows, if it was not called yet
            transport.signalProcess(name)

    def _too_late(self, result: object, seconds: float) -> Any:
        raise RelayDidNotStart(self._last_words(f"the relay was not ready within {seconds:.0f} s"))

    def _last_words(self, what: str) -> str:
        return "\n".join([what, *self._last])


def _is_setting(name: str) -> bool:
    return name.startswith(("RELAY_", "DEV_")) or name in {"SERVER_URL", "HOST", "PORT", "MAX_LOGS"}
