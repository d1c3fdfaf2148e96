"""A histogram of durations on plain integers, for the way of a frame.

Prometheus' own takes a lock and walks labels for each value; this is a binary search and an addition. It is
read, and made cumulative, when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts durations in fixed buckets.

    `bounds` are the upper edges in seconds, rising; a value equal to an edge belongs to that bucket, as
    Prometheus' `le` says. `counts` has one more: what is longer than the last edge.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; below zero (a clock was set) counts as zero."""
        if seconds < 0.0:
            seconds = 0.0
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper edge, the last one `+Inf`."""
        total = 0
        rows: list[tuple[str, float]] = []
        for edge, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((edge, float(total)))
        return rows


def forward_histogram() -> Histogram:
    """For the time a frame spends in the relay: 50 µs to 1 s."""
    return Histogram((0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0))


def admission_histogram() -> Histogram:
    """For admission and platform requests: 1 ms to 5 s."""
    return Histogram((0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0))
