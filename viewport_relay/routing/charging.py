"""Charging: the rates that each message of a peer counts against, and the Close of a peer that exceeds one.

Every frame of a client is charged to it. Where it is forwarded: an e2ee frame to the client's and the workspace's runtime rate,
others to a rate of their own. Where it is answered or dropped instead: to the client's runtime rate, and its bytes to a budget.
The sender's own limit comes first, and no frame that is dropped or answered uses up the workspace's. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Final

from viewport_relay.protocol import status
from viewport_relay.protocol.frames import ClientFrame, E2ee
from viewport_relay.protocol.grant import Role
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Close, Decision, Drop
from viewport_relay.routing.model import Peer
from viewport_relay.routing.rates import FrameRates, Rare
from viewport_relay.windows import Window

#: Bytes a minute of a client's messages that are answered or dropped instead of forwarded.
UNFORWARDED_MAX_BYTES: Final = 4 * 1024 * 1024

_RUNTIME: Final = Reason.RUNTIME_RATE_LIMIT_EXCEEDED


class Charging:
    """Charges messages to their senders' windows. A base class of the router, which charges each frame."""

    def __init__(self, rates: FrameRates) -> None:
        #: limits of frames per minute; a reload may change them
        self.rates = rates

    def _runtime_limited(self, peer: Peer, now: float) -> Close | None:
        """Charge a forwarded e2ee frame: the client first, then the workspace."""
        rates, limits = peer.rates, self.rates
        if not rates.runtime.hit(now, limits.runtime):
            return self._limited(peer, _RUNTIME, rates.runtime, now, self._detail("runtime"))
        if not rates.workspace.hit(now, limits.workspace):
            return self._limited(peer, _RUNTIME, rates.workspace, now, self._detail("workspace"))
        return None

    def _rare_limited(self, peer: Peer, kind: Rare, over: Reason, now: float) -> Close | None:
        """Charge a frame of a kind that few clients send to the rate of this name."""
        window = peer.rates.rare(kind, now)
        if window.hit(now, getattr(self.rates, kind)):
            return None
        return self._limited(peer, over, window, now, self._detail(kind))

    def carried(self, peer: Peer, frame: ClientFrame, now: float) -> Close | None:
        """Charge a client's frame that found no daemon here and is forwarded all the same."""
        return self._runtime_limited(peer, now) if type(frame) is E2ee else None

    def charge(
        self, peer: Peer, message: Sized, now: float, over: Reason = _RUNTIME, *, counted: bool = False
    ) -> Close | None:
        """Charge a client's message that is not forwarded. `over` is the close's reason, `counted`: only its bytes."""
        limit, window = self.rates.runtime, peer.rates.runtime
        if limit <= 0:
            return None
        if not counted and not window.hit(now, limit):
            return self._limited(peer, over, window, now, self._detail("runtime"))
        window = peer.rates.rare("unforwarded", now)
        if not window.spend(now, len(message), UNFORWARDED_MAX_BYTES):
            detail = f"{UNFORWARDED_MAX_BYTES} bytes a minute of frames that were answered or dropped"
            return self._limited(peer, over, window, now, detail)
        return None

    def _dropped(self, peer: Peer, message: Sized, now: float, reason: Reason, detail: str) -> Decision:
        return self.charge(peer, message, now) or Drop(reason, detail)

    @staticmethod
    def _limited(peer: Peer, reason: Reason, window: Window, now: float, detail: str) -> Close:
        reply = status.rate_limited(peer.grant.workspace_id, window.retry_after_ms(now))
        return Close(reason, detail, reply=reply)

    def own_rate(self, peer: Peer, now: float) -> Close | None:
        """Charge one message to the daemon or executor that sent it, before it is decoded."""
        if peer.rates.daemon.hit(now, self.rates.daemon):
            return None
        daemon = peer.role is Role.DAEMON
        over = Reason.DAEMON_RATE_LIMIT_EXCEEDED if daemon else Reason.WORKER_RATE_LIMIT_EXCEEDED
        return Close(over, self._detail("daemon"))

    def over_workspace(self) -> Drop:
        """The drop of a frame off the bus that is over the workspace's rate."""
        return Drop(_RUNTIME, self._detail("workspace"))

    def over_daemon(self) -> Drop:
        """The drop of a frame off the bus that is over the rate of its target's daemon."""
        return Drop(Reason.DAEMON_RATE_LIMIT_EXCEEDED, self._detail("daemon"))

    def _detail(self, rate: str) -> str:
        """The limit that was exceeded, for the log entry."""
        return f"{self.rates.in_words[rate]} a minute"
