"""Bus frames across a restart: frames of the previous process are stale, all others are accepted once."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from viewport_relay.backplane.replay import START_MARGIN, BadFrame, Freshness
from viewport_relay.reasons import Reason

SKEW = 15.0


class Parts:
    """A process that started at `clock` 0."""

    def __init__(self, *, restarted: bool) -> None:
        self.clock = Clock()
        self.epoch = 1_800_000_000.0
        self.freshness = Freshness(self.clock, self.now, SKEW)
        self.freshness.restarted = restarted

    def now(self) -> float:
        return self.epoch + self.clock.seconds()

    def why_stale(self, age: float, *, for_this_process: bool | None = None) -> BadFrame | None:
        """Judge a frame that was issued `age` seconds ago."""
        issued = round((self.now() - age) * 1000)
        return self.freshness.why_stale(issued, "a", for_this_process=for_this_process)


def test_after_a_restart_frames_issued_before_it_are_stale() -> None:
    parts = Parts(restarted=True)
    parts.clock.advance(3.0)
    for age in (3.0 + START_MARGIN + 0.01, 10.0, 14.9):
        refused = parts.why_stale(age)
        assert refused is not None and refused.reason is Reason.BUS_SIGNATURE_STALE
        assert "before this relay was restarted" in refused.detail
    for age in (3.0 + START_MARGIN - 0.01, 2.0, 0.0, -1.0):
        assert parts.why_stale(age) is None


def test_without_an_earlier_process_only_the_skew_counts() -> None:
    parts = Parts(restarted=False)
    assert [parts.why_stale(age) for age in (0.0, 5.0, 14.9)] == [None, None, None]
    assert parts.why_stale(15.1) is not None


@pytest.mark.parametrize("restarted", [True, False])
def test_a_batch_names_its_receiving_process(restarted: bool) -> None:
    parts = Parts(restarted=restarted)
    # The sender's clock is slow, but the frame names this process.
    assert parts.why_stale(10.0, for_this_process=True) is None
    assert parts.why_stale(10.0, for_this_process=False) is not None
    parts.clock.advance(1.0)
    assert parts.why_stale(0.5, for_this_process=False) is None  # the sender does not know of the restart yet


def test_a_clock_that_is_set_back_refuses_no_frame() -> None:
    parts = Parts(restarted=True)
    parts.clock.advance(SKEW + START_MARGIN)
    parts.epoch -= 3600.0
    assert parts.why_stale(0.0) is None
