"""Plugin hooks and fixtures for all tests: required programs, counted skips, time limits, free ports.

A test names a required program with a marker (`@pytest.mark.redis`, see programs.py). Without the program the test is
skipped, and the last line of the run names the program and the command that installs it. With FAIL_ON_SKIP=1 in the
environment, as in CI, any skip fails the run. An async test fails after LIMIT seconds or those of
`@pytest.mark.limit(seconds)`; faulthandler ends any other test that hangs (pyproject.toml).
"""

from __future__ import annotations

import functools
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests import ports
from tests.programs import PROGRAMS, installed

# No deadline: examples are slow on a loaded machine; LIMIT and faulthandler end what hangs.
hypothesis_settings.register_profile("relay", deadline=None)
hypothesis_settings.load_profile("relay")

pytest_plugins = ["tests.drill.fixtures"]

#: Seconds that an async test may take. Long, because it ends tests that hang, not tests that are slow.
LIMIT = 120.0

NEEDS = re.compile(r"needs ([\w-]+): (.+)")

_skips = pytest.StashKey[list[str]]()  # one line for each skip


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores SIGINT, and child processes inherit that: tests that interrupt a process would hang.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_skips] = []


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and getattr(item.obj, "_pytest_twisted_mark", "") == "async_test":
        marker = item.get_closest_marker("limit")
        item.obj = _bounded(item.obj, marker.args[0] if marker else LIMIT)


def _bounded(case: Callable[..., Any], seconds: float) -> Callable[..., Deferred[Any]]:
    """Wrap an async test in a Deferred that is cancelled after `seconds`; pytest-twisted waits for the Deferred."""

    @functools.wraps(case)
    def bounded(*arguments: Any, **named: Any) -> Deferred[Any]:
        from twisted.internet import reactor  # pytest-twisted installs the reactor before

        running: Deferred[Any] = Deferred.fromCoroutine(case(*arguments, **named))
        return running.addTimeout(seconds, reactor, _hangs)  # type: ignore[arg-type]

    del bounded._pytest_twisted_mark  # type: ignore[attr-defined]  # it is no coroutine function any longer
    return bounded


def _hangs(cancelled: Any, seconds: float) -> None:
    where = (
        cancelled.getTraceback() if isinstance(cancelled, Failure) else "somewhere that swallows cancelling"
    )
    pytest.fail(f"not through after {seconds:g} s; it waited at\n{where}", pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files so that pytest-xdist's processes have even work and end together.

    Files that set up a whole Debian take minutes: they come first. Files that start relays, and those of tests/unit,
    take turns, so that all processes seldom start relays at the same time; unit tests alone come last.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    debian, relays, units = [], [], []
    for path, cases in files.items():
        if any(case.get_closest_marker(name) for case in cases for name in ("image", "nspawn")):
            debian.append(path)
        else:
            (units if "unit" in path.parts else relays).append(path)
    place = dict.fromkeys(debian, 0.0)
    for paths, end in (relays, 0.9), (units, 1.0):
        paths.sort(key=lambda path: -len(files[path]))
        place |= {path: end * (at + 1) / len(paths) for at, path in enumerate(paths)}
    items[:] = [item for path in sorted(files, key=place.__getitem__) for item in files[path]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (_, command) in PROGRAMS.items():
        if item.get_closest_marker(marker) is not None and not installed(marker):
            pytest.skip(f"needs {marker}: {command}")


class _SkipCounter:
    """Collects skips of tests and of whole modules."""

    def __init__(self, skips: list[str]) -> None:
        self.skips = skips

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips.append(f"{report.nodeid}: {why}")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_SkipCounter(session.config.stash[_skips]), "skip-counter")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("FAIL_ON_SKIP") == "1" and session.config.stash[_skips] and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the skipped tests after pytest's own last line."""
    skips = config.stash.get(_skips, [])
    if not skips or hasattr(config, "workerinput"):  # a worker of pytest-xdist: its parent prints the skips
        return
    # A pytest-xdist worker reports only the text of each skip.
    missing = dict(pair for skip in skips for pair in NEEDS.findall(skip))
    if os.environ.get("FAIL_ON_SKIP") == "1":
        print(f"FAIL_ON_SKIP=1 and {len(skips)} skipped, so this run failed:", *skips, sep="\n  ")
    if missing:
        names, commands = ", ".join(sorted(missing)), "; ".join(sorted(set(missing.values())))
        print(f"{len(skips)} tests did not run: {names} not found; {commands}")


@pytest.fixture
def free_port() -> int:
    """A free TCP port on loopback."""
    return ports.free_port()


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The process environment without settings of the relay; yields the monkeypatch."""
    for name in list(os.environ):
        if name.startswith("RELAY_") or name in {"SERVER_URL", "HOST", "PORT", "MAX_LOGS"}:
            monkeypatch.delenv(name)
    yield monkeypatch
