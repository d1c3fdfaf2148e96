"""The descriptors of this process: the standard streams, the limit on open files, and the share of it that peers may use.

Every peer uses a descriptor. Without free descriptors the platform cannot be asked, so some are reserved.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Final

#: Reserved descriptors: listeners, requests to the platform, Redis, DNS, the log.
KEPT_BACK: Final = 64

#: Descriptors for plain HTTP, of those for peers: a full relay still answers /health, and 503 to upgrades.
HTTP_KEPT: Final = 16

#: Greatest limit that is set. One process uses no more, and a limit of a billion makes other programs slow.
_MOST: Final = 1_048_576


def open_standard_streams() -> None:
    """Open the null device in place of each standard stream that is closed, so that no socket gets its number.

    What a stream's encoding lacks, as ISO 8859-1 lacks the doctor's ✓, is written as a code.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


#: What a write to a standard stream says when the stream cannot take it: disk or quota full, or no terminal any more.
_UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EAGAIN, errno.EPIPE}
)


@contextmanager
def standard_output() -> Iterator[None]:
    """A block that prints on standard output. A closed pipe (`… | head`) ends the output, not the command.

    Where the output cannot be written, on a full disk for example, the command ends with one line on standard error and
    status 1.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        # Later output goes to the null device: Python would report the same error again at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if error.errno != errno.EPIPE:
            print(f"viewport-relay: cannot write to standard output: {error.strerror}", file=sys.stderr)
            raise SystemExit(1) from None


def raise_limit(wanted: int) -> int:
    """Raise the soft limit on open files to `wanted`, at most to the hard limit; returns the limit in force."""
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
    """Open files for `max_connections` (0: unlimited) and as many connections before their upgrade."""
    return 65_536 if max_connections <= 0 else 2 * max_connections + KEPT_BACK


def for_connections(limit: int) -> int:
    """Number of upgraded connections for a limit of `limit` descriptors, at least 16."""
    return max(16, limit - KEPT_BACK - HTTP_KEPT)


def for_http(limit: int, connections: int) -> int:
    """Number of HTTP connections that may exist beside `connections` upgraded ones."""
    return max(HTTP_KEPT, limit - KEPT_BACK - connections)
