"""Two relays that each have a daemon of one target: one has the seat within two seconds, and clients of both reach it."""

from __future__ import annotations

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.threads import deferToThread

from tests.drill.forwarder import Forwarder
from tests.drill.redisserver import RedisServer
from tests.integration.backplane.fleet import Fleet, until

pytestmark = pytest.mark.redis

DOWN = {"ok": True, "reason": "BACKPLANE_UNREACHABLE"}
UP = {"ok": True}
#: Seconds after the reconnection within which one relay has the seat, and clients reach the daemon.
HEALED = 2.0


@pytest.mark.parametrize(
    ("before", "after", "winner"),
    [(5, 5, "b"), (5, 6, "b"), (None, None, "b"), (6, 5, "a")],
    ids=["the same token", "a newer one", "without generations", "an older one"],
)
@pytest_twisted.ensureDeferred
async def test_a_daemon_moves_while_its_relay_is_split_from_redis(
    fleet: Fleet, redis: RedisServer, before: int | None, after: int | None, winner: str
) -> None:
    with Forwarder(redis.port) as network:
        settings = {"RELAY_CLIENT_REDIRECT_ENABLED": "0"}
        a = await fleet.relay("a", RELAY_REDIS_URL=f"redis://127.0.0.1:{network.port}", **settings)
        b = await fleet.relay("b", **settings)
        generations = [{} if g is None else {"daemonIssueGeneration": g} for g in (before, after)]
        old = await fleet.join(a, "workspace-daemon", **generations[0])
        await fleet.announced("a")
        at_a, at_b = await fleet.join(a, "client"), await fleet.join(b, "client")
        await fleet.reaches(at_a, old, 2)
        await fleet.reaches(at_b, old, 2)

        await deferToThread(network.partition)
        await fleet.until_ready(a, DOWN, 20)
        if winner == "a":
            redis.ask("FLUSHALL")  # otherwise the lower generation would not get the seat even temporarily
        new = await fleet.join(b, "workspace-daemon", **generations[1])
        await fleet.announced("b")
        await fleet.reaches(at_b, new, 2)
        await fleet.reaches(at_a, old, 2)  # its relay cannot see the newer daemon
        assert (old.closed, new.closed) == (None, None)

        await deferToThread(network.heal)
        healed = fleet.reactor.seconds()
        stays, goes = (new, old) if winner == "b" else (old, new)
        await fleet.announced(winner)
        # The relay that lost the seat gives it up at once, and closes the daemon a second later.
        for client in (at_a, at_b):
            await fleet.reaches(client, stays, healed + HEALED - fleet.reactor.seconds())
        closed = await goes.ended(2)
        assert (closed.code, closed.reason) == (4008, "replaced by newer daemon")
        await until(fleet.reactor, lambda: stays.closed is None, 0.1)


@pytest.mark.parametrize(
    "generations", [(5, 5), (5, 6), (None, None)], ids=["the same token", "a newer one", "none"]
)
@pytest_twisted.ensureDeferred
async def test_a_daemon_is_half_open_on_one_relay_and_alive_on_another(
    fleet: Fleet, redis: RedisServer, generations: tuple[int | None, int | None]
) -> None:
    """The daemon's machine has changed networks: no FIN reaches relay a, which holds a dead connection."""
    a, b = await fleet.relays("a", "b", RELAY_CLIENT_REDIRECT_ENABLED="0")
    claims = [{} if g is None else {"daemonIssueGeneration": g} for g in generations]
    with Forwarder(a.port) as network:
        old = await fleet.join(a, "workspace-daemon", network=network, **claims[0])
        await fleet.announced("a")
        clients = await fleet.join(a, "client"), await fleet.join(b, "client")
        for client in clients:
            await fleet.reaches(client, old, 2)

        await deferToThread(network.partition)
        moved = fleet.reactor.seconds()
        new = await fleet.join(b, "workspace-daemon", **claims[1])
        for client in clients:
            await fleet.reaches(client, new, moved + HEALED - fleet.reactor.seconds())

        def left() -> bool:
            return "replaced by newer daemon" in a.output()

        await until(fleet.reactor, left)  # a closes the dead connection
        assert fleet.presence()["relayId"] == "b"  # and has not withdrawn the entry of b
        for client in clients:
            await fleet.reaches(client, new, 2)
        assert new.closed is None
