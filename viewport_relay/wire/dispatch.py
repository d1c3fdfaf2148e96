"""A shorter way from the kernel's events to the sockets' handlers.

Twisted's epoll reactor runs each handler inside a logging context, which names the connection in lines that the
handler logs. Our log has its own way to name connections, and the context costs a tenth of a small frame's CPU. The
handler that Twisted wraps catches and logs what goes wrong by itself, so nothing else is lost.

It also knows where a turn ends, in which frames may be held back (`outbox.Turn`).
"""

from __future__ import annotations

import errno
import select
import sys
from typing import Any, Final

from twisted.python import log

from viewport_relay.wire.outbox import TURN

try:
    from twisted.internet.epollreactor import EPollReactor
except ImportError:  # no epoll on this system
    EPollReactor = None  # type: ignore[assignment,misc]

#: Most sockets of one turn. The kernel's list is made anew each time: for as many as there are, thousands, it is large.
MOST_EVENTS: Final = 256


def shorten_dispatch(reactor: Any) -> bool:
    """Give an epoll reactor the shorter way; False for another reactor, or one of another make.

    The attributes are private to Twisted, so they are looked at first.
    """
    if EPollReactor is None or type(reactor) is not EPollReactor:
        return False
    poller = getattr(reactor, "_poller", None)
    selectables = getattr(reactor, "_selectables", None)
    handle = getattr(reactor, "_doReadOrWrite", None)
    disconnect = getattr(reactor, "_disconnectSelectable", None)
    if (
        poller is None
        or not isinstance(selectables, dict)
        or not callable(handle)
        or not callable(disconnect)
    ):
        return False
    poll = poller.poll

    def do_poll(timeout: float | None) -> None:
        try:
            events = poll(-1 if timeout is None else timeout, MOST_EVENTS)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        TURN.running = len(events) > 1
        try:
            for descriptor, event in events:
                selectable = selectables.get(descriptor)
                if selectable is None:  # an earlier handler has closed it
                    continue
                if event != select.EPOLLIN:
                    handle(selectable, descriptor, event)
                    continue
                # What the handler does for nothing but input.
                why: Any
                try:
                    why = selectable.doRead()
                except (
                    BaseException
                ):  # as Twisted: whatever it was, it is logged and ends this connection alone
                    why = sys.exc_info()[1]
                    log.err()
                if why:
                    disconnect(selectable, why, True)
        finally:
            if TURN.running:
                TURN.running = False
                TURN.send()

    reactor.doPoll = reactor.doIteration = do_poll  # type: ignore[method-assign]
    return True
