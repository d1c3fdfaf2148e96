"""Faults of a fleet of relay processes, one drill each; the assertions are the promises of docs/topics/resilience.md.

Every request of the load has one outcome: answered, told (DAEMON_UNAVAILABLE), cut (the connection ended) or silent.
The short forms run with all tests, the long ones with `make chaos`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.drill.fleet import OF_REDIS, DrillFleet, report
from tests.drill.forwarder import Forwarder
from tests.drill.peer import Peer
from tests.drill.platform import FaultyPlatform
from tests.drill.redisserver import RedisServer, start_sentinel
from tests.drill.relay import Relay, until
from tests.drill.swarm import Swarm

pytestmark = pytest.mark.redis
slow = pytest.mark.slow


@pytest.mark.parametrize(("pairs", "seconds"), [(20, 1.5), pytest.param(100, 10.0, marks=slow)])
def test_one_of_five_relays_is_killed(
    platform: FaultyPlatform, redis: RedisServer, pairs: int, seconds: float
) -> None:
    with DrillFleet(platform, redis.url, 5) as fleet, Swarm(platform) as swarm:
        swarm.add(pairs, daemon=fleet.from_home, client=fleet.from_anywhere)
        swarm.until_talking()
        time.sleep(seconds)
        dead = fleet.ports[2]
        hit = [pair for pair in swarm.pairs if dead in (pair.daemon_port, pair.client_port)]
        spared = [pair for pair in swarm.pairs if pair not in hit]
        assert hit and len(spared) >= 3 * len(hit)
        swarm.mark()
        fleet[2].process.kill()
        back = swarm.until_talking(hit)
        time.sleep(seconds)
        others, theirs = swarm.figures(spared), swarm.figures(hit)
        share = fleet.bus_share(seconds)
        report(
            "kill -9 of one of five", pairs=pairs, hit=len(hit), back_after=back, spared=others, theirs=theirs,
            bus_share_afterwards=share,
        )  # fmt: skip
        # Pairs on other relays are not affected.
        assert others["told"] == others["cut"] == others["silent"] == 0
        # Cut: one pending request of each client. Told or silent: a request or two of each client whose daemon has not
        # reconnected.
        assert theirs["cut"] <= len(hit)
        assert theirs["silent"] + theirs["told"] <= 4 * len(hit)
        assert back < 10
        assert share < 0.01
        assert swarm.disorder == 0
        fleet.relays.pop(2)
        assert fleet.errors() == []


@pytest.mark.parametrize("pairs", [15, pytest.param(90, marks=slow)])
def test_clients_that_follow_redirects_do_not_use_the_bus(
    platform: FaultyPlatform, redis: RedisServer, pairs: int
) -> None:
    """Three relays behind a balancer without affinity: most clients start at another relay than their daemon."""
    shares = {}
    with DrillFleet(platform, redis.url, 3) as fleet:
        for follow in (False, True):
            with Swarm(platform, follow=follow) as swarm:
                swarm.add(pairs, daemon=fleet.from_home, client=fleet.from_anywhere)
                swarm.until_talking()
                time.sleep(0.5)
                shares[follow] = fleet.bus_share(1.0)
                redirects = swarm.followed
        report(
            "redirects",
            pairs=pairs,
            not_followed=shares[False],
            followed=shares[True],
            redirects=redirects,
        )
        assert shares[False] > 0.5 and redirects > pairs / 2
        assert shares[True] < 0.01
        assert fleet.errors() == []


#: Seconds more than promised that a machine full of other tests may take.
MARGIN = 1.0
#: Presence entries expire soon and are renewed soon.
QUICK_PRESENCE = {"RELAY_REDIS_PRESENCE_TTL_MS": "3000", "RELAY_PRESENCE_SYNC_INTERVAL_MS": "1000"}


class Halves:
    """Pairs with both peers on one relay, and pairs whose frames need the bus; no client follows a redirect."""

    def __init__(self, fleet: DrillFleet, swarm: Swarm, each: int) -> None:
        self.swarm = swarm
        self.local = swarm.add(each, daemon=fleet.from_home, client=fleet.from_home)
        self.split = swarm.add(each, daemon=fleet.from_home, client=lambda n: fleet.from_home(n + 1))
        swarm.until_talking()
        for pair in self.split:
            assert pair.daemon_port != pair.client_port
        swarm.mark()

    def local_unharmed(self) -> dict[str, float]:
        """Figures of the local pairs; asserts that every request was answered."""
        found = self.swarm.figures(self.local)
        assert found["told"] == found["cut"] == found["silent"] == 0, found
        return found


@pytest.mark.parametrize(("pairs", "seconds"), [(6, 4.0), pytest.param(40, 10.0, marks=slow)])
def test_redis_stops_answering(
    platform: FaultyPlatform, redis: RedisServer, pairs: int, seconds: float
) -> None:
    with DrillFleet(platform, redis.url, 2) as fleet, Swarm(platform, follow=False) as swarm:
        halves = Halves(fleet, swarm, pairs)
        redis.freeze()
        began = time.monotonic()
        try:
            noticed = _outage_seen(fleet[0], began)
            newcomers = swarm.add(2, daemon=fleet.from_home, client=fleet.from_home)
            swarm.until_talking(newcomers)  # peers of one relay need no Redis, not even to join
            assert (
                fleet[0].http("/ready")[0] == 200 and b"BACKPLANE_UNREACHABLE" in fleet[0].http("/ready")[1]
            )
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            local, split = halves.local_unharmed(), swarm.figures(halves.split)
        finally:
            redis.thaw()
        healed = swarm.until_talking(halves.split)
        time.sleep(0.5)
        swarm.mark()
        time.sleep(1.0)
        report(
            f"Redis stands still for {seconds:g} s", noticed_after=noticed, local=local, split=split,
            healed_after=healed,
        )  # fmt: skip
        assert split["cut"] == 0 and split["told"] > 0
        # Silent until the outage is noticed, told afterwards.
        assert split["silent"] <= (noticed + swarm.patience) / swarm.patience * len(halves.split)
        assert noticed < 8 and healed < 5
        after = swarm.figures()
        assert after["told"] == after["cut"] == after["silent"] == 0, after
        assert swarm.refused == [] and swarm.disorder == 0
        assert fleet.errors(*OF_REDIS) == []


def _outage_seen(relay: Relay, began: float) -> float:
    """Seconds from `began` until the relay logged that its backplane is unavailable."""
    relay.logged("backplane_unreachable", 15)
    return time.monotonic() - began


@pytest.mark.parametrize("pairs", [6, pytest.param(40, marks=slow)])
def test_sentinel_promotes_another_primary(
    platform: FaultyPlatform, redis: RedisServer, tmp_path: Path, pairs: int
) -> None:
    second = RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(redis.port)).start()
    sentinels = [start_sentinel(tmp_path, redis, 2) for _ in range(3)]
    try:
        settings = {
            "RELAY_REDIS_SENTINELS": ",".join(f"127.0.0.1:{server.port}" for server in sentinels),
            "RELAY_REDIS_SENTINEL_MASTER": "main",
        }
        with DrillFleet(platform, redis.url, 2, settings) as fleet, Swarm(platform, follow=False) as swarm:
            halves = Halves(fleet, swarm, pairs)
            for server in sentinels:  # each knows the replica and the two other sentinels
                until(lambda server=server: len(server.ask("SENTINEL", "SENTINELS", "main")) == 2, 15)
                until(lambda server=server: len(server.ask("SENTINEL", "REPLICAS", "main")) == 1, 15)
            swarm.mark()
            redis.kill()
            began = time.monotonic()
            until(lambda: second.ask("ROLE")[0] == b"master", 30, "another primary")
            promoted = time.monotonic() - began
            swarm.until_talking(halves.split)
            healed = time.monotonic() - began
            local, split = halves.local_unharmed(), swarm.figures(halves.split)
            keys = len(second.ask("KEYS", "viewport:relay:presence:*"))
            time.sleep(0.5)
            swarm.mark()
            time.sleep(1.0)
            after = swarm.figures()
            report(
                "the primary is killed, Sentinels name another", promoted_after=promoted,
                healed_after=healed, local=local, split=split, presence_keys=keys,
            )  # fmt: skip
            assert healed - promoted < 10
            assert split["cut"] == 0
            # A killed Redis is noticed at once. Silent: requests in progress, and those queued in the new primary until the other
            # relay connects to it; its attempts are at most 3 s apart.
            assert split["silent"] <= (3 + swarm.patience) / swarm.patience * len(halves.split)
            assert keys == len(swarm.pairs)
            assert after["told"] == after["cut"] == after["silent"] == 0, after
            assert swarm.refused == [] and swarm.disorder == 0
            assert fleet.errors(*OF_REDIS) == []
    finally:
        for server in (*sentinels, second):
            server.kill()


@pytest.mark.parametrize(("pairs", "seconds"), [(6, 5.0), pytest.param(40, 20.0, marks=slow)])
def test_one_relay_is_partitioned_from_redis(
    platform: FaultyPlatform, redis: RedisServer, pairs: int, seconds: float
) -> None:
    """No packet passes between relay 0 and Redis; relay 1 and all peers are not affected."""
    with (
        Forwarder(redis.port) as network,
        DrillFleet(
            platform,
            redis.url,
            2,
            QUICK_PRESENCE,
            {0: {"RELAY_REDIS_URL": f"redis://127.0.0.1:{network.port}"}},
        ) as fleet,
        Swarm(platform, follow=False) as swarm,
        Swarm(platform) as followers,
    ):
        halves = Halves(fleet, swarm, pairs)
        followers.add(2, daemon=lambda n: fleet.ports[:1], client=lambda n: fleet.ports[:1])
        followers.until_talking()
        moving = Peer.daemon(fleet[0], platform, "moving", "t")
        until(lambda: redis.ask("EXISTS", "viewport:relay:presence:moving:t"))
        swarm.mark()
        network.partition()
        began = time.monotonic()
        # A client of relay 1 for a daemon of relay 0 is redirected while the presence entry exists.
        late = followers.add(2, daemon=lambda n: fleet.ports[:1], client=lambda n: fleet.ports[::-1])
        noticed = _outage_seen(fleet[0], began)
        moved = Peer.daemon(fleet[1], platform, "moving", "t")  # its older connection to relay 0 stays open
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        split = swarm.figures(halves.split)
        network.heal()
        began = time.monotonic()
        healed = swarm.until_talking(halves.split)
        end = moving.how_it_ends()
        closed_after = time.monotonic() - began
        report(
            f"one relay without Redis for {seconds:g} s", noticed_after=noticed,
            local=swarm.figures(halves.local), split=split, healed_after=healed,
            older_daemon_closed_after=closed_after,
        )  # fmt: skip
        halves.local_unharmed()
        assert split["cut"] == 0 and split["told"] > 0
        # Silent while relay 0's presence entries exist and are cached (3 s + 2 s), told afterwards.
        assert split["silent"] <= (5 + swarm.patience) / swarm.patience * len(halves.split)
        assert followers.total("cut") == 0 and followers.until_talking(late) < 5
        # Attempts to reach Redis are half a second apart, each ends after a second. A pending request then has its patience.
        assert healed < 2 + swarm.patience + MARGIN
        assert (end.code, end.reason) == (4008, "replaced by newer daemon")
        assert closed_after < 2 + swarm.patience + MARGIN
        assert next(room for room in fleet[1].state() if room["workspaceId"] == "moving")["daemonConnected"]
        assert [
            room for room in fleet[0].state() if room["workspaceId"] == "moving" and room["daemonConnected"]
        ] == []
        moved.close()
        moving.close()
        # Frames that stayed in the relay's queue for more than 15 s are refused.
        assert fleet.errors(*OF_REDIS, "BUS_SIGNATURE_STALE") == []
