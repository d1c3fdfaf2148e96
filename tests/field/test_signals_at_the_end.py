"""Repeated signals during shutdown: from a supervisor and a terminal at once, or from an impatient operator."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay


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
