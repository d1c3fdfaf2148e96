"""Connections with and without a Noise link, by setting."""

from __future__ import annotations

import pytest

from tests.memorywire import MemoryRelay


@pytest.mark.parametrize("setting", ["off", "optional"])
def test_without_a_link_a_peer_joins_at_once(setting: str) -> None:
    relay = MemoryRelay(RELAY_NOISE_LINK=setting)
    client = relay.client()
    assert client.is_open and client.routed is not None
    assert relay.counters.handshakes == {"none": 1} and relay.clock.getDelayedCalls() == []


def test_a_required_link_that_was_not_offered() -> None:
    relay = MemoryRelay(RELAY_NOISE_LINK="required")
    client = relay.client()
    assert client.closed == (4008, "Noise link required") and client.routed is None
    assert relay.log.reasons() == ["NOISE_LINK_REQUIRED"] and relay.counters.handshakes == {}
    assert sum(relay.registry.joined.values()) == 0
