"""Fixtures: a fleet for each test, with its own Redis, development platform and relays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor

from tests.drill.redisserver import RedisServer
from tests.integration.backplane.fleet import Fleet, fleet_on
from viewport_relay.devplatform import SigningKey

_reactor: Any = reactor


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate()


async def _fleet(signing_key: SigningKey, redis: RedisServer) -> AsyncIterator[Fleet]:
    async with fleet_on(_reactor, signing_key, redis) as made:
        yield made


async def _http_fleet(signing_key: SigningKey) -> AsyncIterator[Fleet]:
    async with fleet_on(_reactor, signing_key, None) as made:
        yield made


fleet = pytest_twisted.async_yield_fixture(name="fleet")(_fleet)
http_fleet = pytest_twisted.async_yield_fixture(name="http_fleet")(_http_fleet)
