"""The first lines of the log, and the first screen of `/logs` as text, for each fault.

`golden/` has the expected screens. They are compared by meaning: the verdict's state; the first problem; whether it
has cause, fix and example; the variables that it names. `GOLDEN=write` writes the files anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.drill.redisserver import RedisServer
from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.faults import FAULTS, Bench
from tests.integration.admission.relays import Relay

GOLDEN = Path(__file__).with_name("golden")
LOG_LINES, SCREEN_LINES = 20, 24
SEPARATOR = "\n---- /logs/text ----\n"


@frozen
class Meaning:
    """Meaning of a screen, without times, numbers, ids and wording; `variables` are those in cause and fix."""

    state: str
    code: str
    parts: frozenset[str]
    variables: frozenset[str]

    def agrees_with(self, other: Meaning) -> bool:
        same = (self.state, self.code, self.parts) == (other.state, other.code, other.parts)
        return same and (not other.variables or bool(self.variables & other.variables))


def meaning(screen: str) -> Meaning:
    """Parse a screen: the verdict, then the first problem."""
    state = screen.split(":", 1)[0]
    first = re.search(r"(?m)^(?:ERROR|WARN ) (\w+): \d+ since .*((?:\n  .*)*)", screen)
    assert first is not None, screen
    parts = dict(re.findall(r"(?m)^  (what|cause|fix|example) +(.*(?:\n {6,}.*)*)", first[2]))
    named = re.findall(r"\bRELAY_[A-Z_]+|\bSERVER_URL", parts.get("cause", "") + parts.get("fix", ""))
    return Meaning(state, first[1], frozenset(parts), frozenset(named))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    made: list[RedisServer] = []

    def make() -> RedisServer:
        made.append(RedisServer(tmp_path).start())
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def bench(
    own_platform: Callable[..., ControlPlane],
    start: Callable[..., Relay],
    redis: Callable[..., Any],
    tmp_path: Path,
) -> Bench:
    return Bench(own_platform, start, redis, tmp_path)


def told(relay: Relay, code: str) -> dict[str, Any] | None:
    """The status line that names the problem."""
    for entry in relay.lines():
        if entry["event"] == "status" and entry["details"].get("worst") == code:
            return entry
    return None


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_screen_has_the_cause_and_the_fix(bench: Bench, name: str) -> None:
    fault = FAULTS[name]
    relay = fault.plant(bench)
    status = until(
        lambda: told(relay, fault.code),
        what=f"a status line that names {fault.code}: {relay.written}",
        seconds=15,
    )
    for label in ("Cause: ", "Fix: ", "Example: "):
        assert label in status["message"], status["message"]
    assert len(status["message"]) < 2000

    code, body = relay.get("/logs/text")
    assert code == 200
    screen = "\n".join(body.decode().splitlines()[:SCREEN_LINES])
    log = "\n".join(line[:240].rstrip() for line in relay.written[:LOG_LINES])
    seen = meaning(screen)
    assert seen.code == fault.code, screen
    assert seen.parts == {"what", "cause", "fix", "example"}, screen
    flat = " ".join(screen.split())
    for words in fault.words:
        assert words in flat, f"{words!r} is not in\n{screen}"
    assert any(fault.code in line for line in relay.written[:LOG_LINES]), log

    kept = GOLDEN / f"{name.replace(' ', '-')}.txt"
    if os.environ.get("GOLDEN") == "write":
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(log + SEPARATOR + screen + "\n")
    before = meaning(kept.read_text().partition(SEPARATOR)[2])
    assert seen.agrees_with(before), f"{seen}\n{before}"
