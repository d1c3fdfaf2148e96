"""`stopService` of a parent process: when its Deferred fires, the workers have exited and the reactor has nothing of the relay left."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.process import reapAllProcesses
from twisted.internet.task import LoopingCall, deferLater

from tests.logentries import entries_of
from tests.ports import free_port
from viewport_relay.config import load
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.process import Process
from viewport_relay.workers.parent import Workers

reactor: Any = _reactor


class Parent:
    """The service of a parent with two workers, in this process. The platform does not answer."""

    def __init__(self) -> None:
        settings = {
            "RELAY_LISTEN_HOST": "127.0.0.1",
            "RELAY_LISTEN_PORT": str(free_port()),
            "RELAY_JWKS_URL": "http://127.0.0.1:1/jwks",
            "RELAY_VALIDATE_URL": "http://127.0.0.1:1/validate",
            "RELAY_INTERNAL_KEY": "k" * 32,
            "RELAY_DRAIN_SECONDS": "1",
            "RELAY_WORKERS": "2",
        }
        self.log = EventLog(io.StringIO(), max_entries=100)
        environ = {**os.environ, **settings}
        make = partial(Workers, environ=environ, overrides={})
        self.process = Process(reactor, load(settings), self.log, make)
        self.process.startService()

    @property
    def pids(self) -> list[int]:
        entries = [entry for entry in entries_of(self.log) if entry["event"] == "worker_started"]
        return [entry["details"]["pid"] for entry in entries]

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(1500):
            if condition():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError(f"not in time; logged: {entries_of(self.log)}")


@pytest.fixture
def reaping() -> Iterator[None]:
    """Children that exit are noticed, though pytest's reactor has no handler of SIGCHLD."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    call = LoopingCall(reapAllProcesses)
    call.start(0.02)
    yield
    call.stop()
    for number, handler in handlers.items():
        signal.signal(number, handler)


async def _starting(parent: Parent) -> None:
    """No worker is up yet."""


async def _up(parent: Parent) -> None:
    await parent.until(lambda: len(parent.pids) == 2)


async def _one_was_lost(parent: Parent) -> None:
    await _up(parent)
    os.kill(parent.pids[0], signal.SIGKILL)
    await parent.until(lambda: any(entry["event"] == "worker_lost" for entry in entries_of(parent.log)))


def _busy() -> set[object]:
    calls = [call.func for call in reactor.getDelayedCalls()]
    owners = [getattr(function, "__self__", function) for function in calls]
    return {*reactor.getReaders(), *reactor.getWriters(), *owners}


@pytest.mark.parametrize("enter", [_starting, _up, _one_was_lost])
@pytest_twisted.ensureDeferred
async def test_no_worker_and_nothing_in_the_reactor_is_left(enter: Any, reaping: None) -> None:
    await deferLater(reactor, 0)  # the test's own time limit is set
    before = _busy()
    parent = Parent()
    await enter(parent)
    first, second = parent.process.stopService(), parent.process.stopService()
    await first
    await second
    left = _busy() - before
    assert not left, f"left: {[str(thing) for thing in left]}"
    for pid in parent.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
