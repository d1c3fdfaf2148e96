"""A service manager's end of sd_notify(3): a datagram socket in `folder`, read by a thread."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from tests.drill.relay import until


class Manager:
    """NOTIFY_SOCKET is `path`; `heard` has each message with its time of arrival (monotonic, seconds)."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.heard: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while text := self.sock.recv(4096).decode():
            self.heard.append((time.monotonic(), text))

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)  # ends the thread
        self._thread.join(10)
        self.sock.close()

    def times(self, word: str) -> list[float]:
        return [at for at, text in self.heard if word in text.splitlines()]

    def wait(self, word: str, seconds: float = 30) -> float:
        found: float = until(lambda: (self.times(word) or [0])[0], seconds, word)
        return found
