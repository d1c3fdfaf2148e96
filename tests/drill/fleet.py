"""Several relay processes on one Redis: each can be killed, stopped and restarted on its port.

with DrillFleet(platform, redis.url, 5) as fleet:
    swarm.add(20, daemon=fleet.from_home, client=fleet.from_anywhere)
    fleet[2].process.kill()
    fleet.restart(2)
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ROOT, Relay
from tests.ports import free_port

BUS_KEY = "drill-bus-key-0123456789abcdefABCDEF"

#: The relay's source tree (`benchmarks/drills.py` compares two), and the file that gets the figures as lines of JSON.
CODE = Path(os.environ.get("DRILL_CODE", ROOT))
FIGURES = os.environ.get("DRILL_FIGURES")

#: Reasons at level error in the log of a relay whose Redis is at fault.
OF_REDIS = ("BACKPLANE_UNREACHABLE", "BACKPLANE_REFUSED")


class DrillFleet:
    """A fleet of relays: `settings` for all, `own` for single ones by number, `ports` if the test chooses them."""

    def __init__(
        self,
        platform: FaultyPlatform,
        redis_url: str,
        count: int,
        settings: Mapping[str, str] | None = None,
        own: Mapping[int, Mapping[str, str]] | None = None,
        ports: Sequence[int] = (),
    ) -> None:
        self._exits = ExitStack()
        self._own = own or {}
        self._settings = platform.environment() | {
            "RELAY_BACKPLANE_MODE": "redis",
            "RELAY_REDIS_URL": redis_url,
            "RELAY_BUS_HMAC_KEY": BUS_KEY,
            **(settings or {}),
        }
        self.ports = list(ports) or [free_port() for _ in range(count)]
        self.relays = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> Relay:
        port = self.ports[number]
        names = {"RELAY_ID": f"relay-{number}", "RELAY_PUBLIC_WS_BASE_URL": f"ws://127.0.0.1:{port}"}
        settings = self._settings | names | dict(self._own.get(number, {}))
        return self._exits.enter_context(Relay(settings, port=port, code=CODE))

    def __enter__(self) -> Self:
        try:
            for relay in self.relays:
                relay.wait()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def __getitem__(self, number: int) -> Relay:
        return self.relays[number]

    def restart(self, number: int) -> Relay:
        """Start a new process on the same port; returns before the relay is ready."""
        self.relays[number] = self._start(number)
        return self.relays[number]

    # -- routes of peers -------------------------------------------------------------------------------------

    def from_home(self, pair: int) -> list[int]:
        """All ports, rotated: pair n starts at relay n and continues with the next."""
        first = pair % len(self.ports)
        return self.ports[first:] + self.ports[:first]

    def from_anywhere(self, pair: int) -> list[int]:
        """All ports, rotated so that most clients start at another relay than their daemon, as behind a balancer without affinity."""
        count = len(self.ports)
        return self.from_home(pair + pair // count)

    # -- metrics and log -------------------------------------------------------------------------------------

    def metric(self, name: str) -> int:
        """The sum of a metric over all its series and all running relays."""
        return sum(metric(relay, name) for relay in self.relays if relay.process.poll() is None)

    def bus_share(self, seconds: float) -> float:
        """Frames over the bus per delivered frame, within the next `seconds`."""
        before = self._frames()
        time.sleep(seconds)
        bus, all_ = (now - then for now, then in zip(self._frames(), before, strict=True))
        return bus / max(1, all_)

    def _frames(self) -> tuple[int, int]:
        """Frames over the bus, and delivered frames."""
        to_daemons, to_clients = (
            self.metric(f"relay_frames_{way}_total") for way in ("client_to_daemon", "daemon_to_clients")
        )
        return self.metric("relay_bus_publish_ok_total"), to_daemons + to_clients

    def errors(self, *expected: str) -> list[object]:
        """Log entries of level error of the current processes, except the expected reasons or events."""
        return [entry for relay in self.relays for entry in relay.errors(*expected)]


def metric(relay: Relay, name: str) -> int:
    """The sum of a metric of one relay over all its series."""
    text = relay.http("/metrics")[1].decode()
    return sum(
        int(float(value)) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    )


def report(drill: str, **figures: Any) -> None:
    """Print the figures of a drill (pytest -s), and append them to FIGURES. Times are in seconds, shares in parts of 1."""
    rounded = {
        name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()
    }
    print(f"\n{drill}: " + ", ".join(f"{name} {value}" for name, value in rounded.items()))
    if FIGURES:
        with open(FIGURES, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(rounded) + "\n")
