"""Model test (Hypothesis) of one target on three relays: after all faults exactly one relay has the seat and serves every client.

Faults: daemons that move, flap or are half-open on one relay and connected to another; relays without Redis, with refused, slow
or unanswered commands; Redis that loses its data. Presence, bus, sessions and connections are the relay's own.
"""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.memorywire import MemoryPeer
from tests.unit.backplane.memoryfleet import MemoryFleet
from tests.wireframes import encoded

RELAYS = ("a", "b", "c")
TARGET = ("w", "t")
#: Seconds after the last fault until one relay has the seat, and again until clients are routed to that relay.
HEALED = 2.0

relays = st.sampled_from(RELAYS)


class SeatsOfAFleet(RuleBasedStateMachine):
    """`daemons` maps open connections of daemons to relay and generation."""

    @initialize()
    def begin(self) -> None:
        self.fleet = MemoryFleet(*RELAYS)
        self.clients = {name: self.fleet[name].relay.client(client_id=name) for name in RELAYS}
        self.daemons: dict[MemoryPeer, tuple[str, int | None]] = {}
        self.highest = 0  # generation that ever came
        self.asked = 0

    # -- daemons -----------------------------------------------------------------------------------------------

    @rule(name=relays, generation=st.sampled_from([None, 1, 1, 2, 3]))
    def a_daemon_comes(self, name: str, generation: int | None) -> None:
        self.daemons[self.fleet[name].relay.daemon(generation)] = name, generation
        self.highest = max(self.highest, generation or 0)

    @precondition(lambda self: self.daemons)
    @rule(data=st.data(), how=st.sampled_from(["leave", "vanish", "half-open"]))
    def a_daemon_goes(self, data: st.DataObject, how: str) -> None:
        daemon = data.draw(st.sampled_from(list(self.daemons)), label="which of them")
        if how == "half-open":
            daemon.answers_pings = False
            return
        del self.daemons[daemon]
        if daemon.is_open:
            daemon.leave() if how == "leave" else daemon.vanish()
            self.fleet.pump()

    @rule(before=relays, after=relays, generation=st.sampled_from([None, 1, 2]))
    def a_daemon_moves(self, before: str, after: str, generation: int | None) -> None:
        """The daemon's older connection stays open at its former relay."""
        self.a_daemon_comes(before, generation)
        old = next(reversed(self.daemons))
        self.fleet.wait(0.1)
        old.answers_pings = False
        self.a_daemon_comes(after, generation)

    # -- Redis -------------------------------------------------------------------------------------------------

    @rule(name=relays, how=st.sampled_from(["cut", "refuse", "heal"]))
    def the_network_changes(self, name: str, how: str) -> None:
        getattr(self.fleet[name], how)()

    @rule(name=relays, seconds=st.sampled_from([0.05, 0.5]))
    def commands_are_slow(self, name: str, seconds: float) -> None:
        self.fleet[name].backplane.carrier.delay = seconds

    @rule(name=relays)
    def an_answer_is_lost(self, name: str) -> None:
        self.fleet[name].backplane.carrier.loses_answers = 1

    @rule()
    def redis_is_started_anew(self) -> None:
        self.fleet.restart_redis()

    # -- time and clients ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.fleet.wait(seconds)

    @rule(name=relays)
    def a_client_asks(self, name: str) -> None:
        self.asked += 1
        self.clients[name].say(encoded("init v3", requestId=f"request-{self.asked}"))

    # -- invariants ----------------------------------------------------------------------------------------------

    def holders(self) -> dict[str, MemoryPeer]:
        found = {}
        for name in RELAYS:
            target = self.fleet[name].relay.registry.find(*TARGET)
            if target is not None and target.daemon is not None:
                [found[name]] = [p for p in self.fleet[name].relay.peers if p.routed is target.daemon]
        return found

    @rule()
    def it_heals(self) -> None:
        for name in RELAYS:
            self.fleet[name].heal()
        before = self.holders()
        self.fleet.wait(HEALED)
        after = self.holders()
        entry = self.fleet.redis.seats.entries.get(TARGET)
        if not after:
            assert entry is None
            # A daemon that comes before a higher generation's leave is told everywhere is stale, as it would be at one relay.
            assert all((self.daemons[peer][1] or self.highest) < self.highest for peer in before.values())
            return
        assert before and len(after) == 1, (sorted(before), sorted(after))
        [(name, daemon)] = after.items()
        assert entry is not None and entry["relayId"] == name
        # A daemon without a generation follows any and is followed by any: it may have had the seat for a moment meanwhile.
        if all(generation is not None for _, generation in self.daemons.values()):
            generations = [self.daemons[peer][1] or 0 for peer in (*before.values(), daemon)]
            assert self.daemons[daemon][1] == max(generations)
        self.fleet.wait(HEALED)  # until cached look-ups expire
        for client in self.clients.values():
            client.heard()
        daemon.heard()
        for client in self.clients.values():
            self.asked += 1
            client.say(encoded("init v3", requestId=f"request-{self.asked}"))
            self.fleet.wait(0.3)
            assert [json.loads(text)["requestId"] for text in daemon.heard()] == [f"request-{self.asked}"]
            daemon.say(encoded("response v3", requestId=f"request-{self.asked}", sessionId=f"s-{self.asked}"))
            self.fleet.wait(0.3)
            assert [json.loads(text).get("sessionId") for text in client.heard()] == [f"s-{self.asked}"]

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            self.it_heals()
            for member in self.fleet.members.values():
                assert not [e for e in member.backplane.log.events if e["event"] == "internal_error"]
            self.fleet.stop()


TestSeatsOfAFleet = SeatsOfAFleet.TestCase
TestSeatsOfAFleet.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
