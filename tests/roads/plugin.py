"""A pytest plugin that runs the acceptance suite over one road of `matrix`, named by the variable ROAD.

    ROAD=nginx ROAD_SUITE=SUITE WIRE_TLS=1 PYTHONPATH=. python -m pytest -p tests.roads.plugin SUITE

ROAD_PACKAGES may name a folder of packages that the suite imports.

The suite is unchanged: the plugin replaces the class that starts relays by a subclass, and for links the function
that opens a WebSocket. Cases that a road leaves out are not collected, with the reasons in `matrix`. A run in which
nothing used the road fails.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.roads.link import LinkSockets, with_secret
from tests.roads.matrix import Road, roads

#: Operators' paths, which the proxies' pages do not publish: cases request them at RELAY_ADMIN_LISTEN.
OPERATORS = ("/logs", "/state", "/metrics", "/ready", "/disconnect", "/cache", "/admin")


class Taken:
    """Counts relays behind the proxy, or connections over a link."""

    def __init__(self) -> None:
        self.count = 0


TAKEN = pytest.StashKey[Taken]()
LEFT_OUT = pytest.StashKey[int]()


def _road() -> Road:
    name = os.environ["ROAD"]
    return next(road for road in roads() if road.name == name)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Replace the classes before the suite's conftest imports them."""
    sys.path.insert(0, os.environ["ROAD_SUITE"])
    if "ROAD_PACKAGES" in os.environ:
        sys.path.append(os.environ["ROAD_PACKAGES"])  # last: the relay's own packages take precedence
    road = _road()
    taken = early_config.stash[TAKEN] = Taken()
    import relayproc  # a module of the suite
    import wire

    if road.proxy:
        relayproc.Relay = behind(relayproc, road, taken)
    else:
        relayproc.Relay = with_settings(relayproc, road, taken)
    if road.link:
        import fakeplatform

        fakeplatform.FakePlatform.issue = with_secret(fakeplatform.FakePlatform.issue)
        wire._ws_connect = LinkSockets(wire._ws_connect, taken).connect


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    without = _road().without
    out = [item for item in items if any(part in item.nodeid for part in without)]
    config.stash[LEFT_OUT] = len(out)
    items[:] = [item for item in items if item not in out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that did not use the road; under pytest-xdist each worker reports its count."""
    config = session.config
    taken = config.stash[TAKEN]
    if hasattr(config, "workeroutput"):
        config.workeroutput |= {"taken": taken.count, "left out": config.stash.get(LEFT_OUT, 0)}
    elif not taken.count and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Add the count of a pytest-xdist worker."""
    said = getattr(node, "workeroutput", {})
    node.config.stash[TAKEN].count += said.get("taken", 0)
    node.config.stash[LEFT_OUT] = said.get("left out", 0)  # equal in all workers


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Report the road, the count of its uses, and the cases that it leaves out."""
    road, taken = _road(), config.stash[TAKEN].count
    terminalreporter.write_line(
        f"road {road.name}: taken {taken} times" if taken else f"road {road.name}: NOT TAKEN"
    )
    terminalreporter.write_line(f"left out: {config.stash.get(LEFT_OUT, 0)} cases")
    for part, why in road.without.items():
        terminalreporter.write_line(f"  {part}: {why}")


def with_settings(relayproc: Any, road: Road, taken: Taken) -> type[Any]:
    """The suite's relay with the road's settings, unless the case sets them itself."""

    class Relay(relayproc.Relay):  # type: ignore[misc]
        def start(self) -> None:
            for name, value in road.settings.items():
                self.env.setdefault(name, value)
            super().start()
            taken.count += not road.link

    return Relay


def behind(relayproc: Any, road: Road, taken: Taken) -> type[Any]:
    """The suite's relay behind a proxy; the proxy listens on the port that the cases use."""
    from tests.drill.certificates import Files
    from tests.drill.relay import until
    from tests.integration.proxies import PROXIES, Proxy, settings

    class Relay(relayproc.Relay):  # type: ignore[misc]
        proxy: Proxy | None = None
        inner = 0
        admin_port = 0

        def start(self) -> None:
            if self.proxy is None:
                self._put_behind()
            try:
                super().start()
                # HAProxy repeats a connection that was refused, also on a server that it holds for down by then.
                # An answer on a connection begun after the relay listens proves that new ones get through.
                until(self._answers, 10, "the proxy passes new connections on")
            except BaseException:
                self.stop()
                raise
            taken.count += 1

        def _answers(self) -> bool:
            try:
                return bool(self.get("/health").status == 200)
            except OSError:
                return False

        def _put_behind(self) -> None:
            folder = Path(tempfile.mkdtemp(prefix="road-"))
            self.folder = folder
            self.inner, self.admin_port = free_port(), free_port()
            passes_tls_on = road.proxy == "haproxy-tcp"
            given = settings(PROXIES[road.proxy].heading) if passes_tls_on else settings("")
            given.pop("RELAY_PUBLIC_WS_BASE_URL", None)
            for name, value in (given | dict(road.settings)).items():
                self.env.setdefault(name, value)
            self.env["RELAY_LISTEN_PORT"] = str(self.inner)
            self.env["RELAY_ADMIN_LISTEN"] = f"127.0.0.1:{self.admin_port}"
            upstream: int | str = self.inner
            if road.unix:
                upstream = f"unix:{folder}/relay.sock"
                self.env["RELAY_LISTEN_ENDPOINT"] = f"{upstream}:mode=666"
                self.env["RELAY_TRUSTED_PROXIES"] = f"unix:,{self.env['RELAY_TRUSTED_PROXIES']}"
                self.env.setdefault(
                    "RELAY_MODE", "dev"
                )  # the default for the loopback address that the suite sets
            cert, key = relayproc.certificate()
            if not passes_tls_on:
                self.env["RELAY_TLS"] = "0"
                for name in ("RELAY_TLS_CERT_PATH", "RELAY_TLS_KEY_PATH"):
                    self.env.pop(name, None)
            # Each case starts its own relay: two seconds between checks would be most of the run.
            often = {"defaults\n": "defaults\n    default-server inter 200ms\n"}
            faster = often if road.proxy.startswith("haproxy") else {}
            self.proxy = Proxy(
                road.proxy,
                folder / "proxy",
                Files(cert, key),
                upstream,
                faster,
                port=self.port,
                host="127.0.0.1",
            )

        def stop(self, grace: float = 1.5) -> None:
            super().stop(grace)
            if self.proxy is not None:
                self.proxy.stop()
                self.proxy = None
                shutil.rmtree(self.folder, ignore_errors=True)

        def request(self, method: str, path: str, *rest: Any, **named: Any) -> Any:
            if not path.startswith(OPERATORS):
                return super().request(method, path, *rest, **named)
            return _AdminRelay(self.admin_port).request(method, path, *rest, **named)

    class _AdminRelay(relayproc.Relay):  # type: ignore[misc]
        """The listener of RELAY_ADMIN_LISTEN: plain HTTP on loopback."""

        def __init__(self, port: int) -> None:
            self.port = port

        @property
        def base(self) -> str:
            return f"http://127.0.0.1:{self.port}"

    return Relay
