"""Routing over real sockets: owners of sessions, hijacks, late responses, separate workspaces."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.wire.site import CLIENT, DAEMON, Peer, Site, settle
from tests.memorywire import TEXT, masked_frame
from tests.wireframes import encoded


def code_of(message: bytes) -> str:
    return str(json.loads(message)["code"])


def test_two_workspaces_at_once_and_no_frame_crosses(site: Site, sites: Callable[..., Site]) -> None:
    """Equal ids in two workspaces, many frames at once, three targets: each peer gets its own frames, in order."""
    places = [site, sites(site.relay), sites(site.relay, site.workspace, "u")]
    rooms: list[tuple[Site, Peer, list[Peer]]] = []
    for place in places:
        daemon, clients = place.daemon(), [place.client(clientId="same"), place.client(clientId="other")]
        for number, client in enumerate(clients):
            place.session(daemon, client, f"session-{number}")
        rooms.append((place, daemon, clients))
    chosen = random.Random(7)
    sent: dict[tuple[int, int, str], list[bytes]] = {}
    for seq in range(1, 121):
        where, number = chosen.randrange(3), chosen.randrange(2)
        _, daemon, clients = rooms[where]
        up = encoded("e2ee", sessionId=f"session-{number}", seq=seq, room=where, up=True)
        down = encoded(
            "e2ee", sessionId=f"session-{number}", seq=seq, room=where, up=False, pad="x" * (seq * 37)
        )
        clients[number].say(up)
        daemon.say(down)
        sent.setdefault((where, number, "up"), []).append(up)
        sent.setdefault((where, number, "down"), []).append(down)
    settle(*[peer for _, daemon, clients in rooms for peer in (daemon, *clients)])
    for where, (_, daemon, clients) in enumerate(rooms):
        for number, client in enumerate(clients):
            assert client.heard() == sent[where, number, "down"]
        got = daemon.heard()
        for number in range(2):
            own = [m for m in got if json.loads(m)["sessionId"] == f"session-{number}"]
            assert own == sent[where, number, "up"]
        assert len(got) == sum(len(sent[where, number, "up"]) for number in range(2))


def test_a_request_id_in_use_cannot_be_taken_over(site: Site) -> None:
    daemon, owner, thief = site.daemon(), site.client(), site.client()
    owner.say(encoded("init v3"))
    daemon.hear()
    thief.say(encoded("init v3", requestId=" request-1 ", n=1))
    settle(thief, daemon)
    assert daemon.heard() == []
    daemon.say(encoded("response v3"))
    assert owner.hear() == encoded("response v3")
    settle(daemon, thief)
    assert thief.heard() == []
    [entry] = site.logged("REQUEST_ID_CONFLICT")
    assert entry["details"]["role"] == CLIENT
    pair, other = site.client("pairing"), site.client("pairing")
    pair.say(encoded("offer request"))
    daemon.hear()
    other.say(encoded("redeem request"))
    settle(other, daemon)
    assert daemon.heard() == []
    daemon.say(encoded("redeem response"), encoded("redeem response"))
    assert pair.hear() == encoded("redeem response")
    settle(daemon, pair, other)
    assert pair.heard() == other.heard() == []


def test_a_session_cannot_be_hijacked(site: Site) -> None:
    daemon, owner, thief = site.daemon(), site.client(), site.client()
    session = site.session(daemon, owner)
    thief.say(encoded("e2ee", sessionId=session))
    settle(thief, daemon)
    assert daemon.heard() == []
    site.logged("SESSION_NOT_OWNED")
    # Nor does a daemon's frame give the session away.
    thief.say(encoded("init v3", requestId="theft"))
    daemon.hear()
    daemon.say(
        encoded("response v3", requestId="theft", sessionId=session), encoded("e2ee", sessionId=session)
    )
    assert owner.hear() == encoded("e2ee", sessionId=session)
    settle(daemon, thief, owner)
    assert thief.heard() == owner.heard() == []
    settle(thief)  # no connection is closed


@pytest.mark.parametrize("how", ["leave", "vanish"])
def test_responses_to_a_client_that_has_left_are_dropped(site: Site, how: str) -> None:
    daemon, client, other = site.daemon(), site.client(clientId="c"), site.client()
    session = site.session(daemon, client)
    client.say(encoded("init v3", requestId="pending"))
    daemon.hear()
    getattr(client, how)()
    settle(daemon, other)
    again = site.client(clientId="c")
    daemon.say(
        encoded("response v3", requestId="pending", sessionId="late"),
        encoded("e2ee", sessionId=session),
        encoded("e2ee", sessionId="late"),
        encoded("key update", sessionId=session),
    )
    settle(daemon, again, other)
    assert again.heard() == other.heard() == daemon.heard() == []
    site.session(daemon, again, session)  # and the session id can be used anew


def test_without_a_daemon(site: Site) -> None:
    client, named = site.client(), site.client(machineId="machine-9")
    client.say(encoded("e2ee"))
    expected: dict[str, Any] = {
        "type": "relay_status",
        "code": "DAEMON_UNAVAILABLE",
        "message": "No machine runtime is connected for this runtime target",
        "workspaceId": site.workspace,
        "retryable": True,
        "runtimeTargetId": "t",
    }
    assert json.loads(client.hear()) == expected
    named.say(encoded("init v3"))
    assert json.loads(named.hear()) == {**expected, "machineId": "machine-9"}
    daemon = site.daemon()
    daemon.vanish()
    client.read_for(0.1)
    client.say(encoded("e2ee"))
    assert json.loads(client.hear()) == expected


def test_pairing_without_a_target(site: Site, sites: Callable[..., Site]) -> None:
    homeless = sites(site.relay, site.workspace, None).client("pairing")
    homeless.say(encoded("offer request"))
    assert json.loads(homeless.hear()) == {
        "type": "relay_status",
        "code": "RUNTIME_TARGET_REQUIRED",
        "message": "Runtime client must specify a runtime target",
        "workspaceId": site.workspace,
        "retryable": False,
    }
    # The claim alone may name the target.
    daemon, placed = site.daemon(), site.client("pairing", query_target=None)
    placed.say(encoded("offer request"))
    assert daemon.hear() == encoded("offer request")


def test_a_daemon_or_runtime_client_without_a_target_is_closed(
    site: Site, sites: Callable[..., Site]
) -> None:
    nowhere = sites(site.relay, site.workspace, None)
    for peer in (
        nowhere.join(DAEMON),
        nowhere.join(CLIENT, scope="runtime"),
        nowhere.join(CLIENT, scope="session-events"),
    ):
        assert code_of(peer.hear()) == "RUNTIME_TARGET_REQUIRED"
        assert peer.end() == (4008, "missing runtime target claim")


@pytest.mark.parametrize(
    "bad", [b"", b"no json", b"[1]", b'{"type":"x"}', encoded("response v3"), encoded("e2ee", seq=True)]
)
def test_a_clients_invalid_frame_is_answered_and_a_daemons_dropped(site: Site, bad: bytes) -> None:
    daemon, client = site.daemon(), site.client()
    client.say(bad)
    assert json.loads(client.hear()) == {
        "type": "relay_status",
        "code": "INVALID_FRAME",
        "message": "client frame must be a valid runtime or pairing control frame",
        "workspaceId": site.workspace,
    }
    daemon.say(bad if bad != encoded("response v3") else encoded("init v3"))
    site.logged("INVALID_FRAME")
    settle(daemon, client)
    assert daemon.heard() == client.heard() == []
    site.session(daemon, client)


def test_frames_before_the_answer_to_the_upgrade_are_kept(site: Site) -> None:
    daemon = site.daemon()
    frames = [encoded("e2ee", seq=seq, sessionId="early") for seq in range(1, 30)]
    client = site.join(CLIENT, scope="runtime", early=b"".join(masked_frame(TEXT, frame) for frame in frames))
    client.say(encoded("e2ee", seq=30, sessionId="early"))
    assert daemon.hear_all(30) == [*frames, encoded("e2ee", seq=30, sessionId="early")]


# -- profiles of the connection's grant ---------------------------------------------------------------------------

STRICT: dict[str, Any] = {"policyMode": "crypto_pairing"}


@pytest.mark.parametrize(
    ("claims", "name", "named", "reason"),
    [
        (STRICT, "init v3", "noise-ik", "NOISE_INVALID_PSK"),
        (STRICT, "init v2", "noise-ik", "NOISE_INVALID_PSK"),
        ({"e2eeProfile": "noise-ikpsk2"}, "init v3", "noise-ik", "NOISE_INVALID_PSK"),
        (STRICT, "e2ee", "noise-ik", "CLIENT_FRAME_PROFILE_MISMATCH"),
        ({"e2eeProfile": "noise-ik"}, "init v3", "noise-ikpsk2", "CLIENT_FRAME_PROFILE_MISMATCH"),
        ({"e2eeProfile": "noise-ik"}, "e2ee", "noise-ikpsk2", "CLIENT_FRAME_PROFILE_MISMATCH"),
    ],
)
def test_a_client_that_names_another_profile(
    site: Site, claims: dict[str, Any], name: str, named: str, reason: str
) -> None:
    daemon, client = site.daemon(), site.client(**claims)
    client.say(encoded(name, profile=named, pairingPeerId="p"))
    assert client.end() == (4008, "client frame profile mismatch")
    [entry] = site.logged(reason)
    if reason == "NOISE_INVALID_PSK":
        assert entry["message"] == "Noise handshake failed: invalid psk"
    settle(daemon)
    assert daemon.heard() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("response v3", "NOISE_INVALID_PSK"),
        ("response v2", "NOISE_INVALID_PSK"),
        ("e2ee", "DAEMON_FRAME_PROFILE_MISMATCH"),
    ],
)
def test_a_daemon_that_names_a_weaker_profile(site: Site, name: str, reason: str) -> None:
    daemon, client = site.daemon(**STRICT), site.client()
    session = site.session_strong(daemon, client) if name == "e2ee" else ""
    client.say(encoded("init v3", requestId="again"))
    daemon.hear()
    daemon.say(encoded(name, requestId="again", sessionId=session or "s"))
    assert daemon.end() == (4008, "daemon frame profile mismatch")
    site.logged(reason)
    settle(client)
    assert client.heard() == []


def test_a_stronger_profile_than_demanded_is_welcome_from_a_daemon(site: Site) -> None:
    daemon, client = site.daemon(e2eeProfile="noise-ik"), site.client()
    site.session_strong(daemon, client)
    frame = encoded("e2ee", profile="noise-ikpsk2")
    daemon.say(frame)
    assert client.hear() == frame
