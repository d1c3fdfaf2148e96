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
        message, failure = formatEvent(event), event.get("log_failure")
        if not isinstance(failure, Failure):
            failure = None
        elif not message:
            message = str(event.get("why") or "") or "unhandled error"
        failed = level in (LogLevel.error, LogLevel.critical) or event.get("isError")
        shown: Level = "error" if failed else "warn" if level is LogLevel.warn else "info"
        self._send(shown, message, str(event.get("log_namespace", "")), failure)

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
        kind, error, traceback = record.exc_info or (None, None, None)
        failure = None if error is None else Failure(error, kind, traceback)
        number = record.levelno
        level: Level = "error" if number >= logging.ERROR else "warn" if number >= logging.WARNING else "info"
        self._send(level, message, record.name, failure)

    def _send(self, level: Level, message: str, namespace: str, failure: Failure | None) -> None:
        details: dict[str, Any] = {"namespace": namespace}
        if failure is not None:
            details["error"] = "unknown" if failure.type is None else failure.type.__name__
            details["traceback"] = failure.getTraceback()

        def send() -> None:
            self._log.event("twisted", level=level, message=message, **details)

        if self._from_thread is None or threadable.ioThread is None or threadable.isInIOThread():
            send()
        else:
            self._from_thread(send)


def _is_housekeeping(event: dict[str, Any], level: Any) -> bool:
    """Whether an event is a message of level info about Twisted's own factories, ports or reactor."""
    if level is not LogLevel.info or event.get("isError") or "log_failure" in event:
        return False
    namespace = str(event.get("log_namespace", ""))
    return namespace == "log_legacy" or namespace.startswith("twisted.") or "factory" in event
