"""Relays that lose Redis and get it back: one daemon has the seat within two seconds, and clients reach it."""

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
        await fleet.reaches(at_a, old, "a-before", 2)
        await fleet.reaches(at_b, old, "b-before", 2)

        await deferToThread(network.partition)
        await fleet.until_ready(a, DOWN, 20)
        if winner == "a":
            redis.ask("FLUSHALL")  # otherwise the lower generation would not get the seat even temporarily
        new = await fleet.join(b, "workspace-daemon", **generations[1])
        await fleet.announced("b")
        await fleet.reaches(at_b, new, "b-split", 2)
        await fleet.reaches(at_a, old, "a-split", 2)  # its relay cannot see the newer daemon
        assert (old.closed, new.closed) == (None, None)

        await deferToThread(network.heal)
        healed = fleet.reactor.seconds()
        stays, goes = (new, old) if winner == "b" else (old, new)
        await fleet.announced(winner)
        # The relay that lost the seat gives it up at once, and closes the daemon a second later.
        for name, client in (("a-healed", at_a), ("b-healed", at_b)):
            await fleet.reaches(client, stays, name, healed + HEALED - fleet.reactor.seconds())
        closed = await goes.ended(2)
        assert (closed.code, closed.reason) == (4008, "replaced by newer daemon")
        await until(fleet.reactor, lambda: stays.closed is None, 0.1)
