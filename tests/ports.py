"""Free ports for servers of tests, outside the kernel's range of outgoing connections."""

from __future__ import annotations

import random
import socket

#: Below the range of outgoing connections (32768 and up by default), of which floods use thousands.
PORTS = range(20_000, 32_000)

_random = random.SystemRandom()  # independent of the seed of property tests


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
