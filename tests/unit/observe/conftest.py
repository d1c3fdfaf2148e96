"""A wall clock for the tests of the log."""

from __future__ import annotations

import pytest


class Clock:
    at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock():
    return Clock()
