"""Fixtures of the admission tests: control planes, and relays as processes; some serve several tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.admission.controlplane import ControlPlane, SigningKey
from tests.integration.admission.relays import Relay

#: No rate limit, and short waits. Refusals of this relay differ by workspace, so the log folds none of them.
SHARED = {
    "RELAY_MODE": "staging",
    "RELAY_RATE_LIMIT_PER_IP": "0",
    "RELAY_MAX_CONNECTIONS_PER_IP": "0",
    "RELAY_ADMISSION_TIMEOUT_MS": "500",
    "RELAY_ADMISSION_MAX_RESPONSE_BYTES": "2048",
    "RELAY_ALLOWED_ORIGINS": "https://app.example,https://Other.example:8443",
    "RELAY_JWKS_COOLDOWN": "1",
    "RELAY_MAX_LOGS": "5000",
}

_numbers = itertools.count(1)


@pytest.fixture
def workspace() -> str:
    """A workspace id that is new for each test."""
    return f"w{next(_numbers)}"


@pytest.fixture
def source() -> str:
    """A loopback address that is new for each test."""
    number = next(_numbers)
    return f"127.1.{number >> 8}.{number & 255}"


@pytest.fixture(scope="package")
def platform() -> Iterator[ControlPlane]:
    """The control plane of the shared relay."""
    made = ControlPlane()
    made.published += [SigningKey.new("rsa", "RS256"), SigningKey.new("ed", "EdDSA")]
    yield made
    made.stop()


@pytest.fixture(scope="package")
def relay(platform: ControlPlane) -> Iterator[Relay]:
    """The shared relay. A test must not stop it, use up a limit, or disturb its platform for long."""
    made = Relay({**platform.settings(), **SHARED})
    yield made.ready()
    assert made.stop() == 0
    assert made.complained == []
    assert [line for line in made.lines() if line["event"] == "internal_error"] == []


@pytest.fixture
def own_platform() -> Iterator[Callable[..., ControlPlane]]:
    """Factory of control planes that end with the test."""
    made: list[ControlPlane] = []

    def make(**how: Any) -> ControlPlane:
        made.append(ControlPlane(**how))
        return made[-1]

    yield make
    for platform in made:
        platform.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Relay]]:
    """Factory of relays that end with the test; fails if one wrote to standard error."""
    made: list[Relay] = []

    def begin(settings: dict[str, str], *arguments: str, **how: Any) -> Relay:
        made.append(Relay(settings, *arguments, **how))
        return made[-1]

    yield begin
    for relay in made:
        relay.stop()
    for relay in made:
        assert relay.complained == []
        assert [line for line in relay.lines() if line["event"] == "internal_error"] == []
