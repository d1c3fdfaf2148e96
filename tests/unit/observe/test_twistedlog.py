"""Messages of Twisted's logger and of `logging` as log entries."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure

from tests.logentries import entries_of
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.twistedlog import LibraryLog

SECRET = "a-secret-of-this-run-0123"


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def log(stream):
    return EventLog(stream, max_entries=50, secrets=[SECRET])


@pytest.fixture
def logger(log):
    publisher = LogPublisher(LibraryLog(log))
    return Logger("relay.test", observer=publisher)


@pytest.mark.parametrize(
    "name,level", [("info", "info"), ("warn", "warn"), ("error", "error"), ("critical", "error")]
)
def test_twisteds_levels_become_the_logs(logger, log, name, level):
    getattr(logger, name)("the {thing} happened", thing="x")
    (entry,) = entries_of(log)
    assert entry["event"] == "twisted" and entry["level"] == level
    assert entry["message"] == "the x happened" and entry["details"]["namespace"] == "relay.test"


def test_debug_is_left_out(logger, log):
    logger.debug("noise")
    assert entries_of(log) == []


def test_a_failure_is_logged_with_a_redacted_traceback(logger, stream, log):
    def deep():
        token = SECRET
        raise ValueError(f"went wrong with {token} and Bearer abcdefghijklmnop")

    try:
        deep()
    except ValueError:
        logger.failure("while doing {what}", what=SECRET)
    (entry,) = entries_of(log)
    assert entry["level"] == "error" and entry["details"]["error"] == "ValueError"
    assert "in deep" in entry["details"]["traceback"] and "Traceback" in entry["details"]["traceback"]
    assert SECRET not in stream.getvalue() and "abcdefghijklmnop" not in stream.getvalue()
    json.loads(stream.getvalue())


def test_legacy_messages_and_errors(log):
    publisher = LogPublisher(LibraryLog(log))
    old = legacy.LogPublisher(publishPublisher=publisher)
    old.msg("Starting factory <Site>", system="twisted")
    Logger("viewport_relay.wire.site", observer=publisher).info(
        "Starting factory {factory}", factory=object()
    )
    Logger("twisted.internet.base", observer=publisher).info("Main loop terminated.")
    Logger("twisted.internet.base", observer=publisher).warn("cannot accept")
    publisher(
        {
            "log_level": LogLevel.info,
            "log_namespace": "old",
            "isError": 1,
            "log_failure": Failure(KeyError("k")),
        }
    )
    first, second = entries_of(log)
    assert first["level"] == "warn" and first["message"] == "cannot accept", "housekeeping is left out"
    assert second["level"] == "error" and second["message"] and second["details"]["error"] == "KeyError"


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"log_format": "{missing}", "log_level": LogLevel.info},
        {"log_format": b"\xff", "log_level": LogLevel.warn},
        {"log_level": None, "log_namespace": None},
        {"format": "%(x)s", "log_level": LogLevel.error},
    ],
)
def test_malformed_events_are_logged(log, event):
    LibraryLog(log)(event)
    assert len(entries_of(log)) == 1


def test_events_of_other_threads_are_handed_to_the_reactor(log, monkeypatch):
    from twisted.python import threadable

    monkeypatch.setattr(threadable, "ioThread", threadable.getThreadID())
    calls = []
    observer = LibraryLog(log, from_thread=calls.append)
    thread = threading.Thread(
        target=observer, args=({"log_format": "from afar", "log_level": LogLevel.info},)
    )
    thread.start()
    thread.join()
    assert entries_of(log) == [] and len(calls) == 1
    calls[0]()
    assert entries_of(log)[0]["message"] == "from afar"
    observer({"log_format": "from here", "log_level": LogLevel.info})
    assert entries_of(log)[1]["message"] == "from here"


def test_the_standard_library(log):
    handler = LibraryLog(log)
    logger = logging.Logger("some.library")
    logger.addHandler(handler)
    logger.debug("no")
    logger.info("yes %s", 1)
    logger.warning("bad %d", "format")
    try:
        raise KeyError(SECRET)
    except KeyError:
        logger.exception("oh")
    levels = [(entry["level"], entry["details"]["namespace"]) for entry in entries_of(log)]
    assert levels == [("info", "some.library"), ("warn", "some.library"), ("error", "some.library")]
    assert "Traceback" in entries_of(log)[2]["details"]["traceback"] and SECRET not in json.dumps(
        entries_of(log)
    )
