"""Fixtures for all tests; `tests/conftest.py` registers this module as a plugin.

A test file or folder that needs another platform overrides the fixture.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.interfaces import IListeningPort

from tests.drill.manager import Manager
from tests.drill.platform import FaultyPlatform
from tests.drill.redisserver import RedisServer


@pytest.fixture(scope="module")
def platform() -> Iterator[FaultyPlatform]:
    """One platform for all tests of a file: tests restore its `mode`."""
    with FaultyPlatform() as made:
        yield made


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of one test's own."""
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest_twisted.async_yield_fixture
async def ports() -> AsyncIterator[list[IListeningPort]]:
    """A list of listening ports that are closed after the test."""
    listening: list[IListeningPort] = []
    yield listening
    for port in listening:
        await port.stopListening()  # type: ignore[misc]
