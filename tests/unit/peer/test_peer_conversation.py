"""Daemon and client together on an in-memory transport: sessions, key updates, refused messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, ensureDeferred

from tests.unit.peer.wiring import Wire
from viewport_relay.peer.client import ClientPeer, Pairing
from viewport_relay.peer.daemon import Conversation
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.symmetric import KeyPair, Profile

SECRET = bytes(range(32))


def _echo(conversation: Conversation, text: str) -> None:
    conversation.send(f"{text}!")


def _exchange(wire: Wire, client: ClientPeer | None = None, **options: Any) -> list[Any]:
    """Run a key exchange. The result is [None] after success, [error] after a failure, [] while it is pending."""
    outcome: list[Any] = []
    done: Deferred[None] = ensureDeferred((client or wire.client).exchange_keys(**options))
    done.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
    return outcome


def _joined(**options: Any) -> Wire:
    wire = Wire(answer=_echo, **options)
    outcome = _exchange(wire)
    wire.pump()
    assert outcome == [None]
    return wire


def test_messages_in_both_directions() -> None:
    wire = _joined()
    wire.client.send("hello ✓")
    wire.pump()
    assert (wire.at_daemon, wire.at_client) == (["hello ✓"], ["hello ✓!"])
    [conversation] = wire.daemon.conversations
    session = conversation.current
    assert (session.opened, session.sealed, conversation.epoch) == (1, 1, 1)


def test_only_paired_peers_exchange_keys() -> None:
    known = {"p1": SECRET}
    wire = _joined(pairing=Pairing("p1", SECRET), known=known)
    assert wire.client.profile is Profile.IKPSK2
    for stranger in (None, Pairing("p2", SECRET), Pairing("p1", bytes(32))):
        outcome = _exchange(wire, wire.another_client(stranger))
        wire.pump()
        wire.clock.advance(11)
        assert [error.code for error in outcome] == [Code.TIMEOUT]
    assert wire.daemon.refused == {Code.PROFILE_MISMATCH: 1, Code.PAIRING_UNKNOWN: 1}


def test_sending_before_any_exchange_is_refused() -> None:
    with pytest.raises(PeerError, match="SESSION_UNKNOWN"):
        Wire().client.send("x")


def test_keys_are_updated_at_the_threshold_without_loss() -> None:
    wire = _joined(rekey_after=10)
    said = [str(number) for number in range(60)]
    for text in said:
        wire.client.send(text)
        wire.pump()
    assert wire.at_daemon == said
    assert wire.at_client == [f"{text}!" for text in said]
    assert wire.client.epoch == 1 + wire.client.rekeys == next(iter(wire.daemon.conversations)).epoch
    assert wire.client.rekeys == 120 // 10
    assert wire.daemon.rekeys == wire.client.rekeys
    assert not wire.client.refused + wire.daemon.refused


def test_the_default_threshold_is_250_messages_of_both_directions() -> None:
    wire = _joined()
    for number in range(124):
        wire.client.send(str(number))
        wire.pump()
    assert wire.client.epoch == 1
    wire.client.send("the 249th")
    wire.pump()
    assert wire.client.epoch == 2


def test_messages_in_flight_across_a_key_update() -> None:
    wire = _joined(rekey_after=4)
    said = [f"m{number}" for number in range(40)]
    for text in said:
        # At most one delivery between two sends, so that messages are always in flight.
        wire.client.send(text)
        if wire.to_daemon:
            wire.daemon.frame_received(wire.to_daemon.popleft())
        if wire.to_client:
            wire.client.frame_received(wire.to_client.popleft())
    wire.pump()
    assert wire.at_daemon == said
    assert wire.at_client == [f"{text}!" for text in said]
    assert wire.client.rekeys >= 2
    assert not wire.client.refused + wire.daemon.refused


def _frames(queue: Any, kind: str) -> list[dict[str, Any]]:
    return [frame for frame in map(json.loads, queue) if frame["type"] == kind]


def test_the_notice_and_the_new_init_name_session_and_epoch() -> None:
    wire = _joined(rekey_after=2)
    session = wire.client.session_id
    wire.client.send("x")
    wire.daemon.frame_received(wire.to_daemon.popleft())
    [notice] = _frames(wire.to_client, "relay_key_update_required")
    assert (notice["sessionId"], notice["nextEpoch"]) == (session, 2)
    while wire.to_client:
        wire.client.frame_received(wire.to_client.popleft())
    [init] = _frames(wire.to_daemon, "relay_key_exchange_init")
    assert init["previousSessionId"] == session


def test_a_lost_key_update_notice_is_repeated() -> None:
    wire = _joined(rekey_after=10)
    for number in range(5):
        wire.client.send(str(number))
        wire.pump() if number < 4 else None
    wire.daemon.frame_received(wire.to_daemon.popleft())
    assert _frames(wire.to_client, "relay_key_update_required")
    wire.to_client.clear()
    wire.client.send("more")
    wire.pump()
    assert wire.client.epoch == 2


def test_the_daemon_sends_first_under_the_new_keys() -> None:
    wire = _joined()
    [conversation] = wire.daemon.conversations
    renewing = _exchange(wire)
    wire.daemon.frame_received(wire.to_daemon.popleft())
    conversation.send("under the new keys")
    wire.client.send("under the old ones")
    wire.pump()
    assert renewing == [None]
    assert wire.at_client == ["under the new keys", "under the old ones!"]
    assert wire.at_daemon == ["under the old ones"]


def test_old_keys_are_refused_after_the_first_use_of_the_new() -> None:
    wire = _joined()
    wire.client.send("old")
    old = wire.to_daemon[0]
    wire.pump()
    _exchange(wire)
    wire.pump()
    wire.client.send("new")
    wire.pump()
    wire.to_daemon.append(old)
    wire.pump()
    assert wire.daemon.refused == {Code.SESSION_UNKNOWN: 1}


def test_a_key_update_from_another_client_is_refused() -> None:
    wire = _joined()
    mine = wire.client
    thief = wire.another_client(identity=KeyPair.generate())
    outcome = _exchange(wire, thief)
    init = json.loads(wire.to_daemon.pop())
    wire.to_daemon.append(json.dumps(init | {"previousSessionId": mine.session_id}))
    wire.daemon.frame_received(wire.to_daemon.popleft())
    thief.frame_received(wire.to_client.popleft())
    assert outcome == [None]
    assert thief.epoch == 1
    assert len(wire.daemon.conversations) == 2
    mine.send("still here")
    wire.pump()
    assert wire.at_client == ["still here!"]


def test_the_oldest_conversations_are_dropped_over_the_limit() -> None:
    wire = Wire(max_conversations=2)
    clients = [wire.client, wire.another_client(), wire.another_client()]
    for client in clients:
        _exchange(wire, client)
        wire.daemon.frame_received(wire.to_daemon.popleft())
        client.frame_received(wire.to_client.popleft())
    for client in clients:
        client.send("x")
    wire.pump()
    assert len(wire.at_daemon) == 2
    assert wire.daemon.refused == {Code.SESSION_UNKNOWN: 1}


def test_an_exchange_without_answer_times_out() -> None:
    wire = Wire()
    outcome = _exchange(wire)
    wire.clock.advance(9.9)
    assert outcome == []
    wire.clock.advance(0.2)
    assert outcome[0].code is Code.TIMEOUT
    wire.pump()
    assert wire.client.refused == {Code.REQUEST_MISMATCH: 1}
    assert wire.client.epoch == 0


STATUS = json.dumps(
    {"type": "relay_status", "code": "DAEMON_UNAVAILABLE", "message": "x", "workspaceId": "w"}
)


def test_an_exchange_is_retried_until_the_daemon_connects() -> None:
    wire = Wire()
    outcome = _exchange(wire, attempts=3, pause=1.0)
    for _ in range(2):
        wire.to_daemon.clear()
        wire.client.frame_received(STATUS)
        assert outcome == []
        wire.clock.advance(1.0)
    wire.pump()
    assert outcome == [None]


def test_an_exchange_fails_after_its_time_without_a_daemon() -> None:
    wire = Wire()
    outcome = _exchange(wire)
    wire.client.frame_received(STATUS)
    assert outcome[0].code is Code.DAEMON_UNAVAILABLE


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("nonsense", Code.MALFORMED),
        ("[]", Code.MALFORMED),
        ('{"type":"relay_key_exchange_init"}', Code.MALFORMED),
        ('{"type":"relay_key_exchange_init","version":3}', Code.PROFILE_MISMATCH),
        ('{"type":"e2ee"}', Code.MALFORMED),
        ('{"type":"e2ee","sessionId":"rs_x"}', Code.SESSION_UNKNOWN),
    ],
)
def test_the_daemon_counts_invalid_frames(frame: str, code: Code) -> None:
    wire = Wire()
    wire.daemon.frame_received(frame)
    wire.daemon.frame_received('{"type":"of the future"}')
    assert wire.daemon.refused == {code: 1}
    assert not wire.to_client


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ('{"type":"relay_key_exchange_response"}', Code.MALFORMED),
        ('{"type":"relay_key_exchange_response","requestId":"r"}', Code.REQUEST_MISMATCH),
        ('{"type":"relay_key_update_required","sessionId":"s","nextEpoch":2}', Code.SESSION_MISMATCH),
        ('{"type":"relay_key_update_required","sessionId":"s"}', Code.MALFORMED),
        ('{"type":"e2ee","sessionId":"rs_x"}', Code.SESSION_UNKNOWN),
    ],
)
def test_the_client_counts_invalid_frames(frame: str, code: Code) -> None:
    wire = Wire()
    wire.client.frame_received(frame)
    assert wire.client.refused == {code: 1}


def test_a_forged_response_ends_the_exchange_with_its_reason() -> None:
    wire = Wire()
    outcome = _exchange(wire)
    wire.daemon.frame_received(wire.to_daemon.popleft())
    response = json.loads(wire.to_client.popleft())
    wire.client.frame_received(json.dumps(response | {"sessionId": "rs_forged"}))
    assert outcome[0].code is Code.SESSION_MISMATCH
    assert wire.client.epoch == 0


def test_an_exception_of_a_handler_propagates() -> None:
    def fail(conversation: Conversation, text: str) -> None:
        raise LookupError(text)

    wire = Wire(answer=fail)
    _exchange(wire)
    wire.pump()
    wire.client.send("x")
    with pytest.raises(LookupError):
        wire.pump()
