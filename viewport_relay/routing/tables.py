"""Bounded tables: requestId -> the owner that waits for the answer, sessionId -> the session's owner.

An owner is any hashable value: a peer, or the id of another relay. Times are seconds of a monotonic clock. Ids come from
peers and may be as long as a frame: long ones are kept as digests.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, Generic, TypeVar

#: Seconds that a request waits for its answer.
REQUEST_TTL: Final = 120.0
#: Seconds since its last use after which a session is forgotten.
SESSION_TTL: Final = 1800.0

_LONGEST_KEY: Final = 128

Owner = TypeVar("Owner")


def _key(name: str) -> str | bytes:
    if len(name) <= _LONGEST_KEY:
        return name
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).digest()


class RequestTable(Generic[Owner]):
    """Requests that wait for their one answer. At most `most` (oldest out), each for `REQUEST_TTL`."""

    __slots__ = ("_most", "_pending")

    def __init__(self, most: int) -> None:
        self._most = most
        self._pending: dict[str | bytes, tuple[Owner, float]] = {}  # in order of age

    def __len__(self) -> int:
        return len(self._pending)

    def record(self, request_id: str, owner: Owner, now: float) -> bool:
        """Note that `owner` waits for the answer; False when another owner waits for this id."""
        key = _key(request_id)
        found = self._pending.get(key)
        if found is not None and found[0] != owner and now < found[1]:
            return False
        self._pending.pop(key, None)  # so that the renewed one is the youngest
        self._pending[key] = (owner, now + REQUEST_TTL)
        while len(self._pending) > self._most:
            del self._pending[next(iter(self._pending))]
        return True

    def owner(self, request_id: str, now: float) -> Owner | None:
        """Who waits for the answer to this request."""
        found = self._pending.get(_key(request_id))
        return None if found is None or now >= found[1] else found[0]

    def spend(self, request_id: str) -> None:
        """The request is answered."""
        self._pending.pop(_key(request_id), None)

    def forget_owner(self, owner: Owner) -> None:
        for key in [k for k, (who, _) in self._pending.items() if who == owner]:
            del self._pending[key]

    def expire(self, now: float) -> None:
        for key in [k for k, (_, until) in self._pending.items() if now >= until]:
            del self._pending[key]

    def clear(self) -> None:
        self._pending.clear()


class OwnedSession(Generic[Owner]):
    """One owned session; `used_at` is touched by every frame of it."""

    __slots__ = ("owner", "used_at")

    def __init__(self, owner: Owner, used_at: float) -> None:
        self.owner = owner
        self.used_at = used_at


class SessionTable(Generic[Owner]):
    """Sessions and their owners. At most `most` (longest unused out), each until `SESSION_TTL` after its last use."""

    __slots__ = ("_most", "_sessions")

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: dict[str | bytes, OwnedSession[Owner]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def owner(self, session_id: str, now: float) -> Owner | None:
        """Who owns the session; counts as a use of it."""
        found = self._sessions.get(session_id if len(session_id) <= _LONGEST_KEY else _key(session_id))
        if found is None or now >= found.used_at + SESSION_TTL:
            return None
        found.used_at = now
        return found.owner

    def record(self, session_id: str, owner: Owner, now: float) -> bool:
        """Give the session to `owner`; False when another owner has it."""
        key = _key(session_id)
        found = self._sessions.get(key)
        if found is not None and found.owner != owner and now < found.used_at + SESSION_TTL:
            return False
        self._sessions.pop(key, None)
        if len(self._sessions) >= self._most:
            del self._sessions[min(self._sessions, key=lambda k: self._sessions[k].used_at)]
        self._sessions[key] = OwnedSession(owner, now)
        return True

    def forget_owner(self, owner: Owner) -> None:
        for key in [k for k, s in self._sessions.items() if s.owner == owner]:
            del self._sessions[key]

    def expire(self, now: float) -> None:
        for key in [k for k, s in self._sessions.items() if now >= s.used_at + SESSION_TTL]:
            del self._sessions[key]

    def clear(self) -> None:
        self._sessions.clear()
