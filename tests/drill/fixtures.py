"""Fixtures for tests that drill a relay process; `tests/conftest.py` makes them known everywhere.

A test file or folder that means another platform has a fixture of that name itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drill.manager import Manager
from tests.drill.platform import FaultyPlatform


@pytest.fixture(scope="module")
def platform() -> Iterator[FaultyPlatform]:
    """One for all tests of a file: put its `mode` back."""
    with FaultyPlatform() as made:
        yield made


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()
