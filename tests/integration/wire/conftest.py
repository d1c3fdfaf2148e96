"""Fixtures of the wire tests: relay processes, each shared by the tests with the same settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.drill.relay import NO_RATES
from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.relays import Relay
from tests.integration.wire.site import Site

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def platform() -> Iterator[ControlPlane]:
    made = ControlPlane()
    yield made
    made.stop()


def checked(relay: Relay) -> Iterator[Relay]:
    """Yields the relay; after the test its standard error must be empty and its log without errors."""
    yield relay.ready()
    assert relay.stop() == 0
    assert relay.complained == []
    assert [line for line in relay.lines() if line["event"] in ("internal_error", "stderr")] == []


@pytest.fixture(scope="package")
def make_relay(platform: ControlPlane) -> Callable[..., Relay]:
    """Factory of relays with these settings and without rates; the caller stops them (`checked`)."""

    def make(**settings: str) -> Relay:
        return Relay({**platform.settings(), **NO_RATES, "RELAY_MAX_LOGS": "5000", **settings})

    return make


@pytest.fixture(scope="package")
def relay(make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    """The relay of all tests that need no settings."""
    yield from checked(make_relay())


@pytest.fixture
def sites(platform: ControlPlane) -> Iterator[Callable[..., Site]]:
    """Factory of sites, each in its own workspace; their peers are closed with the test."""
    made: list[Site] = []

    def make(relay: Relay, workspace: str = "", target: str | None = "t") -> Site:
        made.append(Site(relay, platform, workspace or f"w{next(_numbers)}", target))
        return made[-1]

    yield make
    for site in made:
        site.everybody_leaves()


@pytest.fixture
def site(relay: Relay, sites: Callable[..., Site]) -> Site:
    """A site on the relay of all tests that need no settings."""
    made: Any = sites(relay)
    return made  # type: ignore[no-any-return]
