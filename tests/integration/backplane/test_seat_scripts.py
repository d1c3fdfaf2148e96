"""The Redis scripts that assign a seat between two relays, on a real Redis, compared with their Python model."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.drill.redisserver import RedisServer
from tests.unit.backplane.seats import SeatStore
from viewport_relay.backplane.interface import SeatClaim, TargetKey
from viewport_relay.backplane.rediscommands import Commands

pytestmark = pytest.mark.redis

TARGET: TargetKey = ("w:x", "t.y")
GENERATIONS = (None, 5, 6)
TIMES = (1_800_000_000_000, 1_800_000_000_001)


def test_the_scripts_decide_as_the_model_does(redis: RedisServer) -> None:
    """All pairs of claims; each relay announces, then renews: the owner of the seat, and the notified relay."""
    commands = {name: Commands("p", name, 45_000, 10) for name in "ab"}
    claims = [SeatClaim(generation, since) for generation in GENERATIONS for since in TIMES]
    cases = 0
    for first, second in itertools.product(claims, claims):
        redis.ask("FLUSHALL")
        model = SeatStore()
        for name, new in (("a", True), ("b", True), ("a", False), ("b", False), ("b", True), ("a", False)):
            claim = first if name == "a" else second
            entry = {"relayId": name, "relayWsBaseUrl": "ws://x", "daemonConnected": True}
            taken = commands[name].take(TARGET, json.dumps(entry).encode(), "signature", claim, new=new)
            other = redis.ask(*taken)
            expected = model.take(TARGET, entry, claim, new=new)
            assert (other and other.decode()) == expected, (first, second, name, new)
            there = json.loads(redis.ask("GET", commands["a"].presence_key(TARGET)))
            assert there == model.entries[TARGET]
            owner, kept = model.claims[TARGET]
            seat = redis.ask("GET", "p:seat:w:x:t.y").decode()
            assert seat == f"{'' if kept.generation is None else kept.generation} {kept.since_ms} {owner}"
            for relay in "ab":
                told = redis.ask(*commands[relay].moved()) or []
                assert [tuple(item.decode().split("\n")) for item in told] == list(model.moved(relay))
            cases += 1
    assert cases == 6 * 36
    for relay in "ab":
        redis.ask(*commands[relay].withdraw(TARGET))
        model.withdraw(TARGET, relay)
    assert redis.ask("DBSIZE") == len(model.entries) == 0


def test_an_entry_without_generation_yields_only_to_an_announcement(redis: RedisServer) -> None:
    """An older relay writes no generation: an announcement overwrites its entry, a renewal does not."""
    ours = Commands("p", "a", 45_000, 10)
    entry = json.dumps({"relayId": "old", "relayWsBaseUrl": "ws://x", "daemonConnected": True})
    redis.ask("SET", ours.presence_key(TARGET), entry)
    claim = SeatClaim(5, TIMES[0])
    assert redis.ask(*ours.take(TARGET, b"{}", "", claim, new=False)) == b"old"
    assert redis.ask(*ours.take(TARGET, b"{}", "", claim, new=True)) is None
    assert redis.ask("GET", ours.presence_key(TARGET)) == b"{}"
    assert 0 < redis.ask("PTTL", "p:moved:old") <= 120_000
