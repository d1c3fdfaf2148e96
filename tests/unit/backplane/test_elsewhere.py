"""Clients whose daemon is on another relay: order, redirects and refusals, over in-memory connections."""

from __future__ import annotations

import gc
import json
from weakref import ref

import pytest

from tests.memorywire import MemoryRelay
from tests.unit.backplane.parts import StubBackplane
from tests.wireframes import encoded
from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, DAEMON_TO_CLIENTS, Arrival, Whereabouts
from viewport_relay.protocol.frames import E2ee
from viewport_relay.protocol.framing import TEXT, frame_header
from viewport_relay.protocol.grant import Scope
from viewport_relay.sessions.bussession import SERVES_FOR

THERE = Whereabouts("b", "wss://b.example")


class House:
    def __init__(self, *, redirects: bool = False, **environ: str) -> None:
        self.backplane = StubBackplane()
        self.backplane.redirects = redirects
        self.relay = MemoryRelay(backplane=self.backplane, **environ)
        self.remote = self.relay.relaying.remote
        self.backplane.start(self.remote)

    def arrive(self, payload: bytes, direction: str = CLIENT_TO_DAEMON, source: str = "b") -> None:
        self.remote.arrived(
            [
                Arrival.of(
                    ("w", "t"),
                    DAEMON_TO_CLIENTS if direction != CLIENT_TO_DAEMON else CLIENT_TO_DAEMON,
                    source,
                    payload,
                )
            ]
        )
        self.relay.pump()

    def found(self, place: Whereabouts | None) -> None:
        self.backplane.found(place)
        self.relay.pump()

    def sent(self) -> list[bytes]:
        return [bytes(one) for parcel in self.backplane.published for one in parcel.payloads]


def codes(messages: list[bytes]) -> list[str]:
    return [json.loads(message).get("code", "?") for message in messages]


def test_frames_wait_for_a_look_up_and_reading_is_paused() -> None:
    house = House()
    client = house.relay.client()
    first = [encoded("e2ee", seq=n) for n in (1, 2, 3)]
    client.say(*first)
    assert house.sent() == []
    assert client.connection.reader.paused
    later = encoded("e2ee", seq=4)
    client.say(later)
    assert client.transport.unread > 0
    house.backplane.slow, house.backplane.known_place = False, THERE
    house.found(THERE)
    assert house.sent() == [*first, later]
    assert not client.connection.reader.paused
    assert client.heard() == []


def test_each_frame_has_its_own_look_up_in_order() -> None:
    """This layer has no cache: every frame causes a look-up."""
    house = House()
    client = house.relay.client()
    frames = [encoded("e2ee", sessionId=f"session-{n}") for n in range(1, 6)]
    client.say(*frames)
    for _ in frames:
        assert len(house.backplane.lookups) == 1
        house.found(THERE)
    assert house.sent() == frames


def test_no_relay_has_the_daemon() -> None:
    house = House()
    client = house.relay.client()
    client.say(encoded("init v3"), b"{", encoded("e2ee"))
    house.found(None)
    house.found(None)
    assert codes(client.heard()) == ["DAEMON_UNAVAILABLE", "INVALID_FRAME", "DAEMON_UNAVAILABLE"]
    other = house.relay.client()
    daemon = house.relay.daemon()
    other.say(encoded("init v3"))  # the same requestId: it is free again
    assert daemon.heard() == [encoded("init v3")]


def test_a_daemon_that_joins_during_the_look_up_gets_the_frames() -> None:
    house = House()
    client = house.relay.client()
    frames = [encoded("init v3"), encoded("e2ee", seq=1), encoded("e2ee", seq=2)]
    client.say(*frames)
    daemon = house.relay.daemon()
    house.found(THERE)
    assert daemon.heard() == frames
    assert house.sent() == []
    daemon.say(encoded("response v3"))
    assert client.heard() == [encoded("response v3")]


def test_a_local_daemon_needs_no_look_up() -> None:
    house = House(redirects=True)
    daemon, client = house.relay.daemon(), house.relay.client()
    client.say(encoded("init v3"))
    assert daemon.heard() == [encoded("init v3")]
    assert house.backplane.lookups == []


def test_a_redirect_follows_the_upgrade_and_each_frame() -> None:
    house = House(redirects=True)
    client = house.relay.client()
    client.say(encoded("init v3"), encoded("e2ee"))
    house.found(THERE)
    [greeting] = client.heard()
    assert "runtimeTargetId" not in json.loads(greeting)
    house.found(THERE)
    house.backplane.broken = True
    house.found(THERE)
    heard = client.heard()
    assert codes(heard) == ["RELAY_REDIRECT", "RELAY_REDIRECT", "DAEMON_UNAVAILABLE"]
    assert json.loads(heard[0])["runtimeTargetId"] == "t"
    assert house.relay.counters.client_redirect == 3
    assert house.sent() == [encoded("init v3")]


@pytest.mark.parametrize("target", [None, "t"])
def test_a_pairing_client_without_a_target_is_not_looked_up(target: str | None) -> None:
    house = House(redirects=True)
    client = house.relay.client(Scope.PAIRING, target=target)
    assert len(house.backplane.lookups) == (0 if target is None else 1)
    if target is None:
        client.say(encoded("offer request"))
        assert codes(client.heard()) == ["RUNTIME_TARGET_REQUIRED"]


def test_frames_of_a_client_that_left_are_forwarded() -> None:
    house = House()
    client = house.relay.client()
    frames = [encoded("init v3"), encoded("e2ee", seq=1)]
    client.say(*frames)
    client.leave()
    house.found(THERE)
    house.found(THERE)
    assert house.sent() == frames
    assert client.heard() == []
    house.arrive(encoded("response v3"), DAEMON_TO_CLIENTS)  # a late answer is dropped
    assert client.heard() == []


@pytest.mark.parametrize(
    ("limit", "messages"),
    [
        ("240", [encoded("e2ee"), encoded("offer request"), encoded("e2ee", seq=2), encoded("init v3")]),
        ("1", [encoded("e2ee"), encoded("e2ee", seq=2), encoded("init v3")]),
        ("1", [encoded("e2ee"), b"{", encoded("init v3")]),
    ],
    ids=["scope", "rate", "invalid and rate"],
)
def test_frames_behind_one_that_closes_the_connection_are_thrown_away(
    limit: str, messages: list[bytes]
) -> None:
    """As they are where the daemon is here."""
    house = House(RELAY_RUNTIME_RATE_PER_MINUTE=limit)
    client = house.relay.client()
    client.say(*messages)
    while house.backplane.lookups:
        house.found(THERE)
    assert house.sent() == [messages[0]]
    assert client.closed is not None


def test_frames_behind_one_that_would_have_closed_a_client_that_left_are_thrown_away() -> None:
    house = House()
    client = house.relay.client()
    client.say(encoded("e2ee"), encoded("offer request"), encoded("e2ee", seq=2), encoded("init v3"))
    client.leave()
    while house.backplane.lookups:
        house.found(THERE)
    assert house.sent() == [encoded("e2ee")]


def test_a_lost_connection_leaves_no_pending_frames() -> None:
    house = House()
    client = house.relay.client()
    client.say(encoded("e2ee"), encoded("e2ee", seq=2))
    connection = ref(client.connection)
    client.vanish()
    del client
    house.relay.peers.clear()
    house.backplane.slow = False
    house.found(None)
    gc.collect()
    assert connection() is None, "nothing is kept of a client that has left"


def test_the_scope_is_checked_for_frames_of_a_client_that_left() -> None:
    house = House()
    client = house.relay.client()
    client.say(encoded("e2ee"), encoded("offer request"))
    client.leave()
    house.found(THERE)
    assert house.sent() == [encoded("e2ee")]


def test_answers_reach_the_requesting_client_only() -> None:
    house = House()
    house.backplane.slow, house.backplane.known_place = False, THERE
    one, two = house.relay.client(), house.relay.client()
    one.say(encoded("init v3", requestId="r1"))
    two.say(encoded("init v3", requestId="r2"))
    two.say(encoded("init v3", requestId="r1"))  # the id is in use by another client
    assert len(house.sent()) == 2
    house.arrive(encoded("response v3", requestId="r2", sessionId="s2"), DAEMON_TO_CLIENTS)
    house.arrive(encoded("e2ee", sessionId="s2"), DAEMON_TO_CLIENTS)
    assert (len(one.heard()), len(two.heard())) == (0, 2)
    one.say(encoded("e2ee", sessionId="s2"))  # the session belongs to another client
    assert len(house.sent()) == 2


def test_a_lost_request_frees_its_id() -> None:
    house = House()
    house.backplane.slow, house.backplane.known_place = False, THERE
    one, two = house.relay.client(), house.relay.client()
    one.say(encoded("init v3"))
    house.backplane.lose(house.backplane.published[0])
    assert codes(one.heard()) == []  # queued, not yet delivered
    house.relay.pump()
    assert codes(one.heard()) == ["DAEMON_UNAVAILABLE"]
    two.say(encoded("init v3"))
    assert len(house.sent()) == 2


def test_requests_and_sessions_of_another_relay_are_owned_by_that_relay() -> None:
    house = House()
    daemon = house.relay.daemon(machine_id="m")
    house.arrive(encoded("init v3"))
    assert daemon.heard() == [encoded("init v3")]
    daemon.say(encoded("response v3"), encoded("e2ee"), encoded("key update"))
    assert [(p.direction, p.to_relay, p.machine_id) for p in house.backplane.published] == [
        (DAEMON_TO_CLIENTS, "b", "m")
    ] * 3
    local = house.relay.client()
    local.say(encoded("e2ee"))
    house.arrive(encoded("e2ee", seq=9), source="c")
    assert daemon.heard() == []


def test_changes_of_the_seat_are_announced() -> None:
    house = House()
    daemon = house.relay.daemon(1)
    holder = house.backplane.seats[-1][1]
    assert holder is daemon.routed
    newer = house.relay.daemon(2)
    assert house.backplane.seats[-1][1] is newer.routed
    newer.leave()
    assert house.backplane.seats[-1] == (("w", "t"), None)
    assert house.backplane.peers == 0


def test_only_the_moved_daemon_is_closed() -> None:
    house = House()
    daemon = house.relay.daemon()
    house.remote.moved(("w", "t"), object())
    assert daemon.is_open
    house.remote.moved(("w", "t"), daemon.routed)
    house.relay.wait(1.1)
    assert daemon.closed == (4008, "replaced by newer daemon")


def test_a_local_daemon_ends_sessions_with_the_remote_one() -> None:
    house = House()
    house.backplane.slow, house.backplane.known_place = False, THERE
    client = house.relay.client()
    client.say(encoded("init v3"))
    house.arrive(encoded("response v3"), DAEMON_TO_CLIENTS)
    assert len(client.heard()) == 1
    house.relay.daemon()
    house.arrive(encoded("e2ee"), DAEMON_TO_CLIENTS)
    assert client.heard() == []


class Answered(House):
    """A house whose look-ups are answered at once: the daemon is on relay b."""

    def __init__(self, **environ: str) -> None:
        super().__init__(**environ)
        self.backplane.slow, self.backplane.known_place = False, THERE

    def parcels(self) -> list[int]:
        """The number of messages of each parcel."""
        return [len(parcel.payloads) for parcel in self.backplane.published]


def test_the_frames_of_one_read_and_session_are_one_parcel_for_a_moment() -> None:
    house = Answered()
    client = house.relay.client()
    frames = [encoded("e2ee", seq=n) for n in range(1, 8)]
    client.say(*frames[:1])
    client.say(*frames[1:4])
    other = encoded("e2ee", sessionId="session-2")
    client.say(frames[4], other, frames[5])
    assert house.sent() == [*frames[:5], other, frames[5]]
    assert house.parcels() == [1, 3, 1, 1, 1]
    house.relay.clock.advance(SERVES_FOR)
    house.backplane.known_place = Whereabouts("c", "wss://c.example")
    client.say(frames[6])
    assert [parcel.to_relay for parcel in house.backplane.published] == ["b"] * 5 + ["c"]


def test_frames_of_a_remote_session_are_charged_and_counted_as_all_others() -> None:
    house = Answered(RELAY_RUNTIME_RATE_PER_MINUTE="3")
    client = house.relay.client()
    for n in range(1, 6):
        client.say(encoded("e2ee", seq=n))
    assert len(house.sent()) == 3
    assert client.closed == (4008, "runtime rate limit exceeded")
    assert house.relay.counters.frames_client_to_daemon == 0  # the relay that delivers them counts them
    assert house.relay.counters.frames_client_rejected == 1


def test_a_lost_parcel_is_answered_message_by_message() -> None:
    house = Answered()
    client = house.relay.client()
    client.say(encoded("e2ee"))
    house.backplane.broken = True
    client.say(*[encoded("e2ee", seq=n) for n in (2, 3)])
    assert codes(client.heard()) == ["DAEMON_UNAVAILABLE"] * 2


def test_a_daemon_that_comes_here_gets_the_next_frame_of_a_remote_session() -> None:
    house = Answered()
    client = house.relay.client()
    client.say(encoded("e2ee", seq=1))
    daemon = house.relay.daemon()
    client.say(encoded("e2ee", seq=2))
    assert daemon.heard() == [encoded("e2ee", seq=2)]


def test_a_daemon_answers_a_remote_session_on_the_bus_as_long_as_the_relay_owns_it() -> None:
    house = Answered()
    daemon = house.relay.daemon()
    house.arrive(encoded("init v3"))
    daemon.say(encoded("response v3"))
    session = json.loads(encoded("response v3"))["sessionId"]
    for n in range(1, 4):
        daemon.say(encoded("e2ee", sessionId=session, seq=n))
    assert house.parcels() == [1, 1, 1, 1]
    assert {parcel.direction for parcel in house.backplane.published} == {DAEMON_TO_CLIENTS}
    daemon.leave()
    other = house.relay.daemon()
    other.say(encoded("e2ee", sessionId=session, seq=4))
    assert len(house.sent()) == 4


def test_several_messages_of_an_arrival_are_charged_one_by_one_and_leave_in_order() -> None:
    house = House(RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE="3")
    daemon = house.relay.daemon()
    frames = [encoded("e2ee", seq=n) for n in range(1, 6)]
    envelope = E2ee("noise-ik", json.loads(frames[0])["sessionId"])
    sizes, sent = [len(frame) for frame in frames], b"".join(frame_header(TEXT, len(f)) + f for f in frames)
    house.remote.arrived([Arrival(("w", "t"), CLIENT_TO_DAEMON, "b", sent, sizes, envelope)])
    house.relay.pump()
    assert daemon.heard() == frames[:3]
    counters = house.relay.counters
    assert (counters.frames_client_to_daemon, counters.frames_client_rejected) == (3, 2)
    assert counters.bytes_client_to_daemon == sum(map(len, frames[:3]))
