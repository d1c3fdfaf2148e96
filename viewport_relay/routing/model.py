"""The model of routing: a `Target` has the `Seat` of one daemon, clients and executors, each of them a `Peer`.

    Target (workspace, runtime target)
      seat      who is the daemon, and which daemons wait for the seat
      clients, executors, channels (who subscribed)
      key_exchanges, pairings, sessions: who waits for an answer, who owns a session

Nothing here does I/O or reads a clock. Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeAlias

from attrs import define, field, frozen

from viewport_relay.protocol.grant import Grant, Role, Scope
from viewport_relay.routing.rates import Rates
from viewport_relay.routing.tables import RequestTable, SessionTable
from viewport_relay.routing.views import PeerView

# -- peers -------------------------------------------------------------------------------------------------------

#: The subscriptions of most peers: none. A set for each would be 200 bytes.
_NO_CHANNELS: Final[frozenset[str]] = frozenset()


class Outlet(Protocol):
    """The connection of a peer, as far as routing reads it. Only the caller of the router writes to it."""

    @property
    def backlog(self) -> int: ...
    def view(self, peer: Peer, wall_offset: float) -> PeerView: ...


class RemoteSession(Protocol):
    """A session whose other end is on another relay: a receiver that publishes its e2ee frames on the bus for `relay_id`.

    The router uses it until `until` (monotonic seconds), for frames of its `profile`. About others the router decides anew.
    """

    @property
    def outlet(self) -> object: ...

    until: float
    profile: str
    relay_id: str


@define(eq=False, repr=False)
class Peer:
    """An admitted connection. Compared by identity: a client that comes back is another peer."""

    connection_id: str
    grant: Grant
    ip: str
    since: float  # monotonic seconds
    outlet: Outlet
    rates: Rates
    target: Target
    role: Role = field(init=False)
    scope: Scope | None = field(init=False)
    required_profile: str | None = field(init=False)
    channels: frozenset[str] = field(init=False, default=_NO_CHANNELS)  # subscribed, trimmed
    remote: dict[str, RemoteSession] | None = field(init=False, default=None)  # by session id; None for most

    def __attrs_post_init__(self) -> None:
        grant = self.grant
        self.role, self.scope = grant.role, grant.scope
        self.required_profile = grant.required_profile and grant.required_profile.value

    def describe(self) -> dict[str, Any]:
        """The details of a log entry about this peer."""
        return {**self.grant.describe(), "ip": self.ip}


# -- the daemon's seat (wire protocol, section 3) ----------------------------------------------------------------

#: The number of times within a minute that a higher generation takes the seat at once.
MOST_REPLACEMENTS: Final = 3
_MINUTE: Final = 60.0


@frozen
class Seated:
    """The daemon has the seat; `replaced` had it until now."""

    replaced: Peer | None = None


@frozen
class Stale:
    """The daemon's generation is lower than one that was here. The caller closes it after a second."""


@frozen
class Contested:
    """The seat is taken. The caller pings the holder; the challenger gets the seat if the holder leaves."""

    holder: Peer


SeatOutcome: TypeAlias = Seated | Stale | Contested


@define(eq=False)
class Seat:
    """The one place of a target's daemon. Generations are the grants' `daemonIssueGeneration`.

    A challenger of equal generation waits until the holder is known to live (then the caller takes the challenger out and
    closes it) or leaves (then `leave` seats the first challenger).
    """

    holder: Peer | None = None
    challengers: list[Peer] = field(factory=list)
    _generation: int | None = None  # the holder's, or what it counts as
    _highest: int | None = None
    _replacements: tuple[float, ...] = ()  # when the latest were

    def arrive(self, peer: Peer, now: float) -> SeatOutcome:
        """Give the seat to a daemon that joins, or let it wait; returns the outcome."""
        generation = peer.grant.claims.daemon_issue_generation
        if generation is not None:
            if self._highest is not None and generation < self._highest:
                return Stale()
            self._highest = generation
        holder = self.holder
        if holder is None:
            self._sit(peer)
            return Seated()
        higher = generation is not None and self._generation is not None and generation > self._generation
        if higher and not self._restless(now):
            self._replacements = (*self._replacements, now)[-MOST_REPLACEMENTS:]
            self._sit(peer)
            return Seated(replaced=holder)
        self.challengers.append(peer)
        return Contested(holder)

    def leave(self, peer: Peer) -> Peer | None:
        """Remove a holder or challenger that left; returns the daemon that has the seat now, if it changed."""
        if peer in self.challengers:
            self.challengers.remove(peer)
        if self.holder is not peer:
            return None
        self.holder = None
        return self._next()

    def _restless(self, now: float) -> bool:
        """Whether the seat changed hands so often that a higher generation no longer takes it at once."""
        return len(self._replacements) == MOST_REPLACEMENTS and now - self._replacements[0] < _MINUTE

    def _sit(self, peer: Peer) -> None:
        self.holder = peer
        # A daemon without a generation counts as whatever is there.
        generation = peer.grant.claims.daemon_issue_generation
        self._generation = self._highest if generation is None else generation

    def _next(self) -> Peer | None:
        while self.challengers:
            peer = self.challengers.pop(0)
            generation = peer.grant.claims.daemon_issue_generation
            if generation is None or self._highest is None or generation >= self._highest:
                self._sit(peer)
                return peer
            # A higher generation came meanwhile: the caller finds this one among the challengers no longer.
        return None


# -- targets -----------------------------------------------------------------------------------------------------

#: The owner of a request or session: a peer, or the id of the relay that a bus frame came from.
Owner: TypeAlias = Peer | str


@define(eq=False, repr=False)
class Target:
    """One (workspace, runtime target) and its peers. Frames are never routed from one target to another."""

    workspace_id: str
    runtime_target_id: str | None
    created_at: float
    key_exchanges: RequestTable[Owner]
    pairings: RequestTable[Owner]
    sessions: SessionTable[Owner]
    # A target without a runtime target holds no daemon, and its clients' frames never ask other relays for one.
    key: tuple[str, str] = field(init=False)
    active_at: float = field(init=False)
    frames: int = 0
    bytes: int = 0
    seat: Seat = field(factory=Seat)
    clients: dict[Peer, None] = field(factory=dict)
    executors: dict[Peer, None] = field(factory=dict)
    channels: dict[str, dict[Peer, None]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.key = self.workspace_id, self.runtime_target_id or ""
        self.active_at = self.created_at

    @property
    def _tables(self) -> tuple[RequestTable[Owner] | SessionTable[Owner], ...]:
        return self.key_exchanges, self.pairings, self.sessions

    @property
    def daemon(self) -> Peer | None:
        """The daemon that has the seat."""
        return self.seat.holder

    @property
    def empty(self) -> bool:
        """Whether no peer is here."""
        return self.seat.holder is None and not (self.clients or self.executors or self.seat.challengers)

    def add(self, peer: Peer) -> None:
        """Add a client or executor; a daemon asks the seat instead."""
        (self.executors if peer.role is Role.WORKER else self.clients)[peer] = None

    def remove_client(self, peer: Peer) -> None:
        """Remove a client or executor that left, with its requests and sessions."""
        self.clients.pop(peer, None)
        self.executors.pop(peer, None)
        for channel in peer.channels:
            self.unsubscribe(peer, channel)
        self.forget_owner(peer)

    def forget_daemon(self) -> None:
        """Forget the requests and sessions of a daemon that left or was replaced; the clients stay."""
        for table in self._tables:
            table.clear()

    def forget_owner(self, owner: Owner) -> None:
        """Forget the requests and sessions of this owner; late answers to it are dropped."""
        for table in self._tables:
            table.forget_owner(owner)

    def subscribe(self, peer: Peer, channel: str) -> None:
        """The peer gets the channel's events from now on."""
        peer.channels |= {channel}
        self.channels.setdefault(channel, {})[peer] = None

    def unsubscribe(self, peer: Peer, channel: str) -> None:
        """The peer gets the channel's events no longer."""
        peer.channels -= {channel}
        subscribers = self.channels.get(channel)
        if subscribers is not None:
            subscribers.pop(peer, None)
            if not subscribers:
                del self.channels[channel]

    def heaviest(self, limit: int) -> Peer | None:
        """The client or executor with the longest backlog, when the backlogs of all are more than `limit` bytes."""
        total, most, heaviest = 0, 0, None
        for peer in (*self.clients, *self.executors):
            backlog = peer.outlet.backlog
            total += backlog
            if backlog > most:
                most, heaviest = backlog, peer
        return heaviest if total > limit else None

    def expire(self, now: float) -> None:
        """Drop expired requests and sessions."""
        for table in self._tables:
            table.expire(now)
