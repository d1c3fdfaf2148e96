"""Free ports for servers of tests, outside the kernel's range of outgoing connections."""

from __future__ import annotations

import random
import socket
from collections import deque

#: Below the range of outgoing connections (32768 and up by default), of which floods use thousands.
PORTS = range(20_000, 32_000)

_random = random.SystemRandom()  # independent of the seed of property tests

#: Claims of the ports that this process took last: abstract Unix sockets, which end with it.
_claims: deque[socket.socket] = deque()
_MOST_CLAIMS = 100


def _claim(port: int) -> bool:
    """Keep other test processes from taking the port before its server listens. False: one of them has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0port-of-a-test-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    if len(_claims) > _MOST_CLAIMS:
        _claims.popleft().close()
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A free TCP port of this address."""
    while True:
        port = _random.choice(PORTS)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        if _claim(port):
            return port
