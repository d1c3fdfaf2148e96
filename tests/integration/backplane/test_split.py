"""Two relays that each have a daemon of one target: one has the seat within two seconds, and clients of both reach it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.drill.forwarder import Forwarder
from tests.drill.redisserver import RedisServer
from tests.integration.backplane.fleet import BarePeer, Fleet, until
from tests.integration.relayprocess import RelayProcess

pytestmark = pytest.mark.redis

DOWN = {"ok": True, "reason": "BACKPLANE_UNREACHABLE"}
UP = {"ok": True}
#: Seconds after the reconnection within which one relay has the seat, and clients reach the daemon.
HEALED = 2.0


async def together(steps: Iterable[Coroutine[Deferred[Any], Any, None]]) -> None:
    await gatherResults([Deferred.fromCoroutine(step) for step in steps], consumeErrors=True)


def generation(number: int | None) -> dict[str, object]:
    return {} if number is None else {"daemonIssueGeneration": number}


class Moves:
    """A daemon that moves from relay a to relay b while a is split from Redis; `winner` has the seat afterwards."""

    def __init__(self, fleet: Fleet, target: str, before: int | None, after: int | None, winner: str) -> None:
        self.fleet, self.target, self.winner = fleet, target, winner
        self._generations = before, after

    async def begin(self, a: RelayProcess, b: RelayProcess) -> None:
        self._old = await self.fleet.join(
            a, "workspace-daemon", target=self.target, **generation(self._generations[0])
        )
        await self.fleet.announced("a", self.target)
        self._clients = [await self.fleet.join(relay, "client", target=self.target) for relay in (a, b)]
        for client in self._clients:
            await self.fleet.reaches(client, self._old, 2)

    async def move(self, b: RelayProcess) -> None:
        if self.winner == "a":  # otherwise the lower generation would not get the seat even temporarily
            assert self.fleet.redis is not None
            key = self.fleet.presence_key(self.target)
            self.fleet.redis.ask(
                "DEL", *(key.replace("presence", kind) for kind in ("presence", "signature", "seat"))
            )
        self._new = await self.fleet.join(
            b, "workspace-daemon", target=self.target, **generation(self._generations[1])
        )
        await self.fleet.announced("b", self.target)
        at_a, at_b = self._clients
        await self.fleet.reaches(at_b, self._new, 3)  # a look-up before the deletion is cached for 2 s
        await self.fleet.reaches(at_a, self._old, 2)  # its relay cannot see the newer daemon
        assert (self._old.closed, self._new.closed) == (None, None)

    async def healed(self, seconds: float) -> None:
        """Within `seconds` clients of both relays reach the winner."""
        deadline = self.fleet.reactor.seconds() + seconds
        stays, goes = (self._new, self._old) if self.winner == "b" else (self._old, self._new)
        await self.fleet.announced(self.winner, self.target)
        for client in self._clients:
            await self.fleet.reaches(client, stays, deadline - self.fleet.reactor.seconds())
        # The relay that lost the seat gives it up at once, and closes the daemon a second later.
        closed = await goes.ended(2)
        assert (closed.code, closed.reason) == (4008, "replaced by newer daemon")
        assert stays.closed is None


@pytest_twisted.ensureDeferred
async def test_daemons_move_while_their_relay_is_split_from_redis(fleet: Fleet, redis: RedisServer) -> None:
    moves = [
        Moves(fleet, "same-token", 5, 5, "b"),
        Moves(fleet, "newer", 5, 6, "b"),
        Moves(fleet, "no-generations", None, None, "b"),
        Moves(fleet, "older", 6, 5, "a"),
    ]
    with Forwarder(redis.port) as network:
        settings = {"RELAY_CLIENT_REDIRECT_ENABLED": "0"}
        a = await fleet.relay("a", RELAY_REDIS_URL=f"redis://127.0.0.1:{network.port}", **settings)
        b = await fleet.relay("b", **settings)
        await together(move.begin(a, b) for move in moves)
        await deferToThread(network.partition)
        await fleet.until_ready(a, DOWN, 20)
        await together(move.move(b) for move in moves)
        await deferToThread(network.heal)
        await together(move.healed(HEALED) for move in moves)


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_flaps_between_relays(fleet: Fleet, redis: RedisServer) -> None:
    """It comes to each relay in turn, before its connection to the other one ends; the last connection has the seat."""
    relays = await fleet.relays("a", "b", RELAY_CLIENT_REDIRECT_ENABLED="0")
    clients = [await fleet.join(relay, "client") for relay in relays]
    daemons: list[BarePeer] = []
    for number in range(8):
        daemons.append(await fleet.join(relays[number % 2], "workspace-daemon", **generation(5)))
        if number:
            daemons[-2].connection.abort()
    await fleet.announced("b")
    for client in clients:
        await fleet.reaches(client, daemons[-1], HEALED)
    await until(fleet.reactor, lambda: [daemon.closed is None for daemon in daemons] == [False] * 7 + [True])
    assert daemons[-1].closed is None and fleet.presence()["relayId"] == "b"


@pytest.mark.parametrize(
    "generations", [(5, 5), (5, 6), (None, None)], ids=["the same token", "a newer one", "none"]
)
@pytest_twisted.ensureDeferred
async def test_a_daemon_is_half_open_on_one_relay_and_alive_on_another(
    fleet: Fleet, redis: RedisServer, generations: tuple[int | None, int | None]
) -> None:
    """The daemon's machine has changed networks: no FIN reaches relay a, which holds a dead connection."""
    a, b = await fleet.relays("a", "b", RELAY_CLIENT_REDIRECT_ENABLED="0")
    with Forwarder(a.port) as network:
        old = await fleet.join(a, "workspace-daemon", network=network, **generation(generations[0]))
        await fleet.announced("a")
        clients = await fleet.join(a, "client"), await fleet.join(b, "client")
        for client in clients:
            await fleet.reaches(client, old, 2)

        await deferToThread(network.partition)
        new = await fleet.join(b, "workspace-daemon", **generation(generations[1]))
        moved = fleet.reactor.seconds()
        for client in clients:
            await fleet.reaches(client, new, moved + HEALED - fleet.reactor.seconds())

        def left() -> bool:
            return "replaced by newer daemon" in a.output()

        await until(fleet.reactor, left)  # a closes the dead connection
        assert fleet.presence()["relayId"] == "b"  # and has not withdrawn the entry of b
        for client in clients:
            await fleet.reaches(client, new, 2)
        assert new.closed is None
