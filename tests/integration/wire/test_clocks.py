"""Heartbeats, idle peers and shutdown in real time, with short intervals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.drill.relay import until
from tests.integration.admission.relays import Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import Site, settle
from tests.memorywire import PONG, masked_frame
from tests.wireframes import encoded

PING_EVERY, PONG_WITHIN = 0.2, 0.7


@pytest.fixture(scope="module")
def relay(make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(
        make_relay(
            RELAY_PING_INTERVAL_MS=str(int(PING_EVERY * 1000)),
            RELAY_PONG_TIMEOUT_MS=str(int(PONG_WITHIN * 1000)),
        )
    )


def test_a_peer_that_answers_pings_stays(site: Site) -> None:
    client = site.client()
    client.read_for(4 * PONG_WITHIN)
    assert len(client.pings) >= 4
    settle(client)


def test_a_peer_without_pongs_is_dropped_without_a_close(site: Site) -> None:
    before = site.metric("relay_ws_stale_terminated_total")
    client = site.client()
    client.answers_pings = False
    began = time.monotonic()
    assert client.end() is None
    assert time.monotonic() - began + PING_EVERY >= PONG_WITHIN
    assert len(client.pings) >= 2  # the time limit starts at the first of them
    site.logged("PONG_TIMEOUT")
    assert site.metric("relay_ws_stale_terminated_total") == before + 1


def test_any_frame_counts_as_a_sign_of_life(site: Site) -> None:
    client = site.client()
    client.answers_pings = False
    for _ in range(12):
        client.read_for(PONG_WITHIN / 4)
        client.raw(masked_frame(PONG, b"unsolicited"))
    settle(client)
    assert not client.ended


def test_a_half_open_daemon_is_found_by_the_heartbeat(site: Site) -> None:
    """The test does not read the daemon's socket, so the daemon sends no pong."""
    site.daemon()
    client = site.client()
    until(
        lambda: (site.state() or {}).get("daemonConnected") is False or client.read_for(0.05),
        what="its seat is free",
    )
    client.read_for(0.05)
    client.say(encoded("e2ee"))
    assert b"DAEMON_UNAVAILABLE" in client.hear()


def test_no_time_out_while_the_relay_does_not_read_a_client(site: Site) -> None:
    """The relay has paused the client, because the daemon is slow; the client's pongs cannot arrive."""
    daemon, client = site.daemon(receive_buffer=4096), site.client()
    client.answers_pings = False
    client.socket.settimeout(0.3)
    frame = encoded("e2ee", ciphertext="c" * 200_000)
    sent = 0
    while client.try_frame(frame):
        sent += 1
        assert sent < 500
    for _ in range(int(3 * PONG_WITHIN / 0.1)):
        time.sleep(0.1)
        daemon.raw(masked_frame(PONG, b"I live"))
    assert (site.state() or {})["clientCount"] == 1
    assert (site.state() or {})["daemonConnected"] is True


def test_an_idle_peer_is_dropped(make_relay: Callable[..., Relay], sites: Callable[..., Site]) -> None:
    for made in checked(make_relay(RELAY_IDLE_TIMEOUT_MS="500", RELAY_PING_INTERVAL_MS="60000")):
        site = sites(made)
        client, busy = site.client(), site.client()
        for _ in range(10):
            busy.raw(masked_frame(PONG, b""))
            busy.read_for(0.1)
        assert client.end() is None
        site.logged("IDLE_TIMEOUT")
        assert site.metric("relay_ws_idle_terminated_total") == 1
        settle(busy)
        site.everybody_leaves()


# -- shutdown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_closes_every_peer_and_ends_with_status_0(
    number: signal.Signals, make_relay: Callable[..., Relay], sites: Callable[..., Site]
) -> None:
    relay = make_relay(RELAY_DRAIN_SECONDS="10").ready()
    site = sites(relay)
    daemon, client, viewer, worker = site.daemon(), site.client(), site.viewer(), site.worker()
    session = site.session(daemon, client)
    frames = [encoded("e2ee", sessionId=session, seq=seq) for seq in range(1, 200)]
    daemon.say(*frames)
    settle(daemon)
    began = time.monotonic()
    relay.process.send_signal(number)
    for peer in (daemon, viewer, worker, client):
        assert peer.end() == (1001, "relay shutting down")
    assert client.heard() == frames  # queued frames came first
    assert relay.ended() == 0
    assert time.monotonic() - began < 8  # the drain ends with the last peer
    assert relay.complained == []


def test_a_drain_waits_for_an_unanswered_close_until_its_end(
    make_relay: Callable[..., Relay], sites: Callable[..., Site]
) -> None:
    relay = make_relay(RELAY_DRAIN_SECONDS="1").ready()
    site = sites(relay)
    deaf, good = site.client(), site.client()
    began = time.monotonic()
    relay.process.send_signal(signal.SIGTERM)
    assert good.end() == (1001, "relay shutting down")
    assert relay.ended() == 0
    assert 0.9 <= time.monotonic() - began < 8
    assert deaf.end() == (1001, "relay shutting down")  # sent, though not read
