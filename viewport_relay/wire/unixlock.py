"""The lock beside a Unix socket: Twisted's symbolic link `PATH.lock`, which names the process that listens on PATH.

Twisted removes the lock and the socket of a process that was killed, but not when another process has its number by now. In a
container, where each relay has the same number, a relay that was killed would keep the next one from listening.
"""

from __future__ import annotations

import os
import socket
import stat


def drop_stale(path: str) -> None:
    """Remove the lock and the socket at `path` if no process listens there. Other files stay, and a socket without a lock."""
    try:
        if os.path.islink(path + ".lock") and stat.S_ISSOCK(os.lstat(path).st_mode) and _refuses(path):
            os.unlink(path + ".lock")
            os.unlink(path)
    except OSError:
        pass  # the listener says what is wrong with the path


def _refuses(path: str) -> bool:
    """Whether a socket refuses connections. One with a full backlog does not, it lets them wait."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return True
    return False
