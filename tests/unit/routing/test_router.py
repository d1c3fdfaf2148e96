"""Router: every rule of section 2 of the wire protocol, as tables of frames and decisions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.routing.house import NO_LIMIT, House, limits
from tests.wireframes import encoded
from viewport_relay.protocol.decoding import decode_client, decode_daemon
from viewport_relay.protocol.frames import E2ee, KeyExchangeInit, PairingRequest
from viewport_relay.protocol.grant import Profile, Role, Scope
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import (
    Close,
    Decision,
    Drop,
    FanOut,
    NoDaemon,
    Publish,
    Reply,
)
from viewport_relay.routing.model import Peer
from viewport_relay.routing.rates import FrameRates

CHANNEL = "agent-session:alpha"


def from_client(house: House, peer: Peer, name: str | None, **changes: Any) -> Peer | Decision:
    """The router's decision on a client's example frame; None stands for an invalid frame."""
    message = b"no frame" if name is None else encoded(name, **changes)
    frame = decode_client(message)
    assert (frame is None) == (name is None)
    return house.router.client_frame(peer, frame, message, house.now)


def from_daemon(house: House, peer: Peer, name: str | None, **changes: Any) -> Peer | Decision:
    """The router's decision on a daemon's example frame."""
    frame = None if name is None else decode_daemon(encoded(name, **changes))
    assert (frame is None) == (name is None)
    return house.router.daemon_frame(peer, frame, house.now)


def reply_code(verdict: object) -> str:
    assert isinstance(verdict, Reply)
    members = json.loads(verdict.text)
    return str(members.get("code") or members["type"])


# -- scopes ---------------------------------------------------------------------------------------------------

FORWARDED = "forwarded"
SCOPES: dict[tuple[Scope, str | None], object] = {
    (Scope.RUNTIME, "e2ee"): FORWARDED,
    (Scope.RUNTIME, "init v3"): FORWARDED,
    (Scope.RUNTIME, "init v2"): FORWARDED,
    (Scope.RUNTIME, "offer request"): Reason.RUNTIME_SCOPE_ONLY,
    (Scope.RUNTIME, "redeem request"): Reason.RUNTIME_SCOPE_ONLY,
    (Scope.RUNTIME, "subscribe"): Reason.SESSION_EVENTS_SCOPE_REQUIRED,
    (Scope.RUNTIME, "unsubscribe"): Reason.SESSION_EVENTS_SCOPE_REQUIRED,
    (Scope.RUNTIME, "presence"): Reason.SESSION_EVENTS_SCOPE_REQUIRED,
    (Scope.RUNTIME, None): "INVALID_FRAME",
    (Scope.PAIRING, "e2ee"): Reason.PAIRING_SCOPE_ONLY,
    (Scope.PAIRING, "init v3"): Reason.PAIRING_SCOPE_ONLY,
    (Scope.PAIRING, "init v2"): Reason.PAIRING_SCOPE_ONLY,
    (Scope.PAIRING, "offer request"): FORWARDED,
    (Scope.PAIRING, "redeem request"): FORWARDED,
    (Scope.PAIRING, "subscribe"): Reason.SESSION_EVENTS_SCOPE_REQUIRED,
    (Scope.PAIRING, "unsubscribe"): Reason.SESSION_EVENTS_SCOPE_REQUIRED,
    (Scope.PAIRING, "presence"): Reason.SESSION_EVENTS_SCOPE_REQUIRED,
    (Scope.PAIRING, None): "INVALID_FRAME",
    (Scope.SESSION_EVENTS, "e2ee"): "SESSION_EVENTS_SCOPE_ONLY",
    (Scope.SESSION_EVENTS, "init v3"): "SESSION_EVENTS_SCOPE_ONLY",
    (Scope.SESSION_EVENTS, "init v2"): "SESSION_EVENTS_SCOPE_ONLY",
    (Scope.SESSION_EVENTS, "offer request"): "SESSION_EVENTS_SCOPE_ONLY",
    (Scope.SESSION_EVENTS, "redeem request"): "SESSION_EVENTS_SCOPE_ONLY",
    (Scope.SESSION_EVENTS, "subscribe"): "viewport.session_events.subscribed/v1",
    (Scope.SESSION_EVENTS, "unsubscribe"): "viewport.session_events.unsubscribed/v1",
    (Scope.SESSION_EVENTS, "presence"): FanOut((), lossy=True),
    (Scope.SESSION_EVENTS, None): "INVALID_FRAME",
}


@pytest.mark.parametrize(("scope", "name"), SCOPES)
def test_what_each_scope_may_send(scope: Scope, name: str | None) -> None:
    house = House()
    daemon, client = house.daemon(), house.client(scope, session_channels=frozenset({CHANNEL}))
    verdict, expected = from_client(house, client, name), SCOPES[scope, name]
    if expected == FORWARDED:
        assert verdict is daemon
    elif isinstance(expected, Reason):
        assert verdict == Close(expected)
    elif isinstance(expected, str):
        assert reply_code(verdict) == expected
    else:
        assert verdict == expected


@pytest.mark.parametrize("name", ["e2ee", "init v3", "init v2"])
def test_a_runtime_frame_without_daemon(name: str) -> None:
    house = House()
    client = house.client()
    assert isinstance(from_client(house, client, name), NoDaemon)
    assert (len(house.target.key_exchanges), len(house.target.sessions)) == (0, 0)


def test_pairing_without_daemon_or_without_target() -> None:
    house = House()
    assert from_client(house, house.client(Scope.PAIRING), "offer request") == NoDaemon(
        PairingRequest("request-1")
    )
    house.daemon()
    homeless = house.client(Scope.PAIRING, target=None)
    assert reply_code(from_client(house, homeless, "offer request")) == "RUNTIME_TARGET_REQUIRED"
    assert reply_code(from_client(house, homeless, "redeem request")) == "RUNTIME_TARGET_REQUIRED"


# -- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_a_key_exchange_has_one_response(version: str) -> None:
    house = House()
    daemon, asker, other = house.daemon(), house.client(), house.client()
    assert from_client(house, asker, f"init {version}") is daemon
    assert from_daemon(house, daemon, f"response {version}", requestId=" request-1 ") is asker
    assert house.target.sessions.owner("session-1", house.now) is asker
    again = from_daemon(house, daemon, f"response {version}", sessionId="session-2")
    assert again == Drop(Reason.NO_OWNER, "key exchange response")
    assert house.target.sessions.owner("session-2", house.now) is None
    assert other in house.target.clients


@pytest.mark.parametrize("request_name", ["offer request", "redeem request"])
@pytest.mark.parametrize("response", ["offer response", "offer failure", "redeem response", "redeem failure"])
def test_within_pairing_the_types_need_not_match(request_name: str, response: str) -> None:
    house = House()
    daemon, asker = house.daemon(), house.client(Scope.PAIRING)
    house.client(Scope.PAIRING)
    assert from_client(house, asker, request_name) is daemon
    assert from_daemon(house, daemon, response) is asker
    assert from_daemon(house, daemon, response) == Drop(Reason.NO_OWNER)


def test_key_exchanges_and_pairings_have_separate_tables() -> None:
    house = House()
    daemon, runtime, pairing = house.daemon(), house.client(), house.client(Scope.PAIRING)
    assert from_client(house, runtime, "init v3") is daemon
    assert from_client(house, pairing, "offer request") is daemon
    assert from_daemon(house, daemon, "offer response") is pairing
    assert from_daemon(house, daemon, "response v3") is runtime


def test_a_pending_request_id_cannot_be_taken_over() -> None:
    house = House()
    daemon, first, thief = house.daemon(), house.client(), house.client()
    assert from_client(house, first, "init v3") is daemon
    assert from_client(house, thief, "init v3", requestId=" request-1") == Drop(
        Reason.REQUEST_ID_CONFLICT, "key exchange"
    )
    assert from_client(house, first, "init v3") is daemon  # the owner may repeat the request
    assert from_daemon(house, daemon, "response v3") is first
    assert from_client(house, thief, "init v3") is daemon  # the id is free after the response

    pairing, thief = house.client(Scope.PAIRING), house.client(Scope.PAIRING)
    assert from_client(house, pairing, "redeem request") is daemon
    assert from_client(house, thief, "offer request") == Drop(Reason.REQUEST_ID_CONFLICT, "pairing")
    assert from_daemon(house, daemon, "redeem response") is pairing


def test_an_empty_request_id_is_forwarded_and_not_recorded() -> None:
    house = House()
    daemon, first, second = house.daemon(), house.client(), house.client()
    for client in (first, second):
        for blank in ("", " \u00a0"):
            assert from_client(house, client, "init v3", requestId=blank) is daemon
    assert len(house.target.key_exchanges) == 0


def test_requests_and_sessions_expire() -> None:
    house = House()
    daemon, client = house.daemon(), house.client()
    from_client(house, client, "init v3")
    house.now += 120
    assert from_daemon(house, daemon, "response v3") == Drop(Reason.NO_OWNER, "key exchange response")
    from_client(house, client, "init v3")
    assert from_daemon(house, daemon, "response v3") is client
    for seconds in (1799, 1799):  # each use restarts the half hour
        house.now += seconds
        assert from_daemon(house, daemon, "e2ee") is client
    house.now += 1799
    assert from_client(house, client, "e2ee") is daemon
    house.now += 1800
    assert from_daemon(house, daemon, "e2ee") == Drop(Reason.NO_OWNER)


def test_the_tables_are_bounded() -> None:
    house = House(most_requests=3, most_sessions=2)
    daemon, client, pairing = house.daemon(), house.client(), house.client(Scope.PAIRING)
    for number in range(10):
        from_client(house, client, "init v3", requestId=f"r{number}")
        from_client(house, pairing, "offer request", requestId=f"r{number}")
        assert len(house.target.key_exchanges) <= 3
        assert len(house.target.pairings) <= 3
    assert from_daemon(house, daemon, "response v3", requestId="r6") == Drop(
        Reason.NO_OWNER, "key exchange response"
    )
    for number in (7, 8, 9):
        house.now += 1
        assert (
            from_daemon(house, daemon, "response v3", requestId=f"r{number}", sessionId=f"s{number}")
            is client
        )
        assert len(house.target.sessions) <= 2
    assert from_daemon(house, daemon, "e2ee", sessionId="s7") == Drop(Reason.NO_OWNER)
    assert from_daemon(house, daemon, "e2ee", sessionId="s8") is client


# -- sessions ---------------------------------------------------------------------------------------------------------


def with_session(house: House, session: str = "session-1", **claims: Any) -> tuple[Peer, Peer]:
    """A daemon and a client that owns a session."""
    daemon = house.target.daemon or house.daemon()
    client = house.client(**claims)
    assert from_client(house, client, "init v3", requestId=session) is daemon
    assert from_daemon(house, daemon, "response v3", requestId=session, sessionId=session) is client
    return daemon, client


@pytest.mark.parametrize("name", ["e2ee", "key update"])
def test_a_daemons_frame_reaches_the_owner_only(name: str) -> None:
    house = House()
    daemon, one = with_session(house, "one")
    _, two = with_session(house, "two")
    assert from_daemon(house, daemon, name, sessionId="one") is one
    assert from_daemon(house, daemon, name, sessionId="two") is two
    for unknown in ("three", " one", "ONE"):
        assert from_daemon(house, daemon, name, sessionId=unknown) == Drop(Reason.NO_OWNER)


def test_a_frame_for_a_session_of_another_client_is_dropped() -> None:
    house = House()
    daemon, owner = with_session(house)
    thief = house.client()
    assert from_client(house, owner, "e2ee") is daemon
    verdict = from_client(house, thief, "e2ee")
    assert isinstance(verdict, Drop)
    assert verdict.reason is Reason.SESSION_NOT_OWNED
    assert (
        from_client(house, thief, "e2ee", sessionId="without-owner") is daemon
    )  # an unknown session is forwarded; the daemon refuses it
    assert from_daemon(house, daemon, "e2ee", sessionId="without-owner") == Drop(Reason.NO_OWNER)


def test_a_daemon_cannot_reassign_an_owned_session() -> None:
    house = House()
    daemon, owner = with_session(house)
    other = house.client()
    from_client(house, other, "init v3", requestId="r")
    verdict = from_daemon(house, daemon, "response v3", requestId="r")
    assert isinstance(verdict, Drop)
    assert verdict.reason is Reason.SESSION_NOT_OWNED
    assert from_daemon(house, daemon, "e2ee") is owner
    # The owner may get the session again under another request.
    from_client(house, owner, "init v3", requestId="again")
    assert from_daemon(house, daemon, "response v3", requestId="again") is owner


def test_answers_to_a_client_that_has_left_are_dropped() -> None:
    house = House()
    daemon, client = with_session(house, client_id="c")
    from_client(house, client, "init v3", requestId="pending")
    house.leave(client)
    house.client(client_id="c")
    assert from_daemon(house, daemon, "e2ee") == Drop(Reason.NO_OWNER)
    assert from_daemon(house, daemon, "key update") == Drop(Reason.NO_OWNER)
    assert from_daemon(house, daemon, "response v3", requestId="pending", sessionId="x") == Drop(
        Reason.NO_OWNER, "key exchange response"
    )


def test_answers_for_a_client_of_another_relay_are_published() -> None:
    house = House()
    daemon = house.daemon()
    target = house.target
    target.key_exchanges.record("request-1", "relay-2", house.now)
    target.pairings.record("request-1", "relay-3", house.now)
    expected = (("offer response", "relay-3"), ("response v3", "relay-2"), ("e2ee", "relay-2"))
    for name, relay_id in expected:
        verdict = from_daemon(house, daemon, name)
        assert isinstance(verdict, Publish)
        assert (verdict.relay_id, verdict.frame) == (relay_id, decode_daemon(encoded(name)))
    local = house.client()
    verdict = from_client(house, local, "e2ee")
    assert isinstance(verdict, Drop)
    assert verdict.reason is Reason.SESSION_NOT_OWNED


def test_targets_and_workspaces_are_isolated() -> None:
    house = House()
    daemon, _ = with_session(house)
    for where in ({"target": "other"}, {"workspace": "v"}, {"workspace": "v", "target": "other"}):
        stranger = house.client(**where)
        assert from_client(house, stranger, "e2ee") == NoDaemon(E2ee("noise-ik", "session-1"))
        foreign = house.daemon(**where)
        assert from_client(house, stranger, "e2ee") is foreign
        assert from_daemon(house, foreign, "e2ee") == Drop(Reason.NO_OWNER)
        assert foreign is not daemon


@pytest.mark.parametrize("name", [None])
def test_a_daemons_invalid_frame_is_dropped(name: None) -> None:
    house = House()
    assert from_daemon(house, house.daemon(), name) == Drop(Reason.INVALID_FRAME)


# -- profiles -----------------------------------------------------------------------------------------------------------

IK, PSK2 = Profile.IK, Profile.IKPSK2
#: policyMode, e2eeProfile, required profile
REQUIRED: list[tuple[str | None, Profile | None, str | None]] = [
    (None, None, None),
    ("standard", None, None),
    ("standard", IK, "noise-ik"),
    (None, PSK2, "noise-ikpsk2"),
    ("standard", PSK2, "noise-ikpsk2"),
    ("crypto_pairing", None, "noise-ikpsk2"),
    ("crypto_pairing", IK, "noise-ikpsk2"),
    ("crypto_pairing", PSK2, "noise-ikpsk2"),
    ("Crypto_Pairing", IK, "noise-ik"),
]
CLIENT_NAMES = ["e2ee", "init v3", "init v2"]
DAEMON_NAMES = ["e2ee", "response v3", "response v2"]


@pytest.mark.parametrize(("policy", "profile", "required"), REQUIRED)
@pytest.mark.parametrize("named", ["noise-ik", "noise-ikpsk2"])
@pytest.mark.parametrize("name", CLIENT_NAMES)
def test_a_clients_profile(
    policy: str | None, profile: Profile | None, required: str | None, named: str, name: str
) -> None:
    house = House()
    daemon = house.daemon()
    client = house.client(policy_mode=policy, e2ee_profile=profile)
    verdict = from_client(house, client, name, profile=named, pairingPeerId="p")
    if required in (None, named):
        assert verdict is daemon
        return
    assert isinstance(verdict, Close)
    assert verdict.reason is Reason.CLIENT_FRAME_PROFILE_MISMATCH
    psk = name != "e2ee" and required == "noise-ikpsk2"
    assert (verdict.logged_as or verdict.reason) is (Reason.NOISE_INVALID_PSK if psk else verdict.reason)


@pytest.mark.parametrize(("policy", "profile", "required"), REQUIRED)
@pytest.mark.parametrize("named", ["noise-ik", "noise-ikpsk2"])
@pytest.mark.parametrize("name", DAEMON_NAMES)
def test_a_daemons_profile(
    policy: str | None, profile: Profile | None, required: str | None, named: str, name: str
) -> None:
    house = House()
    daemon = house.daemon(policy_mode=policy, e2ee_profile=profile)
    client = house.client()
    from_client(house, client, "init v3")
    from_client(house, client, "init v3", requestId="first")
    if name == "e2ee":
        house.target.sessions.record("session-1", client, house.now)
    verdict = from_daemon(house, daemon, name, profile=named)
    if required != "noise-ikpsk2" or named == "noise-ikpsk2":  # a stronger profile is accepted
        assert verdict is client
        return
    assert isinstance(verdict, Close)
    assert verdict.reason is Reason.DAEMON_FRAME_PROFILE_MISMATCH
    psk = name != "e2ee"
    assert (verdict.logged_as or verdict.reason) is (Reason.NOISE_INVALID_PSK if psk else verdict.reason)


def test_each_connection_has_its_own_required_profile() -> None:
    house = House()
    daemon = house.daemon(e2ee_profile=IK)
    strict, free = house.client(e2ee_profile=PSK2), house.client()
    assert isinstance(from_client(house, strict, "e2ee"), Close)
    assert from_client(house, free, "e2ee") is daemon


# -- session events -------------------------------------------------------------------------------------------------------


def viewer(house: House, *channels: str) -> Peer:
    return house.client(Scope.SESSION_EVENTS, session_channels=frozenset(channels or {CHANNEL}))


def test_subscribing_and_fan_out() -> None:
    house = House()
    daemon = house.daemon()
    one, two, three = viewer(house), viewer(house), viewer(house, CHANNEL, "agent-session:beta")
    assert from_daemon(house, daemon, "session event") == FanOut(())
    for peer in (one, two):
        assert json.loads(reply_text(house, peer, "subscribe", afterSequence=4)) == {
            "type": "viewport.session_events.subscribed/v1",
            "channel": CHANNEL,
            "afterSequence": 4,
            "authoritativeSource": "session_events",
            "websocketRequiredForBackfill": False,
        }
    from_client(house, three, "subscribe", channel=f" {CHANNEL}\t")
    from_client(house, three, "subscribe", channel="agent-session:beta")
    from_client(house, one, "subscribe")  # a second subscription has no effect
    assert from_daemon(house, daemon, "session event") == FanOut((one, two, three))
    assert from_daemon(house, daemon, "session event", channel=f"{CHANNEL} ") == FanOut((one, two, three))
    assert from_daemon(house, daemon, "session event", channel="agent-session:beta") == FanOut((three,))
    from_client(house, two, "unsubscribe", channel=f" {CHANNEL}")
    house.leave(one)
    assert from_daemon(house, daemon, "session event") == FanOut((three,))
    house.leave(three)
    assert house.target.channels == {}


def reply_text(house: House, peer: Peer, name: str, **changes: Any) -> str:
    verdict = from_client(house, peer, name, **changes)
    assert isinstance(verdict, Reply)
    return verdict.text


def test_channels_that_the_grant_lacks() -> None:
    house = House()
    daemon, peer, other = house.daemon(), viewer(house), viewer(house, "agent-session:beta")
    from_client(house, other, "subscribe", channel="agent-session:beta")
    denied = json.loads(reply_text(house, peer, "subscribe", channel="agent-session:beta"))
    assert (denied["type"], denied["reason"]) == (
        "viewport.session_events.subscribe_denied/v1",
        "CHANNEL_NOT_AUTHORIZED",
    )
    assert json.loads(reply_text(house, peer, "unsubscribe", channel=" agent-session:beta ")) == denied
    denied = json.loads(reply_text(house, peer, "presence", channel="agent-session:beta"))
    assert denied["type"] == "viewport.session_viewer_presence_denied/v1"
    assert from_daemon(house, daemon, "session event", channel="agent-session:beta") == FanOut((other,))


def test_presence_reaches_all_subscribers_except_the_sender() -> None:
    house = House()
    house.daemon()
    one, two, silent = viewer(house), viewer(house), viewer(house)
    assert from_client(house, one, "presence") == FanOut((), lossy=True)
    from_client(house, one, "subscribe")
    from_client(house, two, "subscribe")
    assert from_client(house, one, "presence") == FanOut((two,), lossy=True)
    assert from_client(house, silent, "presence", channel=f"{CHANNEL} ") == FanOut(
        (one, two), lossy=True
    )  # the sender needs no subscription


def test_presence_names_the_user_of_the_token() -> None:
    house = House()
    channels = frozenset({CHANNEL})
    alice = house.client(Scope.SESSION_EVENTS, session_channels=channels, user_id="alice")
    unnamed = viewer(house)
    assert from_client(house, alice, "presence", userId="alice") == FanOut((), lossy=True)
    assert from_client(house, unnamed, "presence", userId="alice") == FanOut((), lossy=True)
    for other in ("bob", "Alice", " alice"):
        assert from_client(house, alice, "presence", userId=other) == Drop(Reason.PRESENCE_USER_MISMATCH)


def test_the_longest_backlog_of_a_target() -> None:
    house = House()
    house.daemon()
    one, two, three = viewer(house), house.client(), viewer(house)
    for peer, backlog in ((one, 300), (two, 500), (three, 0)):
        outlet: Any = peer.outlet
        outlet.backlog = backlog
    assert house.target.heaviest(800) is None
    assert house.target.heaviest(799) is two
    house.leave(two)
    assert house.target.heaviest(299) is one


def test_subscriptions_outlive_the_daemon() -> None:
    house = House()
    daemon, peer = house.daemon(), viewer(house)
    from_client(house, peer, "subscribe")
    house.leave(daemon)
    assert from_daemon(house, house.daemon(), "session event") == FanOut((peer,))


# -- rates ----------------------------------------------------------------------------------------------------------------------


#: limits, scope, frame, reason
RATES: list[tuple[FrameRates, Scope, str | None, Reason]] = [
    (limits(key_exchange=2), Scope.RUNTIME, "init v3", Reason.KEY_EXCHANGE_RATE_LIMIT_EXCEEDED),
    (limits(key_exchange=2), Scope.RUNTIME, "init v2", Reason.KEY_EXCHANGE_RATE_LIMIT_EXCEEDED),
    (limits(pairing=2), Scope.PAIRING, "offer request", Reason.PAIRING_RATE_LIMIT_EXCEEDED),
    (limits(pairing=2), Scope.PAIRING, "redeem request", Reason.PAIRING_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.RUNTIME, "e2ee", Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
    (limits(workspace=2), Scope.RUNTIME, "e2ee", Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.SESSION_EVENTS, "presence", Reason.PRESENCE_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.SESSION_EVENTS, "subscribe", Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.SESSION_EVENTS, "unsubscribe", Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.SESSION_EVENTS, "e2ee", Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.RUNTIME, None, Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
    (limits(runtime=2), Scope.PAIRING, None, Reason.RUNTIME_RATE_LIMIT_EXCEEDED),
]


@pytest.mark.parametrize(("rates", "scope", "name", "reason"), RATES)
def test_each_client_rate(rates: FrameRates, scope: Scope, name: str | None, reason: Reason) -> None:
    house = House(rates)
    house.daemon()
    client = house.client(scope, session_channels=frozenset({CHANNEL}))
    for _ in range(2):
        assert not isinstance(from_client(house, client, name), Close)
    house.now += 20.5
    verdict = from_client(house, client, name)
    assert isinstance(verdict, Close)
    assert verdict.reason is reason
    assert verdict.detail in {
        f"{limit} a minute" for limit in rates.in_words.values() if limit.endswith("=2")
    }
    assert verdict.reply is not None
    assert json.loads(verdict.reply) == {
        "type": "relay_status",
        "code": "RATE_LIMITED",
        "message": "rate limit exceeded",
        "workspaceId": "w",
        "retryAfterMs": 39_500,
    }
    house.now += 39.5
    assert not isinstance(from_client(house, client, name), Close)


@pytest.mark.parametrize(("rates", "scope", "name", "reason"), RATES)
def test_a_limit_of_zero_is_off(rates: FrameRates, scope: Scope, name: str | None, reason: Reason) -> None:
    house = House(NO_LIMIT)
    client = house.client(scope, session_channels=frozenset({CHANNEL}))
    assert not any(isinstance(from_client(house, client, name), Close) for _ in range(1000))


def test_the_workspaces_rate_is_shared_and_a_clients_is_not() -> None:
    house = House(limits(runtime=3, workspace=4))
    house.daemon()
    one, two = house.client(), house.client()
    assert [isinstance(from_client(house, one, "e2ee"), Close) for _ in range(4)] == [
        False,
        False,
        False,
        True,
    ]
    assert [isinstance(from_client(house, two, "e2ee"), Close) for _ in range(2)] == [False, True]


def test_forwarded_key_exchanges_and_pairings_are_not_charged_to_the_runtime_rate() -> None:
    house = House(limits(runtime=1, workspace=1))
    daemon, client, pairing = house.daemon(), house.client(), house.client(Scope.PAIRING)
    for number in range(5):
        assert from_client(house, client, "init v3") is daemon
        assert from_client(house, pairing, "offer request", requestId=f"r{number}") is daemon
    assert from_client(house, client, "e2ee") is daemon


def test_what_goes_nowhere_is_charged_to_its_sender_and_never_to_the_workspace() -> None:
    house = House(limits(runtime=100, workspace=1))
    daemon, owner = with_session(house)
    thief, events = house.client(), viewer(house)
    for _ in range(30):
        assert isinstance(from_client(house, thief, "e2ee"), Drop)
        assert isinstance(from_client(house, thief, None), Reply)
        assert isinstance(from_client(house, events, "presence"), FanOut)
        assert isinstance(from_client(house, events, "subscribe", channel="agent-session:x"), Reply)
    away = house.client(target="elsewhere")
    for _ in range(30):
        verdict = from_client(house, away, "e2ee")
        assert isinstance(verdict, NoDaemon)
        assert house.router.charge(away, b"frame", house.now) is None
    assert (thief.rates.runtime.count, events.rates.runtime.count, away.rates.runtime.count) == (60, 60, 30)
    assert house.workspace_window.count == 0
    assert from_client(house, owner, "e2ee") is daemon
    assert isinstance(from_client(house, owner, "e2ee"), Close)  # the workspace's only frame is used


def test_dropped_frames_are_charged_by_bytes() -> None:
    house = House(limits(runtime=1000, workspace=1000))
    daemon, client = house.daemon(), house.client()
    mebibyte = bytes(1 << 20)
    for _ in range(4):
        assert isinstance(house.router.client_frame(client, None, mebibyte, house.now), Reply)
    for _ in range(5):  # forwarded frames are not charged by bytes
        assert house.router.client_e2ee(client, "noise-ik", "s", mebibyte, house.now) is daemon
    house.now += 10
    verdict = house.router.client_frame(client, None, b"x", house.now)
    assert isinstance(verdict, Close)
    assert verdict.reason is Reason.RUNTIME_RATE_LIMIT_EXCEEDED
    assert json.loads(verdict.reply or "")["retryAfterMs"] == 50_000
    house.now += 50
    assert isinstance(house.router.client_frame(client, None, mebibyte, house.now), Reply)


def test_a_frame_that_the_bus_carries_is_charged_as_a_forwarded_one() -> None:
    house = House(limits(runtime=2, workspace=1000))
    client = house.client()
    envelope, init = E2ee("noise-ik", "s"), KeyExchangeInit("noise-ik", "r", 3)
    for _ in range(5):
        assert house.router.carried(client, init, house.now) is None
    assert [house.router.carried(client, envelope, house.now) is None for _ in range(3)] == [
        True,
        True,
        False,
    ]
    assert house.workspace_window.count == 2
    # A frame that the bus refuses after all is charged by its bytes only.
    assert house.router.charge(client, b"frame", house.now, counted=True) is None


def test_daemon_and_worker_rates() -> None:
    house = House(limits(daemon=2))
    daemon, worker = house.daemon(), house.peer(Role.WORKER)
    check = house.router.own_rate
    for peer, reason in (
        (daemon, Reason.DAEMON_RATE_LIMIT_EXCEEDED),
        (worker, Reason.WORKER_RATE_LIMIT_EXCEEDED),
    ):
        assert [check(peer, house.now) for _ in range(2)] == [None, None]
        assert check(peer, house.now) == Close(reason, "daemon=2 a minute")
        assert check(peer, house.now + 60) is None
