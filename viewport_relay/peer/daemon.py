"""The reference daemon: answers key exchanges, keeps one conversation per client, asks for new keys in time.

Frames are texts in and out; the caller provides the connection. The handler gets a `Conversation` and may answer at once,
later, or with many messages.

    client                                       daemon
      | -- relay_key_exchange_init -----------------> |   new conversation, epoch 1
      | <- relay_key_exchange_response -------------- |
      | <= e2ee ====================================> |
      | <- relay_key_update_required ---------------- |   after `rekey_after` messages
      | -- relay_key_exchange_init previousSessionId> |   same conversation, epoch + 1
      | <- relay_key_exchange_response -------------- |

Nothing is stored, and key exchanges are of version 3 only. Conversations do not expire: the oldest one goes when there are
too many.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from attrs import define, field

from viewport_relay.peer import frames
from viewport_relay.peer.e2e import Responder
from viewport_relay.peer.envelope import Session
from viewport_relay.peer.errors import Code, PeerError, require
from viewport_relay.peer.frames import Members
from viewport_relay.peer.symmetric import KeyPair, Profile

REKEY_AFTER = 250
MAX_CONVERSATIONS = 1_024


class Conversation:
    """The messages of a daemon and one client, across key renewals."""

    def __init__(self, session: Session, deliver: Callable[[Conversation, str], None]) -> None:
        self.current = session
        self.previous: Session | None = None
        self.noticed_at = 0
        self._deliver = deliver

    @property
    def epoch(self) -> int:
        """The epoch of the current session: 1 at first, one more after each key renewal."""
        return self.current.epoch

    def send(self, text: str) -> None:
        """Send one application message (PeerError SESSION_EXHAUSTED, or what the connection raises)."""
        self._deliver(self, self.current.seal(text))

    def renew(self, session: Session) -> Session | None:
        """Send with `session` from now on; returns the session that is no longer used for receiving, if there is one."""
        retired, self.previous, self.current = self.previous, self.current, session
        self.noticed_at = 0
        return retired


@define(eq=False, repr=False)
class DaemonPeer:
    """The wire protocol of one daemon.

    `send` takes a frame's text. With `pairing_secrets`, which maps pairing peer ids to 32-byte secrets, the daemon
    answers the profile noise-ikpsk2 only; without it noise-ik only. `rekey_after` counts the messages of a session,
    both ways. Refused frames are counted in `refused` by code and otherwise ignored: the relay, not the client, may
    have sent them.
    """

    _identity: KeyPair
    _send: Callable[[str], None]
    _on_message: Callable[[Conversation, str], None]
    _pairing_secrets: Mapping[str, bytes] | None = field(default=None, kw_only=True)
    _rekey_after: int = field(default=REKEY_AFTER, kw_only=True)
    _max_conversations: int = field(default=MAX_CONVERSATIONS, kw_only=True)
    _sessions: dict[str, tuple[Conversation, Session]] = field(factory=dict, init=False)
    conversations: OrderedDict[Conversation, None] = field(factory=OrderedDict, init=False)
    """The open conversations, least recently used first."""
    refused: Counter[Code] = field(factory=Counter, init=False)
    rekeys: int = field(default=0, init=False)

    def frame_received(self, text: str) -> None:
        """Handle one frame from the relay; never raises PeerError for what the frame holds."""
        try:
            frame = frames.parse(text)
            kind = frame.get("type")
            if kind == frames.KEY_EXCHANGE_INIT:
                self._exchange(frame)
            elif kind == frames.ENVELOPE:
                conversation, message = self._open(frame)
        except PeerError as error:
            self.refused[error.code] += 1
            return
        if kind == frames.ENVELOPE:
            # Outside the guard: what the handler raises is its own, not the frame's fault.
            self._on_message(conversation, message)
            self._ask_for_new_keys(conversation)

    def _exchange(self, frame: Members) -> None:
        responder = Responder(frame, self._identity)
        secrets_known = self._pairing_secrets
        accepted = responder.profile is (Profile.IK if secrets_known is None else Profile.IKPSK2)
        require(accepted, Code.PROFILE_MISMATCH, "the client's profile is not accepted here")
        psk = (secrets_known or {}).get(responder.pairing_peer_id or "")
        conversation = self._continued(responder)
        epoch = 1 if conversation is None else conversation.epoch + 1
        response, keys = responder.respond(f"rs_{secrets.token_urlsafe(16)}", epoch, psk=psk)
        session = Session(keys)
        if conversation is None:
            conversation = Conversation(session, self._deliver)
        else:
            retired = conversation.renew(session)
            if retired is not None:
                self._sessions.pop(retired.session_id, None)
            self.rekeys += 1
        self._sessions[session.session_id] = (conversation, session)
        self.conversations[conversation] = None
        self.conversations.move_to_end(conversation)
        while len(self.conversations) > self._max_conversations:
            self._forget(next(iter(self.conversations)))
        self._send(frames.compact(response))

    def _continued(self, responder: Responder) -> Conversation | None:
        """The conversation that an init renews: only its own client may, and only under the same profile."""
        known = self._sessions.get(responder.previous_session_id or "")
        if known is None:
            return None
        conversation, session = known
        same = session.profile is responder.profile and session.same_client(responder.client_public)
        return conversation if same else None

    def _open(self, frame: Members) -> tuple[Conversation, str]:
        known = self._sessions.get(frames.string(frame, "sessionId"))
        if known is None:
            raise PeerError(Code.SESSION_UNKNOWN, "no such session here")
        conversation, session = known
        message = session.open(frame)
        self.conversations.move_to_end(conversation)
        if session is conversation.current and conversation.previous is not None:
            # Order is kept on the way, so nothing sent under the old keys can come any more.
            self._sessions.pop(conversation.previous.session_id, None)
            conversation.previous = None
        return conversation, message

    def _deliver(self, conversation: Conversation, frame: str) -> None:
        self._send(frame)
        self._ask_for_new_keys(conversation)

    def _ask_for_new_keys(self, conversation: Conversation) -> None:
        carried = conversation.current.sealed + conversation.current.opened
        # Asked again from time to time: the notice or its answer may get lost on the way.
        repeat = max(1, self._rekey_after // 5)
        due = self._rekey_after if conversation.noticed_at == 0 else conversation.noticed_at + repeat
        if carried < due:
            return
        conversation.noticed_at = carried
        notice: Members = {
            "type": frames.KEY_UPDATE_REQUIRED,
            "sessionId": conversation.current.session_id,
            "nextEpoch": conversation.epoch + 1,
            "reason": "message_threshold",
        }
        self._send(frames.compact(notice))

    def _forget(self, conversation: Conversation) -> None:
        del self.conversations[conversation]
        for session in (conversation.current, conversation.previous):
            if session is not None:
                self._sessions.pop(session.session_id, None)
