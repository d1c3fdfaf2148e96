"""Signals: repeated ones during shutdown, from a supervisor and a terminal at once; and such as have no use here."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_repeated_signals_keep_the_exit_status_0(number: signal.Signals, platform: FaultyPlatform) -> None:
    with Relay(platform.environment()) as relay:
        relay.wait()
        relay.signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while relay.process.poll() is None and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                relay.signal(number)
            time.sleep(0.002)
        assert relay.process.wait(10) == 0, relay.output()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN + 3])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_without_use_is_logged_and_ignored(
    number: int, workers: str, platform: FaultyPlatform
) -> None:
    """Sent by a log rotation, or a script that means another program: it ended the relay without a drain."""
    with Relay(platform.environment() | {"RELAY_WORKERS": workers}) as relay:
        relay.wait()
        processes = [relay.pid, *relay.workers()]
        for pid in processes:
            os.kill(pid, number)
        until(lambda: sum(entry["event"] == "signal_ignored" for entry in relay.entries()) == len(processes))
        assert [relay.pid, *relay.workers()] == processes
        assert relay.stop() == 0


def test_a_signal_of_a_debugger_or_watchdog_ends_the_relay(platform: FaultyPlatform) -> None:
    with Relay(platform.environment()) as relay:
        relay.wait()
        relay.signal(signal.SIGABRT)
        assert relay.process.wait(10) == -signal.SIGABRT
