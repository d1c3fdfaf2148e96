"""Drain: the waves in which a stopping relay closes its connections."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from viewport_relay.reasons import Reason
from viewport_relay.wire.drain import Drain, per_wave


class FakeConnection:
    """Test double with the methods of a connection that the drain calls."""

    def __init__(self, clock: Clock, live: set[Any], workspace: str, answers: bool = True) -> None:
        self.info = SimpleNamespace(connection_id=f"{id(self):x}")
        self.workspace = workspace
        self.is_lost = False
        self.ended_at: float | None = None
        self.cut_at: float | None = None
        self.reason: Reason | None = None
        self._clock, self._live, self._answers = clock, live, answers
        self._callbacks: list[Callable[[], None]] = []
        live.add(self)

    def when_lost(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def close(self, reason: Reason) -> None:
        self.reason, self.ended_at = reason, self._clock.seconds()
        if self._answers:
            self._clock.callLater(0.05, self.lose)

    def cut(self, reason: Reason) -> None:
        self.reason, self.cut_at = reason, self._clock.seconds()
        self._clock.callLater(0, self.lose)

    def lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._live.discard(self)
            for callback in self._callbacks:
                callback()


class Fleet:
    def __init__(self, seconds: float, peers: int, *, mute: int = 0, per_workspace: int = 5) -> None:
        self.clock = Clock()
        self.live: set[Any] = set()
        self.all = [
            FakeConnection(self.clock, self.live, f"w{n // per_workspace:04}", answers=n >= mute)
            for n in range(peers)
        ]
        self.drain = Drain(self.clock, self.live, seconds, lambda connection: (connection.workspace, "t"))  # type: ignore[attr-defined]
        self.done_at: float | None = None
        self.drain.start().addCallback(self._done)

    def _done(self, _: None) -> None:
        assert self.done_at is None
        self.done_at = self.clock.seconds()

    def run(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))

    def waves(self) -> dict[float, int]:
        found: dict[float, int] = {}
        for connection in self.all:
            if connection.ended_at is not None:
                at = round(connection.ended_at, 2)
                found[at] = found.get(at, 0) + 1
        return dict(sorted(found.items()))


@pytest.mark.parametrize(
    ("peers", "seconds", "size"),
    [(1, 5, 20), (20, 5, 20), (800, 5, 20), (2000, 5, 50), (2000, 1, 250), (100, 0, 100), (10, 0, 20)],
)
def test_the_size_of_a_wave(peers: int, seconds: float, size: int) -> None:
    assert per_wave(peers, seconds) == size


def test_few_peers_are_closed_at_once() -> None:
    fleet = Fleet(5, 15)
    fleet.run(0.2)
    assert fleet.waves() == {0.0: 15}
    assert fleet.done_at is not None and fleet.done_at < 0.1
    assert fleet.clock.getDelayedCalls() == []


def test_many_peers_are_closed_in_waves_and_the_last_can_answer() -> None:
    fleet = Fleet(5, 2000)
    fleet.run(5)
    waves = fleet.waves()
    assert max(waves.values()) == 50 and len(waves) == 40
    assert max(waves) <= 4.2  # of 5 s, including the clock's steps
    assert fleet.done_at is not None and fleet.done_at < 4.3
    assert all(c.cut_at is None and c.reason is Reason.RELAY_SHUTTING_DOWN for c in fleet.all)


def test_a_daemon_and_its_clients_are_closed_in_one_wave() -> None:
    fleet = Fleet(1, 400, per_workspace=5)
    fleet.run(1)
    by_workspace: dict[str, set[float]] = {}
    for connection in fleet.all:
        workspace = connection.workspace
        by_workspace.setdefault(workspace, set()).add(round(connection.ended_at or 0, 2))
    assert all(len(times) == 1 for times in by_workspace.values())  # 50 in a wave, 5 in a workspace


def test_peers_without_answer_are_aborted_at_the_deadline() -> None:
    fleet = Fleet(2, 10, mute=3)
    fleet.run(1.95)
    assert fleet.done_at is None
    fleet.run(0.1)
    assert fleet.done_at == pytest.approx(2.0, abs=0.02)
    assert sum(c.cut_at is not None for c in fleet.all) == 3


def test_a_second_signal_ends_the_drain_at_once() -> None:
    fleet = Fleet(60, 500)
    fleet.run(0.3)
    assert fleet.done_at is None
    fleet.drain.cut()
    fleet.run(0.02)
    assert fleet.done_at == pytest.approx(0.31, abs=0.02)
    assert all(c.cut_at is not None or c.is_lost for c in fleet.all)
    fleet.run(1)
    assert fleet.clock.getDelayedCalls() == [] and not fleet.live


def test_peers_that_leave_meanwhile_need_no_wave() -> None:
    fleet = Fleet(10, 300)
    for connection in fleet.all[100:]:
        connection.lose()
    fleet.run(1)
    assert fleet.done_at is not None and fleet.done_at < 0.6


def test_no_connections() -> None:
    fleet = Fleet(5, 0)
    assert fleet.done_at == 0.0 and fleet.clock.getDelayedCalls() == []


def test_no_drain_time() -> None:
    fleet = Fleet(0, 30)
    assert fleet.waves() == {0.0: 30}
    fleet.run(0.02)
    assert fleet.done_at is not None
