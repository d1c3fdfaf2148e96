"""Bounded tables: requestId -> the owner that waits for the answer, sessionId -> the session's owner.

An owner is any hashable value: a peer, or the id of another relay. Times are seconds of a monotonic clock. Ids come from
peers and may be as long as a frame: long ones are kept as digests.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import ClassVar, Final, Generic, TypeVar

from attrs import define

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


@define(eq=False)
class _Entry(Generic[Owner]):
    owner: Owner
    until: float


class _OwnerTable(Generic[Owner]):
    """Ids and their owners: at most `most`, each for a time to live. Over that number the oldest is dropped."""

    __slots__ = ("_entries", "_most")

    _ttl: ClassVar[float]

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[str | bytes, _Entry[Owner]] = {}  # in order of their records

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, name: str, owner: Owner, now: float) -> bool:
        """Give the id to `owner`, anew or once more; False while another owner has it."""
        key = _key(name)
        found = self._entries.get(key)
        if found is not None and found.owner != owner and now < found.until:
            return False
        self._entries.pop(key, None)
        if len(self._entries) >= self._most:
            del self._entries[self._first_out()]
        self._entries[key] = _Entry(owner, now + self._ttl)
        return True

    def _first_out(self) -> str | bytes:
        return next(iter(self._entries))

    def forget_owner(self, owner: Owner) -> None:
        for key in [key for key, entry in self._entries.items() if entry.owner == owner]:
            del self._entries[key]

    def expire(self, now: float) -> None:
        for key in [key for key, entry in self._entries.items() if now >= entry.until]:
            del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()


class RequestTable(_OwnerTable[Owner]):
    """Requests that wait for their one answer, each for `REQUEST_TTL`."""

    __slots__ = ()

    _ttl = REQUEST_TTL

    def owner(self, request_id: str, now: float) -> Owner | None:
        """The owner that waits for the answer to this request."""
        found = self._entries.get(_key(request_id))
        return None if found is None or now >= found.until else found.owner

    def spend(self, request_id: str) -> None:
        """Remove a request that was answered."""
        self._entries.pop(_key(request_id), None)


class SessionTable(_OwnerTable[Owner]):
    """Sessions and their owners, each until `SESSION_TTL` after its last use. Over the limit the longest unused is dropped."""

    __slots__ = ()

    _ttl = SESSION_TTL

    def owner(self, session_id: str, now: float) -> Owner | None:
        """The session's owner. The call counts as a use of the session; it is made for every e2ee frame."""
        found = self._entries.get(session_id if len(session_id) <= _LONGEST_KEY else _key(session_id))
        if found is None or now >= found.until:
            return None
        found.until = now + SESSION_TTL
        return found.owner

    def _first_out(self) -> str | bytes:
        return min(self._entries, key=lambda key: self._entries[key].until)
