"""Open files: how many this process may have, and how many of them peers may use.

Every peer is a descriptor. When there are none left, not even the platform can be asked any more, so some are kept
back: peers get what is left.
"""

from __future__ import annotations

import resource
from typing import Final

#: Descriptors that peers never get: listeners, requests to the platform, Redis, name look-ups, the log.
KEPT_BACK: Final = 64

#: Of those for peers, HTTP always gets so many: a full relay still answers /health, and says to others that it is full.
HTTP_KEPT: Final = 16

#: More than this is of no use to one process, and a hard limit of a billion makes other programs slow.
_MOST: Final = 1_048_576


def raise_limit(wanted: int) -> int:
    """Raise the soft limit on open files to `wanted` if the hard one allows it; gives what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most if soft == resource.RLIM_INFINITY else min(soft, _MOST)
    target = min(wanted, most)
    if target <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError):
        return soft
    return target


def wanted(max_connections: int) -> int:
    """Open files for that many connections (0: no limit on them) and as many that are not upgraded yet."""
    return 65_536 if max_connections <= 0 else 2 * max_connections + KEPT_BACK


def for_connections(limit: int) -> int:
    """How many of `limit` descriptors upgraded connections may use, at least 16."""
    return max(16, limit - KEPT_BACK - HTTP_KEPT)


def for_http(limit: int, connections: int) -> int:
    """How many HTTP connections may be there beside so many upgraded ones."""
    return max(HTTP_KEPT, limit - KEPT_BACK - connections)
