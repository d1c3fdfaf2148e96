"""Signals that come while a relay ends: a supervisor and a terminal that both send one, an impatient operator."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_exit_status_is_0_however_many_come(number: signal.Signals, platform: FaultyPlatform) -> None:
    with Relay(platform.environment()) as relay:
        relay.wait()
        relay.signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while relay.process.poll() is None and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                relay.signal(number)
            time.sleep(0.002)
        assert relay.process.wait(10) == 0, relay.output()
