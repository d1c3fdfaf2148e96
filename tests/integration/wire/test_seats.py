"""The daemon's seat over real sockets and in real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.drill.relay import until
from tests.integration.admission.relays import Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import Site, settle
from tests.wireframes import encoded

PONG_TIMEOUT = 0.6


@pytest.fixture(scope="module")
def relay(make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(
        make_relay(
            RELAY_PONG_TIMEOUT_MS=str(int(PONG_TIMEOUT * 1000)),
            RELAY_EMPTY_WORKSPACE_TTL_MS="300",
            RELAY_CLEANUP_INTERVAL_MS="100",
        )
    )


def test_a_newer_generation_gets_the_seat_at_once_and_the_old_one_is_closed_after_a_second(
    site: Site,
) -> None:
    old, client = site.daemon(1), site.client()
    began = time.monotonic()
    new = site.daemon(2)
    client.say(encoded("init v3"))
    assert new.hear() == encoded("init v3")
    old.say(encoded("response v3"))  # ignored
    assert old.end() == (4008, "replaced by newer daemon")
    assert time.monotonic() - began >= 0.95
    settle(client)
    assert client.heard() == []
    assert old.heard() == []
    new.say(encoded("response v3"))
    assert client.hear() == encoded("response v3")
    site.logged("REPLACED_BY_NEWER_DAEMON")


def test_an_older_generation_is_stale(site: Site) -> None:
    holder = site.daemon(5)
    began = time.monotonic()
    stale = site.daemon(4)
    assert stale.end() == (4008, "stale daemon generation")
    assert time.monotonic() - began >= 0.95  # real daemons reconnect without delay
    holder.leave()
    assert site.daemon(4).end() == (4008, "stale daemon generation")
    settle(site.daemon(5))
    site.logged("STALE_DAEMON_GENERATION")


def test_after_three_replacements_within_a_minute_a_higher_generation_waits(site: Site) -> None:
    site.daemon(1)
    for generation in (2, 3, 4):
        holder = site.daemon(generation)
    fifth = site.daemon(5)
    holder.read_for(0.1)  # answers the ping
    assert fifth.end() == (4008, "daemon already connected")
    settle(holder)
    site.client().say(encoded("init v3"))
    assert holder.hear() == encoded("init v3")


@pytest.mark.parametrize(("first", "second"), [(None, None), (3, 3), (3, None), (None, 3)])
def test_an_equal_generation_is_refused_while_the_daemon_answers_pings(
    site: Site, first: int | None, second: int | None
) -> None:
    holder, client = site.daemon(first), site.client()
    began = time.monotonic()
    other = site.daemon(second)
    other.say(encoded("e2ee"))
    holder.read_until(lambda: holder.pings, "a ping", 0.5)
    assert other.end() == (4008, "daemon already connected")
    assert time.monotonic() - began >= 0.95
    settle(holder, client)
    assert client.heard() == []
    site.logged("DAEMON_ALREADY_CONNECTED")
    assert (site.state() or {})["daemonConnected"] is True


def test_a_half_open_daemon_loses_its_seat_within_the_time_for_a_pong(site: Site) -> None:
    """A half-open connection: the peer's machine slept or changed networks."""
    old, client = site.daemon(3), site.client()
    session = site.session(old, client)
    began = time.monotonic()
    new = site.daemon(3)
    client.say(encoded("init v3", requestId="again"))
    until(lambda: site.metric("relay_ws_stale_terminated_total") >= 1, what="the old one is given up")
    assert time.monotonic() - began < PONG_TIMEOUT + 5
    client.say(encoded("init v3", requestId="once more"))
    assert new.hear() == encoded("init v3", requestId="once more")
    new.say(encoded("e2ee", sessionId=session))  # the former daemon's sessions are removed
    new.say(encoded("response v3", requestId="once more", sessionId="s2"))
    assert client.hear() == encoded("response v3", requestId="once more", sessionId="s2")
    old.answers_pings = False
    assert old.end() is None  # dropped, without a Close
    settle(new)


def test_a_waiting_daemon_gets_the_seat_when_the_other_leaves(site: Site) -> None:
    old, client = site.daemon(), site.client()
    new = site.daemon()
    old.vanish()
    client.read_for(0.1)
    client.say(encoded("init v3"))
    assert new.hear() == encoded("init v3")


def test_each_target_has_its_own_seat(site: Site, sites: Callable[..., Site]) -> None:
    one = site.daemon(9)
    two = sites(site.relay, site.workspace, "u").daemon(1)
    three = sites(site.relay).daemon(1)
    settle(one, two, three)


def test_an_empty_target_is_forgotten_after_its_time(site: Site) -> None:
    daemon = site.daemon(7)
    assert site.state() is not None
    daemon.leave()
    until(lambda: site.state() is None, what="it is listed no longer")
    settle(site.daemon(1))
