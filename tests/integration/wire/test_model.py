"""Random daemons, clients, executors and faults against a model of the wire protocol (sections 3 to 8).

The real registry, router, protocol and queues run over in-memory transports (tests/memorywire.py); the model is
written from the specification. After every step each peer must have received exactly the messages of the model, byte
for byte and in order, and the model's Close. At the end all peers leave, and no state may be left.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from attrs import Factory, define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers

from tests.memorywire import TEXT, MemoryPeer, MemoryRelay, masked_frame
from tests.wireframes import encoded
from viewport_relay.admission.httpcall import Answer, Call
from viewport_relay.protocol.grant import Profile, Role, Scope

MOST_REQUESTS, MOST_SESSIONS, FRAME_MAX = 3, 4, 2000
REQUEST_TTL, SESSION_TTL, PONG_TIMEOUT, EMPTY_TTL = 120.0, 1800.0, 0.4, 120.0
#: A small limit, so that few frames suffice to fill queues and lanes and to cause pauses.
TRANSPORT_MARK = 700

PLACES = [("w", "t"), ("w", "u"), ("v", "t")]
places = st.sampled_from([PLACES[0]] * 4 + PLACES[1:])
#: For events that are to be rare.
seldom = st.sampled_from([True, False, False, False])
ONE, TWO = "agent-session:one", "agent-session:two"
LONG_ID = "i" * 600

request_ids = st.sampled_from(["r1", "r2", " r1", "r2\t", "r3", "r4", "", LONG_ID])
session_ids = st.sampled_from(["s1", "s2", "s3", "s4", "s5", " s1", LONG_ID])
profiles = st.sampled_from(["noise-ik", "noise-ikpsk2"])
channels = st.sampled_from([ONE, ONE, ONE, TWO, f" {ONE}", "agent-session:other"])
picks = st.integers(0, 1_000_000)

BAD = [
    b"",
    b"[]",
    b"{",
    b'{"type":"unknown"}',
    encoded("e2ee", seq=0),
    encoded("init v3", requestId=...),
    encoded("response v3", sessionId=" "),
    encoded("subscribe", channel="x"),
    encoded("worker request", method="PUT"),
    b'{"type":"e2ee","ciphertext":' + b"[" * 900,
]


@define(eq=False)
class Member:
    """The model of a peer."""

    peer: MemoryPeer = field(repr=False)
    role: Role
    place: tuple[str, str | None]
    scope: Scope | None = None
    required: str | None = None
    generation: int | None = None
    channels: frozenset[str] = frozenset()
    expected: list[bytes] = Factory(list)  # messages that the peer must receive
    heard: list[bytes] = Factory(list)
    closed: tuple[int, str] | None = None  # the Close that the peer must receive
    reading: bool = True  # a peer that does not read counts as half open: it gets no ping and sends no pong
    broken: bool = False  # the connection was cut: messages that the peer has not received are lost
    unread: list[Any] = Factory(list)  # messages of the peer that the relay has not read yet
    has_stopped: bool = False  # whether it ever stopped reading

    @property
    def is_cut(self) -> bool:
        """Whether the last messages may be missing. The relay aborts only connections that do not read."""
        assert not self.peer.transport.aborted or self.has_stopped
        return self.broken or self.peer.transport.aborted

    @property
    def workspace(self) -> str:
        return self.place[0]


@define
class Place:
    """The model of a target: its daemon, and the owners of requests and sessions. Times are the clock's."""

    holder: Member | None = None
    holder_generation: int | None = None
    highest: int | None = None
    replaced_at: list[float] = Factory(list)
    requests: dict[str, dict[str, tuple[Member, float]]] = Factory(lambda: {"kex": {}, "pairing": {}})
    sessions: dict[str, tuple[Member, float]] = Factory(dict)
    channels: dict[str, list[Member]] = Factory(dict)
    left_at: float = 0.0


class Platform:
    """Replaces the HTTP client: every request of an executor waits until the test responds to it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Deferred[Answer]]] = []

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        answer: Deferred[Answer] = Deferred()
        self.waiting.append((call.url, answer))
        return await answer


class Relay(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.platform = Platform()
        self.relay = MemoryRelay(
            self.platform,
            RELAY_PAIRING_REQUEST_TRACK_MAX=str(MOST_REQUESTS),
            RELAY_SESSION_OWNER_TRACK_MAX=str(MOST_SESSIONS),
            SERVER_URL="http://platform",
            RELAY_FRAME_MAX_BYTES=str(FRAME_MAX),
            RELAY_PONG_TIMEOUT_MS=str(int(PONG_TIMEOUT * 1000)),
        )
        self.places = {place: Place() for place in PLACES}
        self.members: list[Member] = []
        self.asked: dict[str, Member] = {}  # request of an executor -> the executor
        self.count = 0

    # -- helpers of the rules ------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.relay.clock.seconds()

    def alive(self, role: Role, scope: Scope | None = None) -> list[Member]:
        return [m for m in self.members if m.role is role and (scope is None or m.scope is scope)]

    def pick(self, members: list[Member], number: int) -> Member | None:
        return members[number % len(members)] if members else None

    def message(self, member: Member, name: str, **changes: Any) -> bytes:
        """A unique frame that identifies its sender."""
        self.count += 1
        return encoded(name, n=self.count, by=member.peer.connection.info.connection_id, **changes)

    def came(self, member: Member, **claims: Any) -> None:
        member.peer.transport.bufferSize = TRANSPORT_MARK
        self.members.append(member)

    def gone(self, member: Member) -> None:
        """Remove a member from routing; messages that were sent to it before still arrive."""
        self.members.remove(member)
        place = self.places.get(member.place)  # type: ignore[arg-type]
        if place is None:
            return
        place.left_at = self.now
        if member.role is Role.DAEMON:
            if place.holder is member:
                place.holder = None
                self.forget_daemon(place)
            return
        for table in (*place.requests.values(), place.sessions):
            for key in [key for key, (owner, _) in table.items() if owner is member]:
                del table[key]
        for subscribers in place.channels.values():
            if member in subscribers:
                subscribers.remove(member)

    @staticmethod
    def forget_daemon(place: Place) -> None:
        place.requests = {"kex": {}, "pairing": {}}
        place.sessions = {}

    def close(self, member: Member, text: str, code: int = 4008) -> None:
        member.closed = (code, text)
        self.gone(member)

    def say(self, member: Member, message: bytes, meaning: Any) -> None:
        """Send a message; `meaning()` updates the model when the relay reads the message."""
        if member.peer.connection.reader.paused:
            member.unread.append(meaning)
        else:
            meaning()
        member.peer.say(message, pump=False)
        self.settle()

    def settle(self) -> None:
        """Let the relay work, and update the model for peers that the relay reads again."""
        self.relay.clock.advance(0.001)
        self.relay.pump()
        for member in list(self.members):
            while member.unread and not member.peer.connection.reader.paused and member in self.members:
                member.unread.pop(0)()
        self.listen()

    def listen(self) -> None:
        for member in [*self.members, *self.leaving]:
            member.heard += member.peer.heard()

    # -- joining and leaving -------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.leaving: list[Member] = []
        for where in PLACES:
            self.daemon_comes(where, 1, False, True)
            for scope in (
                Scope.RUNTIME,
                Scope.RUNTIME,
                Scope.PAIRING,
                Scope.SESSION_EVENTS,
                Scope.SESSION_EVENTS,
            ):
                self.client_comes(where, scope, "alice", None)

    @rule(where=places, generation=st.sampled_from([None, 1, 2, 3, 4, 5]), psk=seldom, now=st.booleans())
    def daemon_comes(self, where: tuple[str, str], generation: int | None, psk: bool, now: bool) -> None:
        if not now and self.places[where].holder is not None:
            return
        place = self.places[where]
        self.relay.clock.advance(0.001)
        peer = self.relay.daemon(
            generation, workspace=where[0], target=where[1], e2ee_profile=Profile.IKPSK2 if psk else None
        )
        member = Member(
            peer, Role.DAEMON, where, required="noise-ikpsk2" if psk else None, generation=generation
        )
        self.came(member)
        self.leaving.append(member)
        if generation is not None and place.highest is not None and generation < place.highest:
            self.close(member, "stale daemon generation")
            self.settle()
            return
        if generation is not None:
            place.highest = generation
        holder = place.holder
        recent = [at for at in place.replaced_at if self.now - at < 60.0]
        higher = (
            generation is not None
            and place.holder_generation is not None
            and generation > place.holder_generation
        )
        if holder is not None and higher and len(recent) < 3:
            place.replaced_at.append(self.now)
            self.close(holder, "replaced by newer daemon")
        elif holder is not None:
            # A contest; it ends within the time limit of a pong.
            silent = not holder.reading
            self.relay.wait(PONG_TIMEOUT + 0.2)
            if not silent:
                self.close(member, "daemon already connected")
                self.settle()
                return
            holder.broken = True
            self.gone(holder)
            assert holder.peer.connection.is_lost
        place.holder = member
        place.holder_generation = place.highest if generation is None else generation
        self.settle()

    @rule(
        where=places,
        scope=st.sampled_from([Scope.RUNTIME, Scope.RUNTIME, Scope.PAIRING, Scope.SESSION_EVENTS]),
        name=st.sampled_from(["alice", "bob"]),
        required=st.sampled_from([None, None, None, None, Profile.IK, Profile.IKPSK2]),
    )
    def client_comes(self, where: tuple[str, str], scope: Scope, name: str, required: Profile | None) -> None:
        allowed = frozenset({ONE, TWO}) if name == "alice" else frozenset({ONE})
        peer = self.relay.client(
            scope,
            workspace=where[0],
            target=where[1],
            client_id=name,
            e2ee_profile=required,
            session_channels=allowed,
        )
        member = Member(peer, Role.CLIENT, where, scope, required and required.value, channels=allowed)
        self.came(member)
        self.leaving.append(member)
        self.settle()

    @rule(where=places)
    def worker_comes(self, where: tuple[str, str]) -> None:
        member = Member(self.relay.worker(workspace=where[0], target=where[1]), Role.WORKER, where)
        self.came(member)
        self.leaving.append(member)
        self.settle()

    @precondition(lambda self: self.members)
    @rule(
        number=picks,
        how=st.sampled_from(["close", "vanish", "protocol error", "not UTF-8", "too large"]),
        now=st.booleans(),
    )
    def somebody_goes(self, number: int, how: str, now: bool) -> None:
        if not now:
            return
        member = self.pick(self.members, number)
        assert member is not None
        if how == "vanish" or not member.reading or member.peer.connection.reader.paused:
            self.gone(member)
            member.broken = True
            member.peer.transport.vanish()
        elif how == "close":
            self.gone(member)
            member.closed = (1000, "")
            member.peer.answers_close = False
            member.peer.raw(masked_frame(8, struct.pack("!H", 1000)), pump=False)
        elif how == "protocol error":
            self.close(member, "WebSocket protocol error", 1002)
            member.peer.raw(b"\xf1\x80mask", pump=False)
        elif how == "not UTF-8":
            self.close(member, "text is not UTF-8", 1007)
            member.peer.raw(masked_frame(TEXT, b"\xff\xfe"), pump=False)
        else:
            self.close(member, "frame too large", 1009)
            member.peer.raw(masked_frame(TEXT, b"x" * (FRAME_MAX + 1)), pump=False)
        self.settle()

    @precondition(lambda self: self.members)
    @rule(number=picks)
    def somebody_stops_reading(self, number: int) -> None:
        member = self.pick(self.members, number)
        assert member is not None
        self.stops_reading(member)

    @staticmethod
    def stops_reading(member: Member) -> None:
        member.reading, member.has_stopped = False, True
        member.peer.stop_reading()

    @precondition(lambda self: any(not m.reading for m in self.members))
    @rule(number=picks)
    def somebody_reads_on(self, number: int) -> None:
        member = self.pick([m for m in self.members if not m.reading], number)
        assert member is not None
        member.reading = True
        member.peer.transport.window = 1 << 62
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 5.0, 119.0, 1000.0, 1801.0]))
    def time_passes(self, seconds: float) -> None:
        self.relay.wait(seconds, step=max(0.5, seconds / 4))
        self.settle()
        self.relay.clean_up()
        for where, place in self.places.items():
            for kind, table in place.requests.items():
                place.requests[kind] = {key: entry for key, entry in table.items() if self.now < entry[1]}
            place.sessions = {
                key: entry for key, entry in place.sessions.items() if self.now < entry[1] + SESSION_TTL
            }
            if self.now - place.left_at >= EMPTY_TTL and all(m.place != where for m in self.members):
                self.places[where] = Place()

    # -- frames of clients ---------------------------------------------------------------------------------------

    def to_daemon(self, member: Member, message: bytes) -> None:
        holder = self.places[member.place].holder  # type: ignore[index]
        if holder is not None:
            holder.expected.append(message)
        else:
            self.reply(
                member,
                type="relay_status",
                code="DAEMON_UNAVAILABLE",
                message="No machine runtime is connected for this runtime target",
                workspaceId=member.workspace,
                retryable=True,
                runtimeTargetId=member.place[1],
            )

    def reply(self, member: Member, **members: Any) -> None:
        member.expected.append(json.dumps(members, separators=(",", ":")).encode())

    def client_says(self, member: Member, name: str, **changes: Any) -> None:
        """Check scope and profile first, then apply the frame's own rule."""
        message = self.message(member, name, **changes)

        def meaning() -> None:
            kind = {"e2ee": "runtime", "init v3": "runtime", "init v2": "runtime"}.get(name)
            kind = kind or ("pairing" if name in ("offer request", "redeem request") else "session-events")
            if kind == "session-events" and member.scope is not Scope.SESSION_EVENTS:
                self.close(member, "session-events scope required")
            elif member.scope is Scope.SESSION_EVENTS and kind != "session-events":
                self.reply(
                    member,
                    type="relay_status",
                    code="SESSION_EVENTS_SCOPE_ONLY",
                    message="session-events scoped clients can only subscribe to authorized session event channels",
                    workspaceId=member.workspace,
                )
            elif member.scope is not None and kind != member.scope.value:
                self.close(member, f"{member.scope.value} scope only")
            elif kind == "runtime" and member.required not in (None, changes["profile"]):
                self.close(member, "client frame profile mismatch")
            elif kind == "session-events":
                self.session_events(member, name, message, changes["channel"])
            elif name == "e2ee":
                self.client_envelope(member, message, changes["sessionId"])
            else:
                self.request(member, message, "kex" if kind == "runtime" else "pairing", changes["requestId"])

        self.say(member, message, meaning)

    def request(self, member: Member, message: bytes, kind: str, request_id: str) -> None:
        place, key = self.places[member.place], request_id.strip()  # type: ignore[index]
        if place.holder is None or not key:
            self.to_daemon(member, message)
            return
        table = place.requests[kind]
        asked = table.get(key)
        if asked is not None and asked[0] is not member and self.now < asked[1]:
            return  # another client's: dropped
        table.pop(key, None)
        table[key] = (member, self.now + REQUEST_TTL)
        if len(table) > MOST_REQUESTS:
            del table[next(iter(table))]
        self.to_daemon(member, message)

    def client_envelope(self, member: Member, message: bytes, session_id: str) -> None:
        if self.owner_of(self.places[member.place], session_id) in (None, member):  # type: ignore[index]
            self.to_daemon(member, message)

    def owner_of(self, place: Place, session_id: str) -> Member | None:
        owned = place.sessions.get(session_id)
        if owned is None or self.now >= owned[1] + SESSION_TTL:
            return None
        place.sessions[session_id] = (owned[0], self.now)
        return owned[0]

    def session_events(self, member: Member, name: str, message: bytes, channel: str) -> None:
        place, key = self.places[member.place], channel.strip()  # type: ignore[index]
        subscribers = place.channels.setdefault(key, [])
        if key not in member.channels:
            what = "session_viewer_presence" if name == "presence" else "session_events.subscribe"
            self.reply(
                member,
                type=f"viewport.{what}_denied/v1",
                channel=key,
                reason="CHANNEL_NOT_AUTHORIZED",
                workspaceId=member.workspace,
            )
        elif name == "unsubscribe":
            if member in subscribers:
                subscribers.remove(member)
            self.reply(member, type="viewport.session_events.unsubscribed/v1", channel=key)
        elif name == "subscribe":
            if member not in subscribers:
                subscribers.append(member)
            self.reply(
                member,
                type="viewport.session_events.subscribed/v1",
                channel=key,
                afterSequence=0,
                authoritativeSource="session_events",
                websocketRequiredForBackfill=False,
            )
        else:
            for other in subscribers:
                if other is not member and not other.peer.connection.outbox.blocked:
                    other.expected.append(message)  # a paused peer misses it

    @precondition(lambda self: self.alive(Role.CLIENT, Scope.RUNTIME))
    @rule(number=picks, request_id=request_ids, profile=profiles, version=st.sampled_from(["v2", "v3"]))
    def key_exchange(self, number: int, request_id: str, profile: str, version: str) -> None:
        member = self.pick(self.alive(Role.CLIENT, Scope.RUNTIME), number)
        assert member is not None
        if member.required is not None and number % 8:
            profile = member.required  # usually the right one
        self.client_says(member, f"init {version}", requestId=request_id, profile=profile, pairingPeerId="p")

    @precondition(lambda self: self.alive(Role.CLIENT, Scope.RUNTIME))
    @rule(number=picks, session_id=session_ids, profile=profiles, burst=st.integers(1, 4))
    def envelope(self, number: int, session_id: str, profile: str, burst: int) -> None:
        member = self.pick(self.alive(Role.CLIENT, Scope.RUNTIME), number)
        assert member is not None
        if member.required is not None and number % 8:
            profile = member.required
        owned = [key for key, (who, _) in self.places[member.place].sessions.items() if who is member]  # type: ignore[index]
        if owned and number % 3:
            session_id = owned[number % len(owned)]
        for _ in range(burst):
            if member in self.members:
                self.client_says(member, "e2ee", sessionId=session_id, profile=profile, ciphertext="c" * 300)

    @precondition(lambda self: self.alive(Role.CLIENT, Scope.PAIRING))
    @rule(
        number=picks,
        request_id=request_ids.filter(bool),
        name=st.sampled_from(["offer request", "redeem request"]),
    )
    def pairing(self, number: int, request_id: str, name: str) -> None:
        member = self.pick(self.alive(Role.CLIENT, Scope.PAIRING), number)
        assert member is not None
        self.client_says(member, name, requestId=request_id)

    @precondition(lambda self: self.alive(Role.CLIENT, Scope.SESSION_EVENTS))
    @rule(
        number=picks,
        channel=channels,
        name=st.sampled_from(["subscribe", "subscribe", "unsubscribe", "presence"]),
    )
    def viewer(self, number: int, channel: str, name: str) -> None:
        member = self.pick(self.alive(Role.CLIENT, Scope.SESSION_EVENTS), number)
        assert member is not None
        self.client_says(member, name, channel=channel)

    @precondition(lambda self: self.alive(Role.CLIENT))
    @rule(
        number=picks,
        now=seldom,
        name=st.sampled_from(["e2ee", "init v3", "offer request", "subscribe", "presence"]),
    )
    def any_scope(self, number: int, now: bool, name: str) -> None:
        if not now:
            return
        member = self.pick(self.alive(Role.CLIENT), number)
        assert member is not None
        changes = {
            "e2ee": {"sessionId": "s1", "profile": "noise-ik"},
            "init v3": {"requestId": "r1", "profile": "noise-ik"},
            "offer request": {"requestId": "r1"},
        }.get(name, {"channel": ONE})
        self.client_says(member, name, **changes)

    @precondition(lambda self: self.members)
    @rule(number=picks, bad=st.sampled_from(BAD))
    def nonsense(self, number: int, bad: bytes) -> None:
        member = self.pick(self.members, number)
        assert member is not None

        def meaning() -> None:
            if member.role is Role.CLIENT:
                self.reply(
                    member,
                    type="relay_status",
                    code="INVALID_FRAME",
                    message="client frame must be a valid runtime or pairing control frame",
                    workspaceId=member.workspace,
                )

        self.say(member, bad, meaning)

    # -- frames of daemons -----------------------------------------------------------------------------------------

    def sitting(self, number: int) -> Member | None:
        return self.pick([p.holder for p in self.places.values() if p.holder is not None], number)

    def daemon_says(self, name: str, number: int, **changes: Any) -> None:
        member = self.sitting(number)
        if member is None:
            return
        if "profile" in changes and member.required is not None and number % 8:
            changes["profile"] = member.required
        self.says(member, name, **changes)

    def says(self, member: Member, name: str, **changes: Any) -> None:
        place = self.places[member.place]  # type: ignore[index]
        message = self.message(member, name, **changes)

        def meaning() -> None:
            if changes.get("profile") == "noise-ik" and member.required == "noise-ikpsk2":
                self.close(member, "daemon frame profile mismatch")
            elif name in ("e2ee", "key update"):
                self.tell(self.owner_of(place, changes["sessionId"]), message)
            elif name == "session event":
                for subscriber in place.channels.get(changes["channel"].strip(), []):
                    subscriber.expected.append(message)
            elif name in ("response v3", "response v2"):
                self.tell(
                    self.exchange_answered(place, changes["requestId"].strip(), changes["sessionId"]), message
                )
            else:
                asked = place.requests["pairing"].pop(changes["requestId"].strip(), None)
                if asked is not None and self.now < asked[1]:
                    self.tell(asked[0], message)

        self.say(member, message, meaning)

    def exchange_answered(self, place: Place, request_id: str, session_id: str) -> Member | None:
        asked = place.requests["kex"].get(request_id)
        if asked is None or self.now >= asked[1]:
            return None
        owned = place.sessions.get(session_id)
        if owned is not None and owned[0] is not asked[0] and self.now < owned[1] + SESSION_TTL:
            return None
        del place.requests["kex"][request_id]
        place.sessions.pop(session_id, None)
        if len(place.sessions) >= MOST_SESSIONS:
            del place.sessions[min(place.sessions, key=lambda key: place.sessions[key][1])]
        place.sessions[session_id] = (asked[0], self.now)
        return asked[0]

    @staticmethod
    def tell(member: Member | None, message: bytes) -> None:
        if member is not None:
            member.expected.append(message)

    @rule(number=picks, request_id=request_ids.filter(str.strip), session_id=session_ids, profile=profiles)
    def key_exchange_answer(self, number: int, request_id: str, session_id: str, profile: str) -> None:
        version = "v2" if number % 3 == 0 else "v3"
        self.daemon_says(
            f"response {version}", number, requestId=request_id, sessionId=session_id, profile=profile
        )

    @precondition(lambda self: self.alive(Role.CLIENT, Scope.RUNTIME))
    @rule(
        number=picks,
        session_id=session_ids,
        burst=st.integers(0, 8),
        stop=st.sampled_from(["", "", "client", "daemon"]),
    )
    def conversation(self, number: int, session_id: str, burst: int, stop: str) -> None:
        """A session as real peers have it; one of the two may stop reading during it."""
        client = self.pick(self.alive(Role.CLIENT, Scope.RUNTIME), number)
        assert client is not None
        place = self.places[client.place]  # type: ignore[index]
        profile = client.required or "noise-ikpsk2"
        self.client_says(client, "init v3", requestId=f"r{self.count}", profile=profile, pairingPeerId="p")
        if place.holder is None or client not in self.members:
            return
        self.says(
            place.holder,
            "response v3",
            requestId=f"r{self.count - 1}",
            sessionId=session_id,
            profile="noise-ikpsk2",
        )
        if number % 4 == 0 and place.holder is not None:  # spent: dropped
            self.says(
                place.holder,
                "response v3",
                requestId=f"r{self.count - 2}",
                sessionId=f"s{number % 3}",
                profile="noise-ikpsk2",
            )
        if stop and place.holder is not None:
            self.stops_reading(client if stop == "client" else place.holder)
        for _ in range(burst):
            if place.holder is not None and client in self.members:
                self.client_says(client, "e2ee", sessionId=session_id, profile=profile, ciphertext="c" * 300)
            if place.holder is not None:
                self.says(
                    place.holder, "e2ee", sessionId=session_id, profile="noise-ikpsk2", ciphertext="d" * 300
                )

    @rule(number=picks)
    def answer_that_fits(self, number: int) -> None:
        """A daemon's frame: the response to a client's request."""
        member = self.sitting(number)
        if member is not None and (asked := list(self.places[member.place].requests["pairing"])):  # type: ignore[index]
            for _ in range(2):  # the second one is dropped
                self.daemon_says("redeem response", number, requestId=asked[number % len(asked)])
        if member is not None and (asked := list(self.places[member.place].requests["kex"])):  # type: ignore[index]
            request_id = asked[number % len(asked)]
            self.daemon_says(
                "response v3",
                number,
                requestId=request_id,
                sessionId=f"s{number % 5}",
                profile="noise-ikpsk2",
            )

    @rule(number=picks, session_id=session_ids, profile=profiles, burst=st.integers(1, 4))
    def daemon_envelope(self, number: int, session_id: str, profile: str, burst: int) -> None:
        member = self.sitting(number)
        if member is not None and number % 3 and (owned := list(self.places[member.place].sessions)):  # type: ignore[index]
            session_id = owned[number % len(owned)]
        for _ in range(burst):
            self.daemon_says("e2ee", number, sessionId=session_id, profile=profile, ciphertext="d" * 300)

    @rule(number=picks, session_id=session_ids)
    def key_update(self, number: int, session_id: str) -> None:
        self.daemon_says("key update", number, sessionId=session_id)

    @rule(
        number=picks,
        request_id=request_ids.filter(str.strip),
        name=st.sampled_from(["offer response", "offer failure", "redeem response", "redeem failure"]),
    )
    def pairing_answer(self, number: int, request_id: str, name: str) -> None:
        self.daemon_says(name, number, requestId=request_id)

    @rule(number=picks, channel=channels)
    def session_event(self, number: int, channel: str) -> None:
        self.daemon_says("session event", number, channel=channel)

    # -- frames of executors -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.alive(Role.WORKER))
    @rule(number=picks, inside=st.booleans())
    def worker_asks(self, number: int, inside: bool) -> None:
        member = self.pick(self.alive(Role.WORKER), number)
        assert member is not None
        self.count += 1
        request_id = f"request-{self.count}"
        path = f"/api/runtime/workspaces/{member.workspace}/managed-executors/x/{'' if inside else '../'}{request_id}"

        def meaning() -> None:
            if inside:
                self.asked["http://platform" + path] = member
            else:
                self.answer(member, request_id, 403, '{"ok":false,"reason":"WORKER_TRANSPORT_PATH_DENIED"}')

        self.say(member, encoded("worker request", requestId=request_id, path=path), meaning)

    def answer(self, member: Member, request_id: str, status: int, body: str) -> None:
        self.reply(
            member,
            type="viewport.worker_transport.response/v1",
            requestId=request_id,
            status=status,
            headers={"content-type": "application/json"},
            body=body,
        )

    @precondition(lambda self: self.platform.waiting)
    @rule(number=picks)
    def platform_answers(self, number: int) -> None:
        url, waiting = self.platform.waiting.pop(number % len(self.platform.waiting))
        member = self.asked.pop(url)
        if waiting.called:
            assert member not in self.members  # its executor has gone, which cancelled the request
            return
        if member in self.members:
            self.answer(member, url.rsplit("/", 1)[1], 200, "{}")
        waiting.callback(Answer(200, Headers({"Content-Type": ["application/json"]}), b"{}"))
        self.settle()

    # -- invariants ----------------------------------------------------------------------------------------------------

    @invariant()
    def everybody_heard_exactly_what_was_for_them(self) -> None:
        for member in self.leaving:
            if member.reading and not member.peer.connection.reader.paused:
                assert_same(member)
            assert member.peer.after_close == []

    @invariant()
    def tables_are_within_their_bounds_and_hold_what_they_should(self) -> None:
        for where, place in self.places.items():
            target = self.relay.registry.find(*where)
            if target is None:
                continue
            assert len(target.key_exchanges) == len(place.requests["kex"]) <= MOST_REQUESTS
            assert len(target.pairings) == len(place.requests["pairing"]) <= MOST_REQUESTS
            assert len(target.sessions) == len(place.sessions) <= MOST_SESSIONS
        joined = self.relay.registry.joined
        for role in Role:
            assert joined[role] == len(self.alive(role))

    def teardown(self) -> None:
        for member in self.leaving:
            member.reading = True
            member.peer.transport.window = 1 << 62
        self.settle()
        self.relay.wait(1.5)  # closes of the seat are sent a second later
        self.settle()
        for member in self.leaving:
            assert_same(member)
            if member in self.members:
                assert member.peer.is_open
            elif not member.is_cut:
                assert member.peer.closed == member.closed
        for member in list(self.members):
            self.gone(member)
            member.peer.leave()
        self.relay.wait(12, step=1)
        assert not self.relay.factory.connections
        assert all(
            waiting.called for _, waiting in self.platform.waiting
        )  # an executor's end cancels its requests
        assert not self.relay.clock.getDelayedCalls()
        assert not +self.relay.registry.joined
        for target in self.relay.registry:
            assert target.empty
            assert target.channels == {}
            assert len(target.key_exchanges) == len(target.pairings) == len(target.sessions) == 0
        self.relay.wait(121, step=60)
        self.relay.clean_up()
        assert len(self.relay.registry) == 0
        counters = self.relay.counters
        assert counters.ws_connections_opened == counters.ws_connections_closed


def assert_same(member: Member) -> None:
    """Compare received with expected messages. A daemon receives those of several clients: the order is kept per
    client."""
    if member.role is not Role.DAEMON:
        expected = member.expected[: len(member.heard)] if member.is_cut else member.expected
        assert member.heard == expected
        return
    heard, expected_of = by_sender(member.heard), by_sender(member.expected)
    for sender, messages in heard.items():
        assert messages == expected_of.get(sender, [])[: len(messages)]
    assert member.is_cut or len(member.heard) == len(member.expected)


def by_sender(messages: list[bytes]) -> dict[str, list[bytes]]:
    sorted_out: dict[str, list[bytes]] = {}
    for message in messages:
        sorted_out.setdefault(json.loads(message)["by"], []).append(message)
    return sorted_out


TestModel = Relay.TestCase
TestModel.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
