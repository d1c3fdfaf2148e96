"""Twisted's own log, and the standard library's, as entries of the event log.

`TwistedObserver` is an `ILogObserver`: messages of Twisted, unhandled failures, `print` and standard error become entries
`twisted`. `StdlibHandler` does the same for `logging`. What Twisted tells at level info of its factories, ports and reactor
is left out: `relay_started` says it, without object addresses. The log belongs to the reactor's thread: `from_thread` is
`reactor.callFromThread`, for events of other threads (None: there are none).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.logger import ILogObserver, LogLevel, formatEvent
from twisted.python import threadable
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Level

#: Runs a call in the reactor's thread.
FromThread: TypeAlias = Callable[[Callable[[], None]], object]

#: Level, message and details.
Entry: TypeAlias = tuple[Level, str, dict[str, Any]]


def _send(log: EventSink, entry: Entry, from_thread: FromThread | None) -> None:
    level, message, details = entry

    def send() -> None:
        log.event("twisted", level=level, message=message, **details)

    if from_thread is not None and threadable.ioThread is not None and not threadable.isInIOThread():
        from_thread(send)
    else:
        send()


@implementer(ILogObserver)
class TwistedObserver:
    """Hands Twisted's events to `log`."""

    def __init__(self, log: EventSink, *, from_thread: FromThread | None = None) -> None:
        self._log = log
        self._from_thread = from_thread

    def __call__(self, event: dict[str, Any]) -> None:
        level = event.get("log_level") or LogLevel.info
        if level is LogLevel.debug or _is_housekeeping(event, level):
            return
        _send(self._log, translate(event), self._from_thread)


def _is_housekeeping(event: dict[str, Any], level: Any) -> bool:
    """Whether it is a message of level info about Twisted's own factories, ports or reactor."""
    if level is not LogLevel.info or event.get("isError") or "log_failure" in event:
        return False
    namespace = str(event.get("log_namespace", ""))
    return namespace == "log_legacy" or namespace.startswith("twisted.") or "factory" in event


def translate(event: dict[str, Any]) -> Entry:
    """One of Twisted's events as an entry."""
    message = formatEvent(event)
    details: dict[str, Any] = {"namespace": str(event.get("log_namespace", ""))}
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        details["error"] = failure.type.__name__ if failure.type is not None else "unknown"
        details["traceback"] = failure.getTraceback()
        message = message or str(event.get("why") or "") or "unhandled error"
    rank = event.get("log_level")
    if rank in (LogLevel.error, LogLevel.critical) or event.get("isError"):
        return "error", message, details
    return ("warn" if rank is LogLevel.warn else "info"), message, details


class StdlibHandler(logging.Handler):
    """Hands records of the standard library's `logging` to `log`: level INFO and above, as far as the logger's own level
    lets them through (WARNING where none was set).
    """

    def __init__(self, log: EventSink, *, from_thread: FromThread | None = None) -> None:
        super().__init__(logging.INFO)
        self._log = log
        self._from_thread = from_thread

    def install(self) -> None:
        """Listen to all loggers, which then write nothing to standard error."""
        logging.getLogger().addHandler(self)

    def uninstall(self) -> None:
        """Stop listening; safe to call again."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (
            Exception
        ):  # the arguments do not fit the format: a library's mistake must not become a failure here
            message = str(record.msg)
        details: dict[str, Any] = {"namespace": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            details["error"] = record.exc_info[0].__name__
            details["traceback"] = logging.Formatter().formatException(record.exc_info)
        rank = record.levelno
        level: Level = "error" if rank >= logging.ERROR else "warn" if rank >= logging.WARNING else "info"
        _send(self._log, (level, message, details), self._from_thread)
