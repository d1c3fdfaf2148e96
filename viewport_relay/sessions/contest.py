"""Contests for a seat: a daemon of equal generation waits until the seat's holder has answered a ping or timed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, evolve, frozen
from twisted.internet.interfaces import IReactorTime

from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason
from viewport_relay.routing.model import Peer
from viewport_relay.sessions.session import session_of
from viewport_relay.wire.heartbeat import STOOD_STILL, ping

#: Seconds before a Close that the peer would answer with an immediate reconnect (wire protocol, section 3).
SEAT_CLOSE_DELAY: Final = 1.0

#: Seconds between two checks whether the holder has sent anything.
POLL: Final = 0.05


@frozen
class _Contest:
    challenger: Peer
    holder: Peer
    began: float
    deadline: float


@define(eq=False)
class Contests:
    """Runs every contest of a relay. `pong_timeout` is in seconds."""

    _clock: IReactorTime
    _counters: Counters
    _pong_timeout: float

    def begin(self, challenger: Peer, holder: Peer) -> None:
        """Ping the holder, and check every `POLL` seconds whether it has answered."""
        began = self._clock.seconds()
        ping(session_of(holder).connection, began)
        self._poll(_Contest(challenger, holder, began, began + self._pong_timeout))

    def _poll(self, contest: _Contest) -> None:
        self._clock.callLater(POLL, self._look, contest, self._clock.seconds() + POLL)

    def _look(self, contest: _Contest, due: float) -> None:
        peer, holder, now = contest.challenger, contest.holder, self._clock.seconds()
        seat, waiting = peer.target.seat, session_of(peer)
        if waiting.peer is not peer or seat.holder is peer:
            return  # disconnected, or seated meanwhile
        sitting = session_of(holder).connection
        close: Callable[..., None] = waiting.connection.close
        if peer not in seat.challengers:  # a daemon of higher generation took the seat
            close(Reason.STALE_DAEMON_GENERATION, delay=SEAT_CLOSE_DELAY)
        elif seat.holder is holder and now - due > STOOD_STILL:
            self.begin(peer, holder)  # its messages of that time are not read yet: start again
        elif seat.holder is not holder or sitting.reader.last_seen > contest.began:
            seat.challengers.remove(peer)
            about = _about_holder(seat.holder or holder)
            close(Reason.DAEMON_ALREADY_CONNECTED, about["detail"], delay=SEAT_CLOSE_DELAY, details=about)
        elif sitting.reader.paused:  # the time-out does not run while the relay does not read from it
            self._poll(evolve(contest, deadline=contest.deadline + POLL))
        else:
            if now >= contest.deadline:
                self._counters.ws_stale_terminated += 1
                sitting.cut(Reason.PONG_TIMEOUT)  # `leave` then seats the first waiting daemon
            self._poll(contest)


def _about_holder(holder: Peer) -> dict[str, str]:
    """Details for the challenger's close, so that an operator finds both machines."""
    known = holder.describe()
    return {
        "detail": f"the seat is held by the daemon {known['clientId']} at {holder.ip}",
        "holderClientId": str(known["clientId"]),
        "holderIp": holder.ip,
    }
