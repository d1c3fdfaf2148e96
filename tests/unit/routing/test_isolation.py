"""Isolation of routing: whatever peers of several workspaces send, with whatever ids, nothing leaves its target, and answers reach
only the client that asked.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.routing.house import House
from tests.wireframes import encoded
from viewport_relay.protocol.decoding import decode_client, decode_daemon
from viewport_relay.protocol.grant import Role, Scope
from viewport_relay.routing.decisions import Decision, FanOut, Publish
from viewport_relay.routing.model import Peer

#: Targets whose names are parts of each other, two of them with the same runtime target.
PLACES: Final = (("w", "t"), ("w", "t2"), ("w2", "t"), ("w:t", "t"))
CHANNELS: Final = ("agent-session:a", "agent-session:b")
#: Ids that peers of all targets use.
IDS: Final = st.sampled_from(["one", "two", "three"])

_FROM_CLIENTS: Final = {
    Scope.RUNTIME: ("e2ee", "init v3", "init v2"),
    Scope.PAIRING: ("offer request", "redeem request"),
    Scope.SESSION_EVENTS: ("subscribe", "unsubscribe", "presence"),
}
_FROM_DAEMONS: Final = (
    "e2ee",
    "response v3",
    "response v2",
    "key update",
    "offer response",
    "redeem response",
    "session event",
)
_STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["client", "client", "daemon", "daemon", "leave", "join", "wait"]),
        st.integers(0, 1000), st.integers(0, 1000), IDS, IDS, st.sampled_from(CHANNELS),
    ),
    max_size=40,
)  # fmt: skip


@define
class Model:
    """What should be known: by target, the client that asked last with each id, and the client of each session."""

    asked: dict[tuple[object, str, str], set[Peer]] = field(factory=dict)
    opened: dict[tuple[object, str], set[Peer]] = field(factory=dict)


class Fleet:
    """A daemon, and clients of every scope, at each of the places."""

    def __init__(self) -> None:
        self.house = House(most_requests=2, most_sessions=2)
        self.model = Model()
        self.daemons: list[Peer] = []
        self.clients: list[Peer] = []
        for workspace, target in PLACES:
            self.daemons.append(self.house.daemon(workspace=workspace, target=target))
            for scope in (*Scope, Scope.RUNTIME):
                self.join(workspace, target, scope)

    def join(self, workspace: str, target: str | None, scope: Scope | None) -> None:
        assert scope is not None
        channels = frozenset(CHANNELS[: len(self.clients) % 3])
        made = self.house.client(scope, workspace=workspace, target=target, session_channels=channels)
        self.clients.append(made)

    def leave(self, peer: Peer) -> None:
        self.house.leave(peer)
        self.clients.remove(peer)
        for owners in (*self.model.asked.values(), *self.model.opened.values()):
            owners.discard(peer)

    def client_sends(self, peer: Peer, number: int, request: str, session: str, channel: str) -> None:
        assert peer.scope is not None
        names = _FROM_CLIENTS[peer.scope]
        name = names[number % len(names)]
        message = encoded(name, **_ids(name, request, session, channel))
        route = self.house.router.client_frame(peer, decode_client(message), message, self.house.now)
        for receiver in _receivers(route):
            assert receiver.target is peer.target
            if name == "presence":
                assert receiver.role is Role.CLIENT and channel in receiver.channels and receiver is not peer
                assert channel in peer.grant.claims.session_channels
            else:
                assert receiver is peer.target.daemon
        if isinstance(route, Peer) and "requestId" in _ids(name, request, session, channel):
            kind = "exchange" if name.startswith("init") else "pairing"
            self.model.asked.setdefault((peer.target, kind, request), set()).add(peer)

    def daemon_sends(self, peer: Peer, number: int, request: str, session: str, channel: str) -> None:
        name = _FROM_DAEMONS[number % len(_FROM_DAEMONS)]
        frame = decode_daemon(encoded(name, **_ids(name, request, session, channel)))
        route = self.house.router.daemon_frame(peer, frame, self.house.now)
        assert not isinstance(route, Publish)
        for receiver in _receivers(route):
            assert receiver.target is peer.target and receiver.role is Role.CLIENT
            if name == "session event":
                assert receiver.scope is Scope.SESSION_EVENTS
                assert channel in receiver.channels & receiver.grant.claims.session_channels
            elif name.startswith("response"):
                assert receiver in self.model.asked[peer.target, "exchange", request]
                self.model.opened.setdefault((peer.target, session), set()).add(receiver)
            elif name in ("offer response", "redeem response"):
                assert receiver in self.model.asked[peer.target, "pairing", request]
            else:
                assert receiver in self.model.opened[peer.target, session]


def _ids(name: str, request: str, session: str, channel: str) -> dict[str, Any]:
    """The ids of a frame of this name."""
    ids: dict[str, Any] = {}
    if name.startswith(("init", "response", "offer", "redeem")):
        ids["requestId"] = request
    if name.startswith("response") or name in ("e2ee", "key update"):
        ids["sessionId"] = session
    if name in ("subscribe", "unsubscribe", "presence", "session event"):
        ids["channel"] = channel
    return ids


def _receivers(route: Any) -> tuple[Peer, ...]:
    if isinstance(route, FanOut):
        return route.receivers
    assert isinstance(route, Peer | Decision)
    return (route,) if isinstance(route, Peer) else ()


@given(_STEPS)
@settings(max_examples=60, deadline=None)
def test_nothing_leaves_its_target_and_answers_reach_who_asked(steps: list[Any]) -> None:
    fleet = Fleet()
    for act, who, number, request, session, channel in steps:
        if act == "client" and fleet.clients:
            fleet.client_sends(fleet.clients[who % len(fleet.clients)], number, request, session, channel)
        elif act == "daemon":
            fleet.daemon_sends(fleet.daemons[who % len(fleet.daemons)], number, request, session, channel)
        elif act == "leave" and fleet.clients:
            fleet.leave(fleet.clients[who % len(fleet.clients)])
        elif act == "join":
            fleet.join(*PLACES[who % len(PLACES)], list(Scope)[number % len(Scope)])
        elif act == "wait":
            fleet.house.now += number


def test_the_steps_reach_every_kind_of_receiver() -> None:
    """So that the property says something: each kind of frame has a receiver."""
    fleet = Fleet()
    runtime, pairing, viewer, other = (
        next(peer for peer in fleet.clients if peer.scope is scope) for scope in (*Scope, Scope.RUNTIME)
    )
    assert other is runtime and viewer.scope is Scope.SESSION_EVENTS
    fleet.client_sends(runtime, 1, "one", "two", "")
    fleet.daemon_sends(fleet.daemons[0], 1, "one", "two", "")
    fleet.client_sends(pairing, 0, "one", "two", "")
    fleet.daemon_sends(fleet.daemons[0], 4, "one", "two", "")
    assert fleet.model.asked.keys() == {
        (runtime.target, "exchange", "one"),
        (runtime.target, "pairing", "one"),
    }
    assert fleet.model.opened == {(runtime.target, "two"): {runtime}}
