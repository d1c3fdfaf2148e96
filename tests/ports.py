"""Ports for servers that a test starts: free, and of those that the kernel gives to no connection meanwhile."""

from __future__ import annotations

import random
import socket

#: Below the ports of outgoing connections (32768 and up, unless that was changed), of which floods take thousands.
PORTS = range(20_000, 32_000)

_random = random.SystemRandom()  # not the one that property tests seed


def free_port(host: str = "127.0.0.1") -> int:
    """A free TCP port of this address."""
    while True:
        port = _random.choice(PORTS)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
