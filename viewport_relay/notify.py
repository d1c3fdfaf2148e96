"""Notifications to the service manager: ready, reloading, stopping, watchdog (sd_notify(3), systemd.service(5)).

One datagram for each message, to the socket in NOTIFY_SOCKET. Without that variable every method is a no-op, and no method
raises. Watchdog messages come from the reactor: a blocked reactor sends none, and systemd restarts the relay
(`WatchdogSec=`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

#: Longest status line, characters; it is for `systemctl status`.
_STATUS_CHARS: Final = 256


class Notifier:
    """Sends notifications to the service manager of this process, if there is one."""

    def __init__(self, environ: Mapping[str, str], pid: int | None = None) -> None:
        """`environ` is read once: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID. `pid` is that of this process."""
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        self._watchdog: LoopingCall | None = None
        #: the watchdog's interval, seconds; None: no watchdog
        self.watchdog_seconds = self._seconds(environ, os.getpid() if pid is None else pid)

    @staticmethod
    def _seconds(environ: Mapping[str, str], pid: int) -> float | None:
        limit, meant = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if not (limit.isascii() and limit.isdigit()) or not 0 < int(limit) < 2**63:
            return None
        return int(limit) / 1_000_000 if meant in ("", str(pid)) else None

    # -- state ---------------------------------------------------------------------------------------------

    def ready(self, status: str = "") -> bool:
        """Tell that the relay listens, or has reloaded."""
        return self._send("READY=1", *self._status(status))

    def reloading(self) -> bool:
        """Tell that settings are being reloaded; `ready` follows."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "", within: float = 0.0) -> bool:
        """Tell that the relay drains, and ask for `within` seconds (EXTEND_TIMEOUT_USEC=)."""
        more = (f"EXTEND_TIMEOUT_USEC={int(within * 1_000_000)}",) if within > 0 else ()
        return self._send("STOPPING=1", *more, *self._status(status))

    def start_watchdog(self, clock: IReactorTime, status: Callable[[], str]) -> None:
        """Send a watchdog message at half of the watchdog's interval, each with a new status line."""
        if self._address is None or self.watchdog_seconds is None or self._watchdog is not None:
            return
        self._watchdog = LoopingCall(lambda: self._send("WATCHDOG=1", *self._status(status())))
        self._watchdog.clock = clock
        self._watchdog.start(self.watchdog_seconds / 2)

    def stop_watchdog(self) -> None:
        """Stop the watchdog messages, after the drain."""
        if self._watchdog is not None and self._watchdog.running:
            self._watchdog.stop()
        self._watchdog = None

    # -- the socket ------------------------------------------------------------------------------------------

    @staticmethod
    def _status(text: str) -> tuple[str, ...]:
        return (f"STATUS={' '.join(text.split())[:_STATUS_CHARS]}",) if text else ()

    def _send(self, *assignments: str) -> bool:
        """Send without blocking; False when the message was lost (socket full or gone)."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.connect(self._address)
                sock.send("\n".join(assignments).encode())
        except OSError:
            return False
        return True
