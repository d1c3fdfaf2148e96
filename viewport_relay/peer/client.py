"""The reference client: exchanges keys with a daemon, carries messages both ways, renews keys when asked.

Frames are texts in and out; the caller provides the connection (`connection`, `reconnect`). During a key renewal messages
are sent under the old keys. Old keys open received messages until the daemon has used the new ones, so that no message in
flight is lost. Messages that a broken connection has lost are not repeated. Key exchanges are of version 3 only.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred
from twisted.internet.task import deferLater

from viewport_relay.peer import frames
from viewport_relay.peer.e2e import Initiator, SessionKeys
from viewport_relay.peer.envelope import Session
from viewport_relay.peer.errors import Code, PeerError, require
from viewport_relay.peer.frames import Members
from viewport_relay.peer.symmetric import KeyPair, Profile

EXCHANGE_SECONDS = 10.0


@frozen(repr=False)
class Pairing:
    """The result of a pairing: the client's id at the daemon, and the 32-byte secret. No repr: it holds a secret."""

    peer_id: str
    secret: bytes


@define(eq=False, repr=False)
class ClientPeer:
    """The wire protocol of one client.

    `send` takes a frame's text; `on_message` gets each application message. With a `pairing` the profile is
    noise-ikpsk2, without it noise-ik. Refused frames are counted in `refused` by code and otherwise ignored.
    """

    _reactor: Any
    _identity: KeyPair
    _daemon_public: bytes
    _send: Callable[[str], None]
    _on_message: Callable[[str], None]
    _pairing: Pairing | None = field(default=None, kw_only=True)
    _pending: dict[str, tuple[Initiator, Deferred[SessionKeys]]] = field(factory=dict, init=False)
    _current: Session | None = field(default=None, init=False)
    _previous: Session | None = field(default=None, init=False)
    _renewing: bool = field(default=False, init=False)
    refused: Counter[Code] = field(factory=Counter, init=False)
    rekeys: int = field(default=0, init=False)

    @property
    def profile(self) -> Profile:
        """The handshake profile of this client."""
        return Profile.IK if self._pairing is None else Profile.IKPSK2

    @property
    def epoch(self) -> int:
        """The epoch of the current session; 0 before the first key exchange."""
        return 0 if self._current is None else self._current.epoch

    @property
    def session_id(self) -> str | None:
        """The id of the current session; None before the first key exchange."""
        return None if self._current is None else self._current.session_id

    async def exchange_keys(self, *, attempts: int = 1, pause: float = 0.25) -> None:
        """Agree on a session, or on the next one if there is one already.

        Where no daemon is there, tries `attempts` times in all, `pause` seconds apart. Raises PeerError:
        DAEMON_UNAVAILABLE, TIMEOUT, NOT_CONNECTED, or what `Initiator.finish` raises.
        """
        for left in range(attempts - 1, -1, -1):
            try:
                await self._exchange()
            except PeerError as error:
                if error.code is not Code.DAEMON_UNAVAILABLE or not left:
                    raise
                await deferLater(self._reactor, pause, lambda: None)
            else:
                return

    async def _exchange(self) -> None:
        pairing = self._pairing
        request_id = f"kex_{secrets.token_urlsafe(12)}"
        initiator = Initiator(
            self.profile,
            self._identity,
            self._daemon_public,
            request_id=request_id,
            psk=None if pairing is None else pairing.secret,
            pairing_peer_id=None if pairing is None else pairing.peer_id,
            previous_session_id=self.session_id,
        )
        answered: Deferred[SessionKeys] = Deferred()
        self._pending[request_id] = (initiator, answered)
        try:
            self._send(frames.compact(initiator.init_frame()))
            await answered.addTimeout(EXCHANGE_SECONDS, self._reactor)
        except TimeoutError:
            raise PeerError(Code.TIMEOUT, "the daemon did not answer the key exchange in time") from None
        finally:
            self._pending.pop(request_id, None)

    def send(self, text: str) -> None:
        """Send one application message, not empty.

        Raises PeerError SESSION_UNKNOWN before any key exchange.
        """
        if self._current is None:
            raise PeerError(Code.SESSION_UNKNOWN, "no keys were exchanged yet")
        self._send(self._current.seal(text))

    def frame_received(self, text: str) -> None:
        """Handle one frame from the relay; never raises PeerError for what the frame holds."""
        try:
            frame = frames.parse(text)
            message = self._understand(frame)
        except PeerError as error:
            self.refused[error.code] += 1
            return
        if message is not None:
            self._on_message(message)

    def _understand(self, frame: Members) -> str | None:
        kind = frame.get("type")
        if kind == frames.ENVELOPE:
            return self._open(frame)
        if kind == frames.KEY_EXCHANGE_RESPONSE:
            self._answer(frame)
        elif kind == frames.KEY_UPDATE_REQUIRED:
            self._notice(frame)
        elif kind == frames.STATUS:
            self._status(frame)
        return None

    def _open(self, frame: Members) -> str:
        session_id = frames.string(frame, "sessionId")
        for session in (self._current, self._previous):
            if session is not None and session.session_id == session_id:
                message = session.open(frame)
                if session is self._current:
                    # The daemon has the new keys, and what it sent under the old ones came before.
                    self._previous = None
                return message
        raise PeerError(Code.SESSION_UNKNOWN, "no such session here")

    def _answer(self, frame: Members) -> None:
        pending = self._pending.pop(frames.string(frame, "requestId"), None)
        if pending is None:
            raise PeerError(Code.REQUEST_MISMATCH, "no request waits for this key exchange")
        initiator, answered = pending
        try:
            keys = initiator.finish(frame)
        except PeerError as error:
            self.refused[error.code] += 1
            answered.errback(error)
            return
        # Installed before anything else is read: the daemon's next frame may already use them.
        self._previous, self._current = self._current, Session(keys)
        answered.callback(keys)

    def _notice(self, frame: Members) -> None:
        named = frames.string(frame, "sessionId"), frames.positive(frame, "nextEpoch")
        own = named == (self.session_id, self.epoch + 1)
        require(own, Code.SESSION_MISMATCH, "the key update is not for the current session")
        if not self._renewing:
            self._renewing = True
            ensureDeferred(self._renew())

    async def _renew(self) -> None:
        try:
            await self.exchange_keys()
        except PeerError as error:
            # The daemon asks again; until then the old session goes on.
            self.refused[error.code] += 1
        else:
            self.rekeys += 1
        finally:
            self._renewing = False

    def _status(self, frame: Members) -> None:
        if frame.get("code") == Code.DAEMON_UNAVAILABLE.value:
            pending, self._pending = self._pending, {}
            for _, answered in pending.values():
                answered.errback(PeerError(Code.DAEMON_UNAVAILABLE, "no daemon is connected for this target"))
