"""Fixtures: a development platform on a free port, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor

from tests.integration.devplatform.calling import INTERNAL_KEY, Caller
from viewport_relay.devplatform import DevPlatform, SigningKey


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate()


async def _platform(signing_key: SigningKey) -> AsyncIterator[DevPlatform]:
    clock: Any = reactor
    made = DevPlatform(clock, internal_key=INTERNAL_KEY, signing_key=signing_key)
    made.listen(clock)
    yield made
    await made.close()


platform = pytest_twisted.async_yield_fixture(name="platform")(_platform)


@pytest.fixture
def call(platform: DevPlatform) -> Caller:
    return Caller(platform)
