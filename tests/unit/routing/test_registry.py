"""Registry: targets are created, listed and removed; peers join and leave."""

from __future__ import annotations

from tests.unit.routing.house import House
from viewport_relay.protocol.grant import Role, Scope
from viewport_relay.routing.model import Contested, Seated, Stale

TTL = 120.0


def test_each_workspace_and_target_has_its_own_entry() -> None:
    house = House()
    registry = house.registry
    rooms = {
        id(registry.target(workspace, target, 0.0))
        for workspace, target in (("w", "t"), ("w", "u"), ("v", "t"), ("w", None), ("w:t", None), ("w", ":t"))
    }
    assert len(rooms) == len(registry) == 6
    assert registry.find("w", "t") is registry.target("w", "t", 1.0)
    assert registry.find("w", "absent") is None


def test_counts_of_joined_peers() -> None:
    house = House()
    client, daemon = house.client(), house.daemon()
    worker = house.peer(Role.WORKER, managed_executor_id="x")
    house.registry.join(worker, house.now)
    assert house.registry.joined == {Role.CLIENT: 1, Role.DAEMON: 1, Role.WORKER: 1}
    [view] = house.registry.views(wall_offset=500.0)
    assert view.daemon is not None
    assert (view.daemon.connection_id, view.daemon.role) == (daemon.connection_id, "workspace-daemon")
    assert [peer.connection_id for peer in view.clients] == [client.connection_id]
    assert [peer.connection_id for peer in view.executors] == [worker.connection_id]
    assert view.created_at == view.last_activity_at == house.now + 500.0
    for peer in (client, daemon, worker):
        house.leave(peer)
    assert not +house.registry.joined
    [view] = house.registry.views(0.0)
    assert (view.daemon, view.clients, view.executors) == (None, (), ())


def test_peers_whose_token_has_expired() -> None:
    house = House()
    holder, challenger = house.daemon(expires_at=50.0), house.daemon(expires_at=60.0)
    client, worker = house.client(expires_at=70.0), house.peer(Role.WORKER, expires_at=55.0)
    house.client()  # without exp: never expires
    house.registry.join(worker, house.now)
    assert house.registry.expired(49.9) == []
    assert house.registry.expired(60.0) == [holder, challenger, worker]
    assert house.registry.expired(1e9) == [holder, challenger, client, worker]
    assert len(list(house.registry.peers())) == 5


def test_an_empty_target_is_listed_until_its_ttl() -> None:
    house = House()
    client = house.client()
    house.now += 10 * TTL
    assert house.registry.clean_up(house.now, TTL) == 0  # the target has a daemon
    house.leave(client)
    house.now += TTL - 1
    assert house.registry.clean_up(house.now, TTL) == 0
    house.now += 1
    assert house.registry.clean_up(house.now, TTL) == 1
    assert len(house.registry) == 0


def test_clean_up_drops_expired_requests_and_sessions() -> None:
    house = House()
    client = house.client()
    house.daemon()
    target = house.target
    target.key_exchanges.record("r", client, house.now)
    target.pairings.record("r", client, house.now)
    target.sessions.record("s", client, house.now)
    house.registry.clean_up(house.now + 121, TTL)
    assert (len(target.key_exchanges), len(target.pairings), len(target.sessions)) == (0, 0, 1)
    house.registry.clean_up(house.now + 1801, TTL)
    assert len(target.sessions) == 0


def test_a_target_with_a_challenger_is_not_empty() -> None:
    house = House()
    holder = house.daemon(1)
    house.daemon(1)
    assert house.leave(holder) is not None
    assert not house.target.empty


def test_a_leave_or_replacement_of_the_daemon_clears_requests_and_sessions() -> None:
    house = House()
    for end in ("leaves", "is replaced"):
        daemon, client = house.daemon(1), house.client()
        target = house.target
        target.key_exchanges.record("r", client, house.now)
        target.pairings.record("r", client, house.now)
        target.sessions.record("s", client, house.now)
        if end == "leaves":
            house.leave(daemon)
        else:
            arrival = house.registry.join(
                newer := house.peer(Role.DAEMON, daemon_issue_generation=2), house.now
            )
            assert arrival == Seated(replaced=daemon)
            house.leave(daemon)
            assert target.daemon is newer  # the old daemon's leave has no effect
        assert (len(target.key_exchanges), len(target.pairings), len(target.sessions)) == (0, 0, 0)
        assert client in target.clients


def test_a_refused_or_waiting_daemon_leaves_without_effect() -> None:
    house = House()
    holder, client = house.daemon(5), house.client()
    house.target.sessions.record("s", client, house.now)
    stale = house.peer(Role.DAEMON, daemon_issue_generation=4)
    assert isinstance(house.registry.join(stale, house.now), Stale)
    equal = house.peer(Role.DAEMON, daemon_issue_generation=5)
    assert house.registry.join(equal, house.now) == Contested(holder)
    for peer in (stale, equal):
        assert house.leave(peer) is None
    assert house.target.daemon is holder
    assert house.target.sessions.owner("s", house.now) is client
    assert house.registry.joined[Role.DAEMON] == 1


def test_a_client_that_leaves_is_removed_from_all_tables() -> None:
    house = House()
    house.daemon()
    channel = "agent-session:a"
    client = house.client(Scope.SESSION_EVENTS, client_id="c", session_channels=frozenset({channel}))
    target = house.target
    target.subscribe(client, channel)
    target.key_exchanges.record("r", client, house.now)
    target.sessions.record("s", client, house.now)
    house.leave(client)
    assert target.channels == {}
    again = house.client(client_id="c")
    assert target.key_exchanges.owner("r", house.now) is None
    assert target.sessions.owner("s", house.now) is None
    assert target.sessions.record("s", again, house.now)
