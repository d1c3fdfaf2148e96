"""The start of a worker process, with its two channels as descriptors."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from viewport_relay.workers.messages import PACKETS_FD, REPORTS_FD
from viewport_relay.workers.reports import ReportReader, connect


class _WorkerProcess(ProcessProtocol):
    def __init__(self, ended: Callable[[int | None, int | None], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:
        self._ended(getattr(reason.value, "exitCode", None), getattr(reason.value, "signal", None))


def spawn(
    reactor: Any,
    index: int,
    environment: Mapping[str, str],
    packets: socket.socket,
    reports: ReportReader,
    ended: Callable[[int | None, int | None], None],
    devnull: int,
) -> Any:
    """Start worker number `index`; returns its process transport.

    `packets` is the worker's end of the packet channel, which the caller closes. `reports` reads what the worker reports.
    `ended` takes the exit status or the number of the signal. `devnull`: a descriptor of the null device. Raises OSError.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = connect(reactor, ours, reports)
        try:
            return reactor.spawnProcess(
                _WorkerProcess(ended),
                sys.executable,
                [sys.executable, "-m", "viewport_relay.workers.worker", str(index)],
                env=environment,
                childFDs={0: devnull, 1: 2, 2: 2, PACKETS_FD: packets.fileno(), REPORTS_FD: theirs.fileno()},
            )
        except OSError:
            channel.abortConnection()
            raise
