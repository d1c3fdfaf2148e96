"""RELAY_TOKEN_EXPIRY over real sockets: the connection's end, and the reaction of reference peers."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.relays import ADMIN_TOKEN, Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import CLIENT, Site, settle
from tests.wireframes import encoded
from viewport_relay.peer.connection import Connection
from viewport_relay.peer.reconnect import stay_connected
from viewport_relay.peer.upgrade import Closed, Destination

#: Lifetime of these tests' tokens in seconds; `exp` has whole seconds.
LIFE = 2


@pytest.fixture(scope="module")
def relay(make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(make_relay(RELAY_TOKEN_EXPIRY="close", RELAY_TOKEN_CLOCK_SKEW_SEC="0"))


def soon() -> int:
    return int(time.time()) + LIFE


def test_every_role_is_closed_when_its_token_expires(site: Site) -> None:
    lasting = site.client()
    peers = [
        site.daemon(exp=soon()),
        site.client(exp=soon()),
        site.viewer(exp=soon()),
        site.worker(exp=soon()),
    ]
    began = time.time()
    for peer in peers:
        assert peer.end() == (4401, "invalid_token")
    assert time.time() - began < LIFE + 3
    site.logged("TOKEN_EXPIRED")
    settle(lasting)


def test_ignored_by_default(make_relay: Callable[..., Relay], sites: Callable[..., Site]) -> None:
    for relay in checked(make_relay(RELAY_TOKEN_CLOCK_SKEW_SEC="0")):
        site = sites(relay)
        daemon, client = site.daemon(exp=soon()), site.client(exp=soon())
        time.sleep(LIFE + 1.5)
        client.say(encoded("e2ee"))
        assert daemon.hear() == encoded("e2ee")
        site.everybody_leaves()


def test_an_operator_ends_the_connections_of_one_token(site: Site, relay: Relay) -> None:
    one, other = site.client(jti="token 1"), site.client(jti="token 2")

    def disconnect(token_id: str) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{relay.port}/disconnect",
            json.dumps({"tokenId": token_id}).encode(),
            {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    assert disconnect("token 1") == {"ok": True, "disconnected": 1}
    assert one.end() == (4008, "disconnected by operator")
    assert disconnect("token 1") == {"ok": True, "disconnected": 0}
    settle(other)


@pytest_twisted.ensureDeferred
async def test_a_reference_peer_reconnects_with_a_new_token(relay: Relay, platform: ControlPlane) -> None:
    given: list[str] = []
    opened: list[Connection] = []
    losses: list[Closed] = []

    def open_again(connection: Connection) -> None:
        opened.append(connection)
        connection.closed.addCallback(lambda closed: losses.append(closed) or closed)

    async def token() -> str:
        given.append(platform.token(CLIENT, "reconnecting", "t", exp=soon(), clientId="c"))
        return given[-1]

    destination = Destination(f"ws://127.0.0.1:{relay.port}", CLIENT, "reconnecting", "t")
    ended: Deferred[Closed] = ensureDeferred(
        stay_connected(
            reactor, destination, token, lambda text: None, open_again, pauses=lambda _: 0.05, stable=0.5
        )
    )
    deadline = time.monotonic() + 20
    while len(opened) < 3 and time.monotonic() < deadline:
        await deferLater(reactor, 0.05, lambda: None)
    assert len(opened) == len(given) == 3
    assert losses == [Closed(4401, "invalid_token")] * 2
    opened[2].close()
    assert (await ended).code == 1000
