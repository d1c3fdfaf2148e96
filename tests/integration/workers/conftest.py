"""Fixtures: a relay with several workers for each test, and workspaces of a known worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor

from tests.integration.workers.crewed import Crewed
from viewport_relay.devplatform import SigningKey

_reactor: Any = reactor


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate()


async def _crewed(signing_key: SigningKey) -> AsyncIterator[Crewed]:
    made = await Crewed(_reactor, signing_key, {"RELAY_WORKERS": "2"}).start()
    yield made
    await made.stop()


crewed = pytest_twisted.async_yield_fixture(name="crewed")(_crewed)
