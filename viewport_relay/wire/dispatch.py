"""A shorter way from the kernel's events to the sockets' handlers.

Twisted's epoll reactor runs each handler inside a logging context, which names the connection in lines that the
handler logs. Our log has its own way to name connections, and the context costs a tenth of a small frame's CPU. The
handler that Twisted wraps catches and logs what goes wrong by itself, so nothing else is lost.

It also knows where a turn ends, in which frames may be held back (`outbox.Turn`), and looks at the sockets again by itself
while nobody has asked for anything else: where each turn brings one frame, the reactor's round is 3 % of it.
"""

from __future__ import annotations

import errno
import select
import sys
from typing import Any, Final

from twisted.internet.main import CONNECTION_DONE
from twisted.python import log

from viewport_relay.wire.outbox import TURN

try:
    from twisted.internet.epollreactor import EPollReactor
except ImportError:  # no epoll on this system
    EPollReactor = None  # type: ignore[assignment,misc]

#: Most sockets of one turn. The kernel's list is made anew each time: for as many as there are, thousands, it is large.
MOST_EVENTS: Final = 256


#: What is used of the reactor, and private to Twisted.
_USED: Final = (
    "_poller", "_selectables", "_doReadOrWrite", "_disconnectSelectable", "_newTimedCalls", "_pendingTimedCalls",
    "_justStopped", "threadCallQueue",
)  # fmt: skip


def shorten_dispatch(reactor: Any) -> bool:
    """Give an epoll reactor the shorter way; False for another reactor, or one of another make."""
    fits = EPollReactor is not None and type(reactor) is EPollReactor
    if not fits or not all(hasattr(reactor, name) for name in _USED):
        return False
    poll, selectables = reactor._poller.poll, reactor._selectables
    handle, disconnect = reactor._doReadOrWrite, reactor._disconnectSelectable

    def do_poll(timeout: float | None) -> None:
        until = None if timeout is None else reactor.seconds() + timeout
        while timeout is None or timeout >= 0.0:
            try:
                events = poll(-1 if timeout is None else timeout, MOST_EVENTS)
            except OSError as error:
                if error.errno == errno.EINTR:
                    return
                raise
            turn(events)
            if (
                not events
                or reactor._newTimedCalls
                or reactor.threadCallQueue
                or reactor._justStopped
                or not reactor.running
            ):
                return
            # Nothing but sockets so far, and no timer is due: the reactor's own round would find nothing to do.
            pending = reactor._pendingTimedCalls
            until = pending[0].time if pending and (until is None or pending[0].time < until) else until
            timeout = None if until is None else until - reactor.seconds()

    def turn(events: list[tuple[int, int]]) -> None:
        # Attributes and no calls: where each turn brings one frame, this is done for each frame.
        TURN.within = True
        TURN.running = len(events) > 1
        try:
            for descriptor, event in events:
                selectable = selectables.get(descriptor)
                if selectable is None:  # an earlier handler has closed it
                    continue
                if event != select.EPOLLIN:
                    handle(selectable, descriptor, event)
                    continue
                # What the handler does for nothing but input. As with Twisted's, whatever is raised is logged and ends
                # this connection alone.
                why: Any
                try:
                    why = selectable.doRead()
                except BaseException:
                    why = sys.exc_info()[1]
                    log.err()
                if why:
                    disconnect(selectable, why, True)
        finally:
            TURN.within = TURN.running = False
            if TURN.outboxes or TURN.calls:
                TURN.send()

    def lose(transport: Any) -> None:
        disconnect(transport, CONNECTION_DONE, False)

    reactor.doPoll = reactor.doIteration = do_poll
    TURN.disconnect = lose
    return True
