"""Watches the end-to-end key exchange that passes through one connection (wire protocol, section 10).

The watch reads key-exchange frames only, never an e2ee frame, and only their routing members: request id,
session id, profile, epoch. The watch decides nothing: peers check their own exchange. Its tables are bounded,
the oldest entry is dropped first, and the relay may drop all of them at any time.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import evolve, frozen

PENDING_MAX = 8
SESSIONS_MAX = 8
_ID_MAX = 256  # characters; a longer id is not watched, so that none fills memory


@frozen
class _Pending:
    profile: str
    previous_session_id: str | None


@frozen
class EndToEndSession:
    """One session as the relay saw it begin.

    `next_epoch` is what the daemon asked for with
    `relay_key_update_required`, None while no new key is due. `oddity` says in words what a peer should not
    accept (the peers check that themselves), empty if nothing.
    """

    session_id: str
    profile: str
    epoch: float
    next_epoch: float | None = None
    oddity: str = ""


class ExchangeWatch:
    """The state of a client's key exchanges, as the relay sees them.

    init seen -> response seen (session, epoch) -> new key due -> init with previousSessionId -> …"""

    __slots__ = ("_pending", "_sessions")

    def __init__(self) -> None:
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._sessions: OrderedDict[str, EndToEndSession] = OrderedDict()

    @property
    def summary(self) -> str | None:
        """The latest session in a few words, None before there is one."""
        if not self._sessions:
            return "key exchange awaits its answer" if self._pending else None
        session = next(reversed(self._sessions.values()))
        words = [f"{session.profile}, epoch {session.epoch:g}"]
        if session.next_epoch is not None:
            words.append(f"key for epoch {session.next_epoch:g} is due")
        if session.oddity:
            words.append(session.oddity)
        return ", ".join(words)

    def init_seen(self, request_id: str, profile: str, previous_session_id: str | None = None) -> None:
        """A client's `relay_key_exchange_init` was let through. `request_id` is trimmed; an empty one is no id."""
        if not request_id or len(request_id) > _ID_MAX:
            return
        if previous_session_id is not None and len(previous_session_id) > _ID_MAX:
            previous_session_id = None
        self._pending.pop(request_id, None)
        self._pending[request_id] = _Pending(profile, previous_session_id)
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)

    def response_seen(
        self, request_id: str, session_id: str, profile: str, epoch: float
    ) -> EndToEndSession | None:
        """A daemon's `relay_key_exchange_response` was let through: the session, or None if no init was seen."""
        pending = self._pending.pop(request_id, None)
        if pending is None or len(session_id) > _ID_MAX:
            return None
        before = self._sessions.pop(pending.previous_session_id or "", None)
        oddity = ""
        if profile != pending.profile:
            oddity = "the response names another profile than the init"
        elif before is not None and epoch != before.epoch + 1:
            oddity = "the epoch of the new key is not one higher"
        session = EndToEndSession(session_id, profile, epoch, oddity=oddity)
        self._sessions.pop(session_id, None)
        self._sessions[session_id] = session
        if len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session

    def key_update_seen(self, session_id: str, next_epoch: float) -> EndToEndSession | None:
        """A daemon's `relay_key_update_required` was let through: the session, or None if it is not known."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        session = evolve(session, next_epoch=next_epoch)
        self._sessions[session_id] = session
        return session
