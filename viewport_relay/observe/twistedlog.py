"""Twisted's own log, and the standard library's, as entries of the event log.

Messages of Twisted, unhandled failures, `print`, standard error and records of `logging` become entries `twisted`. What
Twisted tells at level info of its factories, ports and reactor is left out: `relay_started` says it, without object addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from twisted.logger import ILogObserver, LogLevel, formatEvent
from twisted.python import threadable
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Level


@implementer(ILogObserver)
class LibraryLog(logging.Handler):
    """Hands Twisted's events and records of `logging` to `log`, in the reactor's thread.

    Records are those of level INFO and above, as far as the logger's own level lets them through (WARNING where none was
    set). `from_thread` is `reactor.callFromThread`, for other threads (None: there are none).
    """

    def __init__(
        self, log: EventSink, *, from_thread: Callable[[Callable[[], None]], object] | None = None
    ) -> None:
        super().__init__(logging.INFO)
        self._log = log
        self._from_thread = from_thread

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one of Twisted's events."""
        level = event.get("log_level") or LogLevel.info
        if level is LogLevel.debug or _is_housekeeping(event, level):
            return
        message = formatEvent(event)
        details: dict[str, Any] = {"namespace": str(event.get("log_namespace", ""))}
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            details["error"] = failure.type.__name__ if failure.type is not None else "unknown"
            details["traceback"] = failure.getTraceback()
            message = message or str(event.get("why") or "") or "unhandled error"
        failed = level in (LogLevel.error, LogLevel.critical) or event.get("isError")
        self._send("error" if failed else "warn" if level is LogLevel.warn else "info", message, details)

    def install(self) -> None:
        """Listen to all loggers of `logging`, which then write nothing to standard error."""
        logging.getLogger().addHandler(self)

    def uninstall(self) -> None:
        """Stop listening; safe to call again."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record of `logging`."""
        try:
            message = record.getMessage()
        # The arguments do not fit the format: a library's mistake must not become a failure here.
        except Exception:
            message = str(record.msg)
        details: dict[str, Any] = {"namespace": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            details["error"] = record.exc_info[0].__name__
            details["traceback"] = logging.Formatter().formatException(record.exc_info)
        failed = record.levelno >= logging.ERROR
        self._send(
            "error" if failed else "warn" if record.levelno >= logging.WARNING else "info", message, details
        )

    def _send(self, level: Level, message: str, details: dict[str, Any]) -> None:
        def send() -> None:
            self._log.event("twisted", level=level, message=message, **details)

        if self._from_thread is None or threadable.ioThread is None or threadable.isInIOThread():
            send()
        else:
            self._from_thread(send)


def _is_housekeeping(event: dict[str, Any], level: Any) -> bool:
    """Whether it is a message of level info about Twisted's own factories, ports or reactor."""
    if level is not LogLevel.info or event.get("isError") or "log_failure" in event:
        return False
    namespace = str(event.get("log_namespace", ""))
    return namespace == "log_legacy" or namespace.startswith("twisted.") or "factory" in event
