"""Records of the standard library's `logging` become lines of the relay's log, in parent and workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.drill.platform import INTERNAL_KEY, FaultyPlatform
from tests.drill.relay import ADMIN, ROOT, Relay, running, until

#: On SIGUSR2 a library logs, in the reactor's thread and in another.
LIBRARY = """
import logging, os, signal, threading

def speak(*_):
    log = logging.getLogger("some.library")
    log.info("a line of a library")
    log.warning("sent %s to %s", os.environ["RELAY_INTERNAL_KEY"], "the platform")
    try:
        raise KeyError(os.environ["RELAY_INTERNAL_KEY"])
    except KeyError:
        logging.getLogger("asyncio").exception("it failed")
    threading.Thread(target=log.error, args=("from a thread, \\n in two lines",)).start()

signal.signal(signal.SIGUSR2, speak)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_librarys_record_is_one_line_of_the_log(
    platform: FaultyPlatform, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LIBRARY)  # every Python process imports this module
    settings = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "RELAY_WORKERS": str(workers)}
    with running(platform.environment() | settings) as relay:
        processes = [relay.pid]
        if workers > 1:
            until(lambda: len(_workers(relay)) == workers, 30, "the workers")
            processes += _workers(relay)
        for number, pid in enumerate(processes, 1):
            os.kill(pid, signal.SIGUSR2)
            until(lambda n=number: len(_said(relay)) == 3 * n, 10, "what the library said")  # type: ignore[misc]
        found = {(e["level"], e["details"]["namespace"], e["message"].split()[0]) for e in _said(relay)}
        assert found == {
            ("warn", "some.library", "sent"),
            ("error", "asyncio", "it"),
            ("error", "some.library", "from"),
        }
        for entry in _said(relay):
            assert entry["event"] == "twisted"
            if entry["details"]["namespace"] == "asyncio":
                assert (
                    entry["details"]["error"] == "KeyError" and "Traceback" in entry["details"]["traceback"]
                )
        _, page = relay.http("/logs")
        assert b"some.library" in page
        assert relay.stop() == 0
        assert "not json" not in {e["event"] for e in relay.entries()}  # standard error is empty
        for secret in (INTERNAL_KEY, ADMIN):
            assert secret not in relay.output()


def _workers(relay: Relay) -> list[int]:
    return [e["details"]["pid"] for e in relay.entries() if e["event"] == "worker_started"]


def _said(relay: Relay) -> list[dict[str, Any]]:
    names = {"some.library", "asyncio"}
    return [e for e in relay.entries() if e.get("details", {}).get("namespace") in names]
