"""What the router decides about a frame when it is not simply for one receiver.

For the common case (forward this message to that peer) the router returns the `Peer` itself, so that nothing is
made per frame. Everything else is one of these values, which the wire carries out.
"""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from viewport_relay.reasons import Reason
from viewport_relay.routing.peer import Peer


@frozen
class Reply:
    """Answer the sender with this text; it stays open. `reason` is None when it is no complaint."""

    text: str
    reason: Reason | None = None


@frozen
class Drop:
    """The frame goes nowhere. `detail` says why, for the log; it holds nothing from the payload."""

    reason: Reason
    detail: str = ""


@frozen
class Close:
    """Close the sender with the reason's close code and text, after `reply` if there is one.

    `logged_as` is the reason that the log entry names when it differs from the one on the wire.
    """

    reason: Reason
    detail: str = ""
    reply: str | None = None
    logged_as: Reason | None = None


@frozen
class FanOut:
    """The message goes to all of these, byte for byte."""

    receivers: tuple[Peer, ...]


@frozen
class ToRelay:
    """A daemon's answer belongs to a client of another relay: publish it, addressed."""

    relay_id: str


@frozen
class NoDaemon:
    """A client's frame found no daemon here: another relay may hold it, else `DAEMON_UNAVAILABLE`."""


Decision: TypeAlias = Reply | Drop | Close | FanOut | ToRelay | NoDaemon

NO_DAEMON = NoDaemon()
