"""All rates over real sockets: frames within the limit arrive, then one RATE_LIMITED frame, then the close."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.admission.relays import Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import CHANNEL, Gone, Peer, Site, settle
from tests.wireframes import encoded


@pytest.fixture(scope="module")
def relay(make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(
        make_relay(
            RELAY_KEX_INIT_RATE_PER_MINUTE="3",
            RELAY_PAIRING_RATE_PER_MINUTE="2",
            RELAY_RUNTIME_RATE_PER_MINUTE="4",
            RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE="9",
            RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE="12",
        )
    )


def limited(peer: Peer, site: Site, text: str) -> None:
    """The peer gets one RATE_LIMITED frame and the Close."""
    status: dict[str, Any] = json.loads(peer.hear())
    assert 1 <= status.pop("retryAfterMs") <= 60_000
    assert status == {
        "type": "relay_status",
        "code": "RATE_LIMITED",
        "message": "rate limit exceeded",
        "workspaceId": site.workspace,
    }
    assert peer.end() == (4008, text)
    assert peer.heard() == []
    logged(site, text)


def logged(site: Site, text: str) -> None:
    """Each entry of this reason names the limit that was exceeded: the setting with its value and default, or bytes."""
    for entry in site.logged(text.upper().replace(" ", "_")):
        detail = entry["details"]["detail"]
        assert re.fullmatch(
            r"RELAY_\w+=\d+ \(default \d+\) a minute|4194304 bytes a minute of frames.*", detail
        ), detail


#: scope, frame, number of frames within the limit, text of the close
CLIENTS: list[tuple[str, str, int, str]] = [
    ("runtime", "init v3", 3, "key exchange rate limit exceeded"),
    ("runtime", "e2ee", 4, "runtime rate limit exceeded"),
    ("pairing", "redeem request", 2, "pairing rate limit exceeded"),
]


@pytest.mark.parametrize(("scope", "name", "most", "text"), CLIENTS)
def test_a_clients_rate_and_its_reconnect(site: Site, scope: str, name: str, most: int, text: str) -> None:
    daemon, client = site.daemon(), site.client(scope, clientId="c")
    frames = [encoded(name, n=number) for number in range(most + 3)]
    client.say(*frames)
    limited(client, site, text)
    assert daemon.hear_all(most) == frames[:most]
    again = site.client(scope, clientId="c")  # a reconnect does not reset the rate
    again.say(encoded(name))
    limited(again, site, text)
    other = site.client(scope, clientId="d")
    other.say(encoded(name, requestId="other"))
    assert daemon.hear() == encoded(name, requestId="other")


def test_presence_is_charged_to_the_runtime_rate(site: Site) -> None:
    watcher, viewer = site.viewer(), site.viewer(clientId="c")
    watcher.say(encoded("subscribe"))
    watcher.hear()
    frames = [encoded("presence", userId=f"u{number}") for number in range(6)]
    viewer.say(*frames)
    limited(viewer, site, "presence rate limit exceeded")
    assert watcher.hear_all(4) == frames[:4]
    again = site.viewer(CHANNEL, "agent-session:b", clientId="c")
    again.say(encoded("presence", channel="agent-session:elsewhere"))  # denied frames count too
    limited(again, site, "presence rate limit exceeded")


@pytest.mark.parametrize(
    "frame", [b"not a frame", b'{"type":"unknown"}', encoded("subscribe"), encoded("e2ee")], ids=str
)
def test_frames_that_the_relay_answers_count_too(site: Site, frame: bytes) -> None:
    viewer = site.viewer(clientId="c")
    viewer.say(*[frame] * 6)
    viewer.hear_all(4)
    limited(viewer, site, "runtime rate limit exceeded")


def test_a_flood_of_invalid_frames_is_closed(site: Site) -> None:
    client = site.client(clientId="c")
    client.say(*[b"[" + b"1," * 520_000 + b"1]"] * 3, b"x" * 1_000_000, encoded("e2ee", x="y" * 100_000))
    client.hear_all(4)
    again = site.client(clientId="c")
    again.say(b"x" * 200_000)
    limited(again, site, "runtime rate limit exceeded")


def test_all_clients_of_a_workspace_share_one_rate(site: Site, sites: Callable[..., Site]) -> None:
    daemon = site.daemon()
    elsewhere = sites(site.relay, site.workspace, "u")
    far = elsewhere.client()
    far.say(*[encoded("e2ee")] * 4)  # without a daemon, frames count for the sender's rate only
    far.hear_all(4)
    one, two, three = site.client(), site.client(), site.client()
    for client, name in ((one, "one"), (two, "two")):
        client.say(*[encoded("e2ee", sessionId=name)] * 4)
        daemon.hear_all(4)
    three.say(*[encoded("e2ee", sessionId="three")] * 3)
    limited(three, site, "runtime rate limit exceeded")
    assert daemon.hear() == encoded("e2ee", sessionId="three")
    stranger = sites(site.relay).client()
    stranger.say(encoded("e2ee"))
    assert b"DAEMON_UNAVAILABLE" in stranger.hear()


def test_key_exchanges_are_not_charged_to_the_runtime_rate(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    client.say(*[encoded("init v3", n=number) for number in range(3)])
    client.say(*[encoded("e2ee", n=number) for number in range(4)])
    daemon.hear_all(7)
    settle(client)


def test_a_daemons_rate(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    site.session(daemon, client)
    frames = [encoded("e2ee", n=number) for number in range(15)]
    daemon.say(b"not a frame, but charged", *frames)
    assert daemon.end() == (4008, "daemon rate limit exceeded")
    assert daemon.heard() == []
    assert client.hear_all(10) == frames[:10]  # the session's response and the invalid frame count too
    settle(client)
    assert client.heard() == []
    logged(site, "daemon rate limit exceeded")
    with pytest.raises(Gone):
        again = site.daemon()
        again.say(encoded("e2ee"))
        again.hear()


def test_a_workers_rate(sites: Callable[..., Site], relay: Relay) -> None:
    site = sites(relay)
    worker = site.worker()
    path = f"/api/runtime/workspaces/{site.workspace}/managed-executors/y"
    worker.say(*[encoded("worker request", requestId=str(number), path=path) for number in range(14)])
    assert [json.loads(answer)["requestId"] for answer in worker.hear_all(12)] == [str(n) for n in range(12)]
    assert worker.end() == (4008, "worker rate limit exceeded")
    logged(site, "worker rate limit exceeded")
    daemon = site.daemon()  # a daemon has its own rate
    daemon.say(*[encoded("e2ee")] * 12)
    settle(daemon)


def test_a_client_without_a_client_id_is_counted_by_its_token(site: Site) -> None:
    """A reconnect with the same token keeps the budget; another token has its own."""
    daemon = site.daemon()

    def client(token_id: str) -> Peer:
        return site.join("client", scope="runtime", jti=token_id)

    first = client("token 1")
    first.say(*[encoded("e2ee")] * 6)
    limited(first, site, "runtime rate limit exceeded")
    daemon.hear_all(4)
    again = client("token 1")
    again.say(encoded("e2ee"))
    limited(again, site, "runtime rate limit exceeded")
    client("token 2").say(encoded("e2ee", sessionId="another"))
    assert daemon.hear() == encoded("e2ee", sessionId="another")
