"""Rates and caps of upgrades, on one relay with small limits. Each test uses its own source addresses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.peers import Upgrade, answer_on, dial, head, target_of
from tests.integration.admission.relays import Relay

RATE, PER_IP, CLIENTS, TOTAL = 8, 4, 3, 7
_addresses = itertools.count(1)


def address() -> str:
    """A source address that is new for each call."""
    return f"127.2.0.{next(_addresses)}"


@pytest.fixture(scope="module")
def tight(platform: ControlPlane) -> Iterator[Relay]:
    settings = {
        "RELAY_MODE": "staging",
        "RELAY_RATE_LIMIT_PER_IP": str(RATE),
        "RELAY_MAX_CONNECTIONS_PER_IP": str(PER_IP),
        "RELAY_MAX_CLIENTS_PER_WORKSPACE": str(CLIENTS),
        "RELAY_MAX_TOTAL_CONNECTIONS": str(TOTAL),
        "RELAY_ADMISSION_TIMEOUT_MS": "10000",
        "RELAY_VALIDATE_CACHE_TTL": "0",
    }
    made = Relay({**platform.settings(), **settings})
    yield made.ready()
    assert made.stop() == 0
    assert made.complained == []
    assert [line for line in made.lines() if line["event"] == "internal_error"] == []


@pytest.fixture(autouse=True)
def no_connection_left(tight: Relay) -> Iterator[None]:
    """Wait until no connection is left: it would count against the caps of the next test."""
    yield
    until(lambda: open_connections(tight) == 0, what="every connection is gone")


def open_connections(relay: Relay) -> float:
    return sum(value for name, value in relay.metrics().items() if name.startswith("relay_connections_total"))


def check(relay: Relay, refused: Upgrade, status: int, code: str, text: str, level: str = "warn") -> None:
    assert (refused.status, refused.reason) == (status, code)
    assert int(refused.headers["retry-after"]) in range(1, 61)
    assert refused.json["message"] == text
    entry = relay.entry(event="refuse", connectionId=refused.json["connectionId"])
    assert (entry["reason"], entry["message"], entry["level"]) == (code, text, level)


def attempt(
    relay: Relay, platform: ControlPlane, workspace: str, source: str, role: str = "worker"
) -> Upgrade:
    return relay.upgrade(role, workspace, platform.token(role, workspace), source=source)


def test_too_many_attempts(tight: Relay, platform: ControlPlane, workspace: str) -> None:
    source = address()
    limited = tight.metrics()["relay_upgrade_rate_limited_total"]
    for number in range(RATE):  # refusals count, whatever their reason
        connection = dial(tight.port, source=source)
        connection.sendall(head("/elsewhere" if number % 2 else target_of("client", workspace)))
        assert answer_on(connection).reason == ("NOT_FOUND" if number % 2 else "TOKEN_MISSING")
    asked = len(platform.questions)
    refused = attempt(tight, platform, workspace, source)
    check(tight, refused, 429, "RATE_LIMIT_EXCEEDED", "rate limit exceeded")
    assert len(platform.questions) == asked
    assert tight.metrics()["relay_upgrade_rate_limited_total"] == limited + 1
    assert attempt(tight, platform, workspace, address()).admitted, "another address is not concerned"


def test_plain_http_does_not_count_as_an_upgrade(
    tight: Relay, platform: ControlPlane, workspace: str
) -> None:
    source = address()
    for number in range(RATE + 2):
        connection = dial(tight.port, source=source)
        connection.sendall(head("/ws" if number % 2 else "/health", {"Upgrade": None, "Connection": "close"}))
        assert answer_on(connection).status == (426 if number % 2 else 200)
    with attempt(tight, platform, workspace, source) as peer:
        assert peer.admitted


def test_the_rate_comes_before_the_caps(tight: Relay, platform: ControlPlane, workspace: str) -> None:
    source = address()
    held = [attempt(tight, platform, workspace, source) for _ in range(PER_IP)]
    codes = [attempt(tight, platform, workspace, source).reason for _ in range(RATE - PER_IP + 1)]
    assert codes == ["TOO_MANY_CONNECTIONS_PER_IP"] * (RATE - PER_IP) + ["RATE_LIMIT_EXCEEDED"]
    for peer in held:
        peer.close()


def test_connections_of_one_address(tight: Relay, platform: ControlPlane, workspace: str) -> None:
    """Executors count, and so do upgrades that wait for the platform."""
    source = address()
    held = [attempt(tight, platform, workspace, source) for _ in range(PER_IP - 1)]
    assert all(peer.admitted for peer in held)
    waiting = dial(tight.port, source=source)
    with platform.holding():
        token = platform.token("worker", workspace)
        waiting.sendall(head(target_of("worker", workspace), {"Authorization": f"Bearer {token}"}))
        until(lambda: platform.asked_about(token), what="the platform is asked")
        refused = attempt(tight, platform, workspace, source)
        check(tight, refused, 429, "TOO_MANY_CONNECTIONS_PER_IP", "too many connections from this address")
    assert answer_on(waiting).admitted
    waiting.close()
    for peer in held:
        peer.close()

    until(lambda: open_connections(tight) == 0, what="the places are free again")
    with attempt(tight, platform, workspace, source) as peer:
        assert peer.admitted


def test_clients_of_one_target(tight: Relay, platform: ControlPlane, workspace: str) -> None:
    """Targets that only the claims name count as well; daemons and other targets do not."""
    held = [attempt(tight, platform, workspace, address(), "client") for _ in range(CLIENTS - 2)]
    by_claim = platform.token("client", workspace, "t")
    held.append(tight.upgrade("client", workspace, by_claim, None, source=address()))
    waiting = dial(tight.port, source=address())
    with platform.holding():
        token = platform.token("client", workspace)
        waiting.sendall(head(target_of("client", workspace), {"Authorization": f"Bearer {token}"}))
        until(lambda: platform.asked_about(token), what="the platform is asked")
        asked = len(platform.questions)
        refused = attempt(tight, platform, workspace, address(), "client")
        check(tight, refused, 429, "TOO_MANY_CLIENTS", "too many clients for this runtime target")
        assert len(platform.questions) == asked
    assert answer_on(waiting).admitted
    late = tight.upgrade(
        "client", workspace, platform.token("client", workspace, "t"), None, source=address()
    )
    assert (late.status, late.reason) == (429, "TOO_MANY_CLIENTS")  # the claims alone name the target
    for role, target in (("workspace-daemon", "t"), ("client", "u")):
        token = platform.token(role, workspace, target)
        held.append(tight.upgrade(role, workspace, token, target, source=address()))
    assert all(peer.admitted for peer in held)
    waiting.close()
    for peer in held:
        peer.close()


def test_total_connections(tight: Relay, platform: ControlPlane, workspace: str) -> None:
    """Status 503 above RELAY_MAX_TOTAL_CONNECTIONS, waiting upgrades included, until connections end."""
    held = [attempt(tight, platform, workspace, address()) for _ in range(TOTAL - 2)]
    assert all(peer.admitted for peer in held)
    with platform.holding():
        tokens = [platform.token("client", workspace) for _ in range(2)]
        waiting = [dial(tight.port, source=address()) for _ in tokens]
        for connection, token in zip(waiting, tokens, strict=True):
            lines: dict[str, str | None] = {"Authorization": f"Bearer {token}"}
            connection.sendall(head(target_of("client", workspace), lines))
            until(lambda token=token: platform.asked_about(token), what="the platform is asked")
        refused = attempt(tight, platform, workspace, address())
        check(tight, refused, 503, "TOO_MANY_CONNECTIONS", "too many connections", "error")
        for connection in waiting:  # the peers give up
            connection.close()

        def room() -> bool:
            with dial(tight.port, source=address()) as connection:
                lines: dict[str, str | None] = {"Authorization": "Bearer not-a-token-at-all"}
                connection.sendall(head(target_of("worker", workspace), lines))
                return answer_on(connection).reason == "JWT_MALFORMED"  # not TOO_MANY_CONNECTIONS

        until(room, what="a peer that leaves while it waits gives its place back")
    for peer in held:
        peer.close()


def test_a_peer_that_leaves_during_admission_frees_its_place(
    tight: Relay, platform: ControlPlane, workspace: str
) -> None:
    refusals = [e for e in tight.logs() if e["event"] == "refuse"]
    before = tight.metrics()
    with platform.holding():
        tokens = [platform.token("client", workspace) for _ in range(3)]
        for token in tokens:
            connection = dial(tight.port, source=address())
            connection.sendall(head(target_of("client", workspace), {"Authorization": f"Bearer {token}"}))
            until(lambda token=token: platform.asked_about(token), what="the platform is asked")
            connection.close()
        # All three places of the target are free again, before the platform has responded.
        token = platform.token("client", workspace)
        last = dial(tight.port, source=address())
        last.sendall(head(target_of("client", workspace), {"Authorization": f"Bearer {token}"}))
        until(lambda: platform.asked_about(token), what="the platform is asked about the one who stays")
    with answer_on(last) as peer:
        assert peer.admitted
        status, body = tight.get("/state")
        rooms = [room for room in json.loads(body)["workspaces"] if room["workspaceId"] == workspace]
        assert [room["clientCount"] for room in rooms] == [1]
    until(lambda: open_connections(tight) == 0, what="no connection is left")
    assert [e for e in tight.logs() if e["event"] == "refuse"] == refusals
    after = tight.metrics()
    for name in ("opened", "closed"):
        full = f"relay_ws_connections_{name}_total"
        assert after[full] == before[full] + 1, full
    assert status == 200


def test_rate_limit_off(relay: Relay, source: str, workspace: str) -> None:
    """RELAY_RATE_LIMIT_PER_IP=0 turns the rate limit off."""
    connections = []
    for _ in range(150):  # more than the default
        connections.append(dial(relay.port, source=source))
        connections[-1].sendall(head(target_of("client", workspace)))
    assert {answer_on(connection).reason for connection in connections} == {"TOKEN_MISSING"}
